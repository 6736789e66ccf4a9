"""A whole model as an ONNX graph: uint8 slices in; probabilities, boxes and heat maps out.

The nodes follow `models/drenet.py` and `models/classifier.py`. Crops are products with sampling
weights, as on TPU (`models/crops.py`); Grad-CAM's gradients are written out: they pass the MLP, and
the hidden layers of a VGG, only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx

from drenet_jax.errors import InputError
from drenet_jax.exporting.onnx_backbones import Features, OnnxBackbone, find_backbone
from drenet_jax.exporting.onnx_graph import Graph, Weights, tensor
from drenet_jax.exporting.onnx_images import (
    INPUT,
    Images,
    context_image,
    crop_boxes,
    normalised_images,
)
from drenet_jax.models import proposals
from drenet_jax.models.backbones.backbone import STRIDE_PX
from drenet_jax.models.build import Model
from drenet_jax.models.classifier import Classifier
from drenet_jax.models.drenet import DRENet
from drenet_jax.version import __version__

# Sizes that may change from call to call.
_BATCH = "batch"


def to_onnx(
    model: Model,
    variables: Mapping[str, Any],
    metadata: Mapping[str, str],
    *,
    heat_maps: bool,
) -> onnx.ModelProto:
    """The model's prediction as an ONNX graph in float32, with a batch of any size.

    Args:
      model: of the family.
      variables: `params` and `batch_stats`.
      metadata: of the file.
      heat_maps: whether to give Grad-CAM maps too.

    Returns:
      a model with the input `images`, uint8 [N, S, S], and outputs as `SliceScorer` gives them;
      without those of proposals where the model has none.

    Raises:
      InputError: the model has a part that is not exported.
    """
    kind = find_backbone(model.backbone)
    if kind is None:
        raise InputError(
            f"the backbone {model.backbone.architecture} cannot be exported to ONNX; use "
            "--format=stablehlo."
        )
    graph = Graph()
    params, statistics = variables["params"], variables["batch_stats"]
    backbone = kind(graph, model.backbone, params["backbone"], statistics.get("backbone", {}))
    images = normalised_images(graph)
    if isinstance(model, Classifier):
        outputs = _classifier(graph, model, backbone, params, images, heat_maps)
    else:
        outputs = _drenet(graph, model, backbone, params, images, heat_maps)
    for name, value in outputs.items():
        graph.output(name, value)
    size_px = model.image_size_px
    return graph.model(
        [tensor(INPUT, onnx.TensorProto.UINT8, [_BATCH, size_px, size_px])],
        [
            tensor(name, onnx.TensorProto.FLOAT, [_BATCH, *shape])
            for name, shape in _output_shapes(model, outputs).items()
        ],
        metadata,
        producer_version=__version__,
    )


def _classifier(
    graph: Graph,
    model: Classifier,
    backbone: OnnxBackbone,
    params: Weights,
    images: Images,
    heat_maps: bool,
) -> dict[str, str]:
    features = backbone.features(images.pixels, model.image_size_px, 0)
    logits = graph.dense(features.pooled, params["head"])
    outputs = {
        "probabilities": graph.add("Softmax", logits, axis=-1),
        "logits": logits,
        "raw_logits": logits,
    }
    if heat_maps:
        kernel = np.asarray(params["head"]["kernel"])
        gradient = backbone.gradient(graph.constant(kernel.T[:, None]), features)
        outputs["heat_maps"] = _heat_maps(graph, features, gradient, model, model.image_size_px)
    return outputs


def _drenet(
    graph: Graph,
    model: DRENet,
    backbone: OnnxBackbone,
    params: Weights,
    images: Images,
    heat_maps: bool,
) -> dict[str, str]:
    size_px, top_k = model.image_size_px, sum(group.top_k for group in model.groups)
    image = backbone.features(images.pixels, size_px, 0)
    scores, boxes = _proposals(graph, model, params, image.feature_map, images.grey)
    crops = crop_boxes(graph, images.grey, boxes, size_px, model.crop_size_px)
    parts = backbone.features(crops, model.crop_size_px, 1)
    part_features = graph.reshape(parts.pooled, -1, top_k, _n_features(params))
    pooled = [graph.reshape(parts.pooled, -1, top_k * _n_features(params)), image.pooled]
    if model.context != "none":
        context = context_image(graph, model, images, scores, boxes)
        pooled.append(backbone.features(context, size_px, 2).pooled)
    x = graph.add("Concat", *pooled, axis=1)
    layers = [params[f"mlp{i + 1}"] for i in range(len(model.hidden))]
    hidden = []
    for layer in layers:
        x = graph.relu(graph.dense(x, layer))
        hidden.append(x)
    logits = graph.dense(x, params["concat_head"])
    part_logits = graph.dense(part_features, params["part_head"])
    outputs = {
        "probabilities": graph.add("Softmax", logits, axis=-1),
        "logits": logits,
        "raw_logits": graph.dense(image.pooled, params["raw_head"]),
        "boxes": boxes,
        "scores": scores,
        "part_probabilities": graph.add("Softmax", part_logits, axis=-1),
    }
    if heat_maps:
        gradient = graph.constant(np.asarray(params["concat_head"]["kernel"]).T[:, None])
        for layer, result in zip(reversed(layers), reversed(hidden), strict=True):
            gradient = graph.back_through_dense(gradient, layer, result)
        outputs |= _drenet_heat_maps(graph, model, backbone, gradient, image, parts, params)
    return outputs


def _n_features(params: Weights) -> int:
    """Of what the backbone pools."""
    return np.shape(params["raw_head"]["kernel"])[0]


def _drenet_heat_maps(
    graph: Graph,
    model: DRENet,
    backbone: OnnxBackbone,
    gradient: str,
    image: Features,
    parts: Features,
    params: Weights,
) -> dict[str, str]:
    """From the gradient by the concatenated features, [classes, B, features]."""
    n, top_k = _n_features(params), sum(group.top_k for group in model.groups)
    ends = graph.ints(top_k * n), graph.ints((top_k + 1) * n)
    axis = graph.ints(2)
    of_parts = graph.add("Slice", gradient, graph.ints(0), ends[0], axis)
    of_image = graph.add("Slice", gradient, ends[0], ends[1], axis)
    if not model.hidden:
        # The same for all images: repeated for each, since crops are rows of a batch.
        ones = graph.add("ConstantOfShape", graph.add("Shape", parts.pooled, start=0, end=1))
        ones = graph.add("Add", ones, graph.constant(1.0))
        ones = graph.reshape(ones, 1, -1, top_k, 1)
        of_parts = graph.add("Mul", graph.reshape(of_parts, 0, 1, top_k, n), ones)
    of_parts = graph.reshape(of_parts, 0, -1, n)
    crop_maps = _heat_maps(
        graph, parts, backbone.gradient(of_parts, parts), model, model.crop_size_px
    )
    cells = _cells(model, model.crop_size_px)
    crop_maps = graph.reshape(crop_maps, -1, top_k, model.classes, cells, cells)
    return {
        "heat_maps": _heat_maps(
            graph, image, backbone.gradient(of_image, image), model, model.image_size_px
        ),
        "crop_heat_maps": graph.add("Transpose", crop_maps, perm=[0, 2, 1, 3, 4]),
    }


def _heat_maps(graph: Graph, features: Features, gradient: str, model: Model, size_px: int) -> str:
    """[B, classes, h, w]: ReLU of the sum over channels of weights and feature maps."""
    cells = _cells(model, size_px)
    weights = graph.add("Transpose", gradient, perm=[1, 0, 2])
    weights = graph.add("Div", weights, graph.constant(float(cells**2)))
    plane = graph.reshape(features.feature_map, 0, 0, -1)
    maps = graph.relu(graph.add("MatMul", weights, plane))
    return graph.reshape(maps, 0, 0, cells, cells)


def _cells(model: Model, size_px: int) -> int:
    """Of the feature map along one side."""
    return -(-size_px // STRIDE_PX) if model.backbone.rounds_up else size_px // STRIDE_PX


def _proposals(
    graph: Graph, model: DRENet, params: Weights, feature_map: str, grey: str
) -> tuple[str, str]:
    """Scores [B, K] and boxes [B, K, 4], group by group."""
    top_k = [group.top_k for group in model.groups]
    of_groups = proposals.group_anchors(model.levels, model.groups, model.image_size_px)
    if model.selection == "grid":
        grid = proposals.grid_scores(
            model.levels, model.groups, model.image_size_px, model.nms_iou, top_k
        )
        _, grid_boxes = proposals.select_proposals(
            jnp.asarray(grid)[None],
            model.levels,
            model.groups,
            model.image_size_px,
            model.nms_iou,
            top_k,
        )
        # [B, 1, 1] of zeros, so that each image has its own.
        zero = graph.add("ReduceMax", grey, axes=[1, 2], keepdims=1)
        zero = graph.add("Mul", zero, graph.constant(0.0))
        scores = graph.reshape(zero, 0, 1)
        scores = graph.add("Add", scores, graph.constant(np.zeros((1, sum(top_k)))))
        return scores, graph.add("Add", zero, graph.constant(grid_boxes))
    if model.selection != "learned":
        raise InputError(
            f"a model with model.proposals={model.selection} cannot be exported to ONNX; use "
            "--format=stablehlo."
        )
    all_scores = _proposal_head(graph, model, params["proposal_head"], feature_map)
    selected = []
    for (first, boxes, iou), count in zip(of_groups, top_k, strict=True):
        scores = graph.add(
            "Slice", all_scores, graph.ints(first), graph.ints(first + len(boxes)), graph.ints(1)
        )
        picks = _select_top(graph, scores, iou < model.nms_iou, count)
        selected.append(
            (
                graph.add("GatherElements", scores, picks, axis=1),
                graph.add("Gather", graph.constant(boxes), picks, axis=0),
            )
        )
    of_scores, of_boxes = zip(*selected, strict=True)
    return graph.add("Concat", *of_scores, axis=1), graph.add("Concat", *of_boxes, axis=1)


def _proposal_head(graph: Graph, model: DRENet, params: Weights, feature_map: str) -> str:
    """[B, A]: the scores in the order of `anchor_boxes`."""
    x, scores = feature_map, []
    for i, level in enumerate(model.levels, start=1):
        x = graph.relu(graph.conv3x3(x, params[f"down{i}"], 1 if i == 1 else 2))
        score = graph.add("Transpose", graph.conv(x, params[f"tidy{i}"]), perm=[0, 2, 3, 1])
        n = level.cells(model.image_size_px) ** 2 * level.anchors_per_cell
        scores.append(graph.reshape(score, 0, n))
    return graph.add("Concat", *scores, axis=1)


def _select_top(graph: Graph, scores: str, keeps: np.ndarray, count: int) -> str:
    """[B, count]: hard non-maximum suppression as in `proposals.select_top`."""
    kept_by = graph.constant(keeps, np.bool_)
    picks = []
    for i in range(count):
        # [B, 1]; of equal scores the first.
        best = graph.add("ArgMax", scores, axis=1, keepdims=1)
        picks.append(best)
        if i + 1 < count:
            row = graph.add("Gather", kept_by, graph.add("Squeeze", best, graph.ints(1)), axis=0)
            scores = graph.add("Where", row, scores, graph.constant(-np.inf))
    return graph.add("Concat", *picks, axis=1)


def _output_shapes(model: Model, outputs: Mapping[str, str]) -> dict[str, list[int]]:
    """Of each output, without the batch."""
    top_k = sum(group.top_k for group in model.groups) if isinstance(model, DRENet) else 0
    cells = _cells(model, model.image_size_px)
    shapes: dict[str, list[int]] = {
        "probabilities": [model.classes],
        "logits": [model.classes],
        "raw_logits": [model.classes],
        "boxes": [top_k, 4],
        "scores": [top_k],
        "part_probabilities": [top_k, model.classes],
        "heat_maps": [model.classes, cells, cells],
    }
    if isinstance(model, DRENet):
        crop_cells = _cells(model, model.crop_size_px)
        shapes["crop_heat_maps"] = [model.classes, top_k, crop_cells, crop_cells]
    return {name: shapes[name] for name in outputs}
