"""Building an ONNX graph node by node, and the layers that all backbones are made of.

Feature maps are [B, C, H, W] here, as ONNX has them; Flax's are [B, H, W, C].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

# Of ONNX's operators: read by ONNX Runtime 1.12 and OpenVINO 2022.1, and later ones.
OPSET = 17
_IR_VERSION = 8

Weights = Mapping[str, Any]


class Graph:
    """The nodes and constants of a graph. Values are named; a method returns the result's name."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._names: dict[tuple, str] = {}

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one result."""
        name = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant; equal ones are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = name = f"constant_{len(self._names)}"
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return self._names[key]

    def ints(self, *values: int) -> str:
        """A constant of whole numbers, such as a shape."""
        return self.constant(values, np.int64)

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps the size of that axis, -1 takes what is left."""
        return self.add("Reshape", x, self.ints(*shape))

    def output(self, name: str, x: str) -> None:
        """Gives a result of the graph its name."""
        self._nodes.append(helper.make_node("Identity", [x], [name], name=name))

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        metadata: Mapping[str, str],
        *,
        producer_version: str,
    ) -> onnx.ModelProto:
        """The model, checked against ONNX's rules."""
        graph = helper.make_graph(
            self._nodes, "drenet_jax", inputs, outputs, list(self._constants.values())
        )
        model = helper.make_model(
            graph,
            producer_name="drenet_jax",
            producer_version=producer_version,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model

    # Layers, with weights named and laid out as Flax has them.

    def conv(
        self,
        x: str,
        layer: Weights,
        stride: int = 1,
        pads: Sequence[int] = (0, 0, 0, 0),
        groups: int = 1,
    ) -> str:
        """A convolution, with the layer's bias if it has one.

        Args:
          x: feature maps.
          layer: `kernel` [h, w, C_in / groups, C_out] and perhaps `bias`.
          stride: in both directions.
          pads: above, on the left, below, on the right.
          groups: 1, or the number of channels (depthwise).
        """
        kernel = np.asarray(layer["kernel"]).transpose(3, 2, 0, 1)
        inputs = [x, self.constant(kernel)]
        if "bias" in layer:
            inputs.append(self.constant(layer["bias"]))
        return self.add(
            "Conv",
            *inputs,
            kernel_shape=kernel.shape[2:],
            strides=[stride, stride],
            pads=list(pads),
            group=groups,
        )

    def conv3x3(self, x: str, layer: Weights, stride: int = 1) -> str:
        return self.conv(x, layer, stride, (1, 1, 1, 1))

    def batch_norm(
        self, x: str, layer: Weights, statistics: Weights, domain: int, epsilon: float = 1e-5
    ) -> str:
        """A batch norm by its running statistics.

        Args:
          x: feature maps.
          layer: `scale` and `bias`.
          statistics: `mean` and `var`, [C] or [domains, C].
          domain: of the input.
          epsilon: added to the variance.
        """
        mean, var = (np.asarray(statistics[name]) for name in ("mean", "var"))
        if mean.ndim == 2:
            mean, var = mean[domain], var[domain]
        constants = [self.constant(value) for value in (layer["scale"], layer["bias"], mean, var)]
        return self.add("BatchNormalization", x, *constants, epsilon=epsilon)

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def max_pool_3x3(self, x: str) -> str:
        return self.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])

    def mean_over_plane(self, x: str) -> str:
        """[B, C, H, W] -> [B, C]."""
        return self.add("ReduceMean", x, axes=[2, 3], keepdims=0)

    def dense(self, x: str, layer: Weights) -> str:
        """[..., n] -> [..., m], `kernel` [n, m]."""
        product = self.add("MatMul", x, self.constant(layer["kernel"]))
        return self.add("Add", product, self.constant(layer["bias"]))

    def back_through_dense(self, gradient: str, layer: Weights, hidden: str) -> str:
        """The gradient by the input of ReLU(dense), [..., B, m] -> [..., B, n].

        Args:
          gradient: by the result.
          layer: of `dense`.
          hidden: the result, [B, m].
        """
        is_active = self.add("Greater", hidden, self.constant(0.0))
        gradient = self.add("Where", is_active, gradient, self.constant(0.0))
        return self.add("MatMul", gradient, self.constant(np.asarray(layer["kernel"]).T))


def same_pads(size_px: int, kernel_size: int, stride: int) -> tuple[int, int, int, int]:
    """TensorFlow's SAME padding of a square: of an odd number of pixels more below and right."""
    total = max((math.ceil(size_px / stride) - 1) * stride + kernel_size - size_px, 0)
    low, high = total // 2, total - total // 2
    return low, low, high, high


def tensor(name: str, dtype: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """An input or output; sizes with a name may change from call to call."""
    return helper.make_tensor_value_info(name, dtype, shape)
