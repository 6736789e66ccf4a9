"""Each backbone as ONNX nodes: the forward pass of `models/backbones`, and a gradient for Grad-CAM.

A backbone that is new there needs a class here; without one its export is refused.
"""

from __future__ import annotations

from typing import NamedTuple

from drenet_jax.exporting.onnx_graph import Graph, Weights, same_pads
from drenet_jax.models.backbones import densenet, efficientnet_lite, resnet, vgg
from drenet_jax.models.backbones.backbone import Backbone


class Features(NamedTuple):
    """What a backbone gives, as names of values.

    Attributes:
      feature_map: [B, C, H, W].
      pooled: [B, features].
      hidden: what the gradient needs of hidden layers (VGG).
    """

    feature_map: str
    pooled: str
    hidden: tuple[str, ...] = ()


class OnnxBackbone:
    """A backbone's nodes; one of it is used for all passes.

    Attributes:
      graph: to which nodes are added.
      backbone: whose architecture and width count.
      params, statistics: of the backbone.
    """

    def __init__(self, graph: Graph, backbone: Backbone, params: Weights, statistics: Weights):
        self.graph, self.backbone = graph, backbone
        self.params, self.statistics = params, statistics

    def features(self, pixels: str, size_px: int, domain: int) -> Features:
        """The features of normalised images [B, 3, size_px, size_px] of a domain."""
        raise NotImplementedError

    def gradient(self, by_pooled: str, features: Features) -> str:
        """The gradient by the feature map, summed over the plane, [classes, B, C].

        Without hidden layers it is that by `pooled`, which is the mean over the plane.

        Args:
          by_pooled: [classes, B, features], or a B of 1 where it is the same for all images.
          features: the results of the pass.
        """
        return by_pooled

    def _norm(self, x: str, path: tuple[str, ...], domain: int, epsilon: float = 1e-5) -> str:
        params, statistics = self.params, self.statistics
        for name in path:
            params, statistics = params[name], statistics[name]
        return self.graph.batch_norm(x, params, statistics, domain, epsilon)


class OnnxResNet(OnnxBackbone):
    def features(self, pixels: str, size_px: int, domain: int) -> Features:
        graph, params = self.graph, self.params
        _, stage_sizes = resnet.ARCHITECTURES[self.backbone.architecture]
        x = graph.conv(pixels, params["conv1"], 2, (3, 3, 3, 3))
        x = graph.max_pool_3x3(graph.relu(self._norm(x, ("bn1",), domain)))
        for stage, n_blocks in enumerate(stage_sizes, start=1):
            for i in range(n_blocks):
                x = self._block(x, f"layer{stage}_{i}", 2 if stage > 1 and i == 0 else 1, domain)
        return Features(x, graph.mean_over_plane(x))

    def _block(self, x: str, name: str, stride: int, domain: int) -> str:
        graph, params = self.graph, self.params[name]
        is_bottleneck = "conv3" in params

        def norm(y: str, layer: str) -> str:
            return self._norm(y, (name, layer), domain)

        if is_bottleneck:
            y = graph.relu(norm(graph.conv(x, params["conv1"]), "bn1"))
            y = graph.relu(norm(graph.conv3x3(y, params["conv2"], stride), "bn2"))
            y = norm(graph.conv(y, params["conv3"]), "bn3")
        else:
            y = graph.relu(norm(graph.conv3x3(x, params["conv1"], stride), "bn1"))
            y = norm(graph.conv3x3(y, params["conv2"]), "bn2")
        if "downsample_conv" in params:
            x = norm(graph.conv(x, params["downsample_conv"], stride), "downsample_bn")
        return graph.relu(graph.add("Add", y, x))


class OnnxDenseNet(OnnxBackbone):
    def features(self, pixels: str, size_px: int, domain: int) -> Features:
        graph, params = self.graph, self.params
        block_sizes = densenet.ARCHITECTURES[self.backbone.architecture]
        x = graph.conv(pixels, params["conv0"], 2, (3, 3, 3, 3))
        x = graph.max_pool_3x3(graph.relu(self._norm(x, ("norm0",), domain)))
        for block, n_layers in enumerate(block_sizes, start=1):
            for layer in range(1, n_layers + 1):
                name = f"denseblock{block}_denselayer{layer}"
                y = graph.relu(self._norm(x, (name, "norm1"), domain))
                y = graph.conv(y, params[name]["conv1"])
                y = graph.relu(self._norm(y, (name, "norm2"), domain))
                y = graph.conv3x3(y, params[name]["conv2"])
                x = graph.add("Concat", x, y, axis=1)
            if block < len(block_sizes):
                name = f"transition{block}"
                x = graph.relu(self._norm(x, (name, "norm"), domain))
                x = graph.conv(x, params[name]["conv"])
                x = graph.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        x = graph.relu(self._norm(x, ("norm5",), domain))
        return Features(x, graph.mean_over_plane(x))


