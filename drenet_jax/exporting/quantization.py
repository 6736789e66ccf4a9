"""Convolutions of an ONNX file in 8-bit integers, which CPUs compute faster than float32.

Static quantization (Jacob et al. 2018): the ranges of activations come from prepared slices, the
weights have one scale a channel.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime import quantization

from drenet_jax.errors import InputError
from drenet_jax.exporting.onnx_images import INPUT

# What lies between convolutions; left in float32 it would be converted to and fro.
_LAYERS = ("Conv", "Relu", "Clip", "MaxPool", "AveragePool", "Add")
# The results of which a sum is one of feature maps, not of coordinates.
_FEATURE_MAPS = ("Conv", "Relu", "Clip", "MaxPool", "Add")


def quantize(
    model: Path, out: Path, batches: Iterable[np.ndarray], *, keep_boxes: bool = False
) -> None:
    """Writes a model with convolutions in int8.

    Args:
      model: an ONNX file in float32, as `onnx_model.to_onnx` makes it.
      out: the file to write, with the metadata of `model`.
      batches: prepared slices, each uint8 [n, S, S], by which the ranges are found.
      keep_boxes: leave in float32 what the boxes come from, which is the first pass: the boxes stay
        the same; crops and context image are in int8.

    Raises:
      InputError: `keep_boxes`, of a model without boxes.
    """
    with tempfile.TemporaryDirectory() as scratch:
        fused = Path(scratch) / "fused.onnx"
        _fuse_batch_norms(model, fused)
        graph = onnx.load(fused).graph
        layers = _layers(graph)
        if keep_boxes:
            if "boxes" not in {output.name for output in graph.output}:
                raise InputError(
                    "a model of the whole image has no crops; use --precision=int8 or float32."
                )
            layers -= _sources(graph, "boxes")
        quantization.quantize_static(
            fused,
            out,
            _Slices(batches),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=list(_LAYERS),
            nodes_to_quantize=sorted(layers),
        )
    quantized = onnx.load(out)
    properties = {p.key: p.value for p in onnx.load(model, load_external_data=False).metadata_props}
    del quantized.metadata_props[:]
    onnx.helper.set_model_props(quantized, properties)
    onnx.save(quantized, out)


class _Slices(quantization.CalibrationDataReader):
    def __init__(self, batches: Iterable[np.ndarray]):
        self._batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self._batches, None)
        return None if images is None else {INPUT: images}


def _fuse_batch_norms(model: Path, out: Path) -> None:
    """Folds batch norms into the convolutions before them: else their inputs were quantized too."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = os.fspath(out)
    onnxruntime.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"])


def _layers(graph: onnx.GraphProto) -> set[str]:
    """The names of the nodes that compute feature maps."""
    kinds = {output: node.op_type for node in graph.node for output in node.output}
    return {
        node.name
        for node in graph.node
        if node.op_type in _LAYERS
        and (node.op_type != "Add" or all(kinds.get(x) in _FEATURE_MAPS for x in node.input))
    }


def _sources(graph: onnx.GraphProto, output: str) -> set[str]:
    """The names of all nodes that a result comes from."""
    makers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    left = [output]
    while left:
        node = makers.get(left.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            left += node.input
    return found
