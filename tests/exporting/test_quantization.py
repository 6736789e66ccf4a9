"""Exported models with convolutions in 8-bit integers."""

from __future__ import annotations

import numpy as np
import pytest

from drenet_jax.errors import InputError
from drenet_jax.models.build import build_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")

from drenet_jax.exporting.onnx_model import to_onnx  # noqa: E402
from drenet_jax.exporting.onnx_scorer import OnnxScorer  # noqa: E402
from drenet_jax.exporting.quantization import quantize  # noqa: E402
from tests.exporting.test_onnx import _random_variables, _slices  # noqa: E402


@pytest.fixture
def float32(tiny_config, tmp_path):
    model = build_model(tiny_config, 3)
    path = tmp_path / "float32.onnx"
    path.write_bytes(
        to_onnx(
            model, _random_variables(model), {"drenet_jax": "{}"}, heat_maps=True
        ).SerializeToString()
    )
    return path


def _convolutions(path):
    """How many there are, and how many of them are in int8."""
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    quantized = [
        node
        for node in nodes
        if all(makers[x].op_type == "DequantizeLinear" for x in node.input[:2] if x in makers)
        and node.input[1] in makers
    ]
    return len(nodes), len(quantized)


def test_all_convolutions_or_those_after_the_boxes(float32, tmp_path):
    images = _slices(6)
    expected = OnnxScorer(float32)(None, images)
    passes = {}
    for name, keep_boxes in (("int8", False), ("int8_crops", True)):
        out = tmp_path / f"{name}.onnx"
        quantize(float32, out, [images[:3], images[3:]], keep_boxes=keep_boxes)
        passes[name] = _convolutions(out)
        given = OnnxScorer(out)(None, images)
        if keep_boxes:
            np.testing.assert_array_equal(given["boxes"], expected["boxes"])
            np.testing.assert_array_equal(given["scores"], expected["scores"])
        difference = np.abs(given["probabilities"] - expected["probabilities"]).max()
        assert 0 < difference < 0.2
        [prop] = onnx.load(out).metadata_props
        assert (prop.key, prop.value) == ("drenet_jax", "{}")
    total, quantized = passes["int8"]
    assert quantized == total
    # Crops and context image are two of three passes; the head of the boxes belongs to the first.
    total, quantized = passes["int8_crops"]
    assert total / 2 < quantized < 2 * total / 3


def test_a_model_without_crops_has_one_precision(tiny_config, tmp_path):
    tiny_config.model.name = "resnet18"
    model = build_model(tiny_config, 3)
    path = tmp_path / "float32.onnx"
    path.write_bytes(
        to_onnx(model, _random_variables(model), {}, heat_maps=False).SerializeToString()
    )
    with pytest.raises(InputError, match="no crops; use --precision=int8 or float32"):
        quantize(path, tmp_path / "out.onnx", [_slices(2)], keep_boxes=True)
    quantize(path, tmp_path / "out.onnx", [_slices(2)])
    total, quantized = _convolutions(tmp_path / "out.onnx")
    assert quantized == total > 10