class OnnxEfficientNetLite(OnnxBackbone):
    def features(self, pixels: str, size_px: int, domain: int) -> Features:
        graph, params = self.graph, self.params
        epsilon = efficientnet_lite.EPSILON

        def relu6(x: str, *path: str) -> str:
            x = self._norm(x, path, domain, epsilon)
            return graph.add("Clip", x, graph.constant(0.0), graph.constant(6.0))

        x = graph.conv(pixels, params["conv_stem"], 2, same_pads(size_px, 3, 2))
        x, size_px = relu6(x, "bn0"), -(-size_px // 2)
        for i, group in enumerate(efficientnet_lite.blocks(self.backbone.architecture)):
            name = f"blocks_{i}"
            block, y = params[name], x
            if "expand_conv" in block:
                y = relu6(graph.conv(y, block["expand_conv"]), name, "bn0")
            kernel = block["depthwise_conv"]["kernel"]
            pads = same_pads(size_px, len(kernel), group.stride)
            y = graph.conv(y, block["depthwise_conv"], group.stride, pads, kernel.shape[-1])
            size_px = -(-size_px // group.stride)
            y = graph.conv(relu6(y, name, "bn1"), block["project_conv"])
            y = self._norm(y, (name, "bn2"), domain, epsilon)
            first = block.get("expand_conv", block["depthwise_conv"])["kernel"]
            channels = first.shape[2] if "expand_conv" in block else first.shape[3]
            if group.stride == 1 and channels == block["project_conv"]["kernel"].shape[-1]:
                y = graph.add("Add", y, x)
            x = y
        x = relu6(graph.conv(x, params["conv_head"]), "bn1")
        return Features(x, graph.mean_over_plane(x))


class OnnxVGG(OnnxBackbone):
    def features(self, pixels: str, size_px: int, domain: int) -> Features:
        graph, params = self.graph, self.params
        x, number = pixels, 0
        for n_convolutions in vgg.ARCHITECTURES[self.backbone.architecture]:
            for _ in range(n_convolutions):
                x = graph.relu(graph.conv3x3(x, params[f"features_{number}"]))
                number += 2
            x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
            number, size_px = number + 1, size_px // 2
        # [cells, H] [B, C, H, W] [W, cells]
        means = vgg.part_means(size_px, vgg.POOLED_CELLS)
        pooled = graph.add("MatMul", graph.constant(means), x)
        pooled = graph.add("MatMul", pooled, graph.constant(means.T))
        pooled = graph.add("Transpose", pooled, perm=[0, 2, 3, 1])
        pooled = graph.reshape(pooled, 0, vgg.POOLED_CELLS**2 * self.backbone.channels)
        first = graph.relu(graph.dense(pooled, params["classifier_0"]))
        second = graph.relu(graph.dense(first, params["classifier_3"]))
        return Features(x, second, (first, second))

    def gradient(self, by_pooled: str, features: Features) -> str:
        graph = self.graph
        first, second = features.hidden
        gradient = graph.back_through_dense(by_pooled, self.params["classifier_3"], second)
        gradient = graph.back_through_dense(gradient, self.params["classifier_0"], first)
        cells = graph.reshape(gradient, 0, 0, vgg.POOLED_CELLS**2, self.backbone.channels)
        return graph.add("ReduceSum", cells, graph.ints(2), keepdims=0)


_BACKBONES: dict[type[Backbone], type[OnnxBackbone]] = {
    resnet.ResNet: OnnxResNet,
    densenet.DenseNet: OnnxDenseNet,
    efficientnet_lite.EfficientNetLite: OnnxEfficientNetLite,
    vgg.VGG: OnnxVGG,
}


def find_backbone(backbone: Backbone) -> type[OnnxBackbone] | None:
    """The class of a backbone's nodes; None if there is none."""
    return _BACKBONES.get(type(backbone))
