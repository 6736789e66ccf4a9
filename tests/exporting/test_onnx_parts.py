"""Parts of an ONNX graph, run one after another, give what the whole gives."""

from __future__ import annotations

import numpy as np
import pytest

from drenet_jax.models.build import build_model

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")

from drenet_jax.exporting.onnx_model import to_onnx  # noqa: E402
from drenet_jax.exporting.onnx_parts import split  # noqa: E402
from tests.exporting.random_models import random_variables, smooth_slices  # noqa: E402

CPU = ["CPUExecutionProvider"]


@pytest.mark.parametrize("changes", [{}, {"context": "zoom"}, {"context": "none", "hidden": ()}])
def test_parts_give_what_the_whole_gives(tiny_config, tmp_path, changes):
    tiny_config.model.update(changes)
    model = build_model(tiny_config, 3)
    path = tmp_path / "model.onnx"
    whole = to_onnx(model, random_variables(model), {}, heat_maps=True)
    path.write_bytes(whole.SerializeToString())
    values = {"images": smooth_slices(3, 96)}
    session = runtime.InferenceSession(path, providers=CPU)
    expected = session.run(None, values)

    parts = split(path)
    convolutions = []
    for part in parts:
        loaded = onnx.load_from_string(part.content)
        convolutions.append(sum(node.op_type == "Conv" for node in loaded.graph.node))
        session_of_part = runtime.InferenceSession(part.content, providers=CPU)
        fed = {name: values[name] for name in part.inputs}
        values |= zip(part.outputs, session_of_part.run(list(part.outputs), fed), strict=True)

    assert convolutions[2] == 0
    assert convolutions[0] > 0
    assert convolutions[1] > 0
    assert sum(convolutions) == sum(node.op_type == "Conv" for node in whole.graph.node)
    for output, value in zip(session.get_outputs(), expected, strict=True):
        np.testing.assert_allclose(values[output.name], value, atol=1e-6, err_msg=output.name)
