"""Exported models in OpenVINO, in float32 and in bfloat16."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from drenet_jax.errors import InputError
from drenet_jax.models.build import build_model

for package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from drenet_jax.exporting.onnx_model import to_onnx  # noqa: E402
from drenet_jax.exporting.onnx_predictor import load_scorer  # noqa: E402
from drenet_jax.exporting.onnx_scorer import OnnxScorer  # noqa: E402
from drenet_jax.exporting.openvino_scorer import OpenVinoScorer  # noqa: E402
from tests.exporting.random_models import random_variables, smooth_slices  # noqa: E402


def _export(config, folder):
    model = build_model(config, 3)
    path = folder / "model.onnx"
    exported = to_onnx(model, random_variables(model), {}, heat_maps=True)
    path.write_bytes(exported.SerializeToString())
    return path


@pytest.mark.parametrize("name", ["drenet", "resnet18"])
def test_float32_gives_what_onnx_runtime_gives(tiny_config, tmp_path, name):
    tiny_config.model.name = name
    path = _export(tiny_config, tmp_path)
    images = smooth_slices(6, 96)  # more than a batch
    expected = OnnxScorer(path)(None, images)

    given = OpenVinoScorer(path)(None, images)

    assert set(given) == set(expected)
    for key, values in expected.items():
        np.testing.assert_allclose(given[key], values, atol=1e-4, rtol=1e-4, err_msg=key)


def test_crops_in_bfloat16_keep_the_boxes(tiny_config, tmp_path):
    path = _export(tiny_config, tmp_path)
    images = smooth_slices(4, 96)
    expected = OpenVinoScorer(path)(None, images)

    given = OpenVinoScorer(path, "bfloat16_crops")(None, images)

    for key in ("boxes", "scores", "raw_logits"):
        np.testing.assert_allclose(given[key], expected[key], atol=1e-6, err_msg=key)
    difference = np.abs(given["probabilities"] - expected["probabilities"]).max()
    # On a CPU without bfloat16 OpenVINO takes float32.
    assert difference < 0.05


def test_a_model_without_crops_is_refused(tiny_config, tmp_path):
    tiny_config.model.name = "resnet18"
    path = _export(tiny_config, tmp_path)

    with pytest.raises(InputError, match="no crops; use --precision=bfloat16 or float32"):
        OpenVinoScorer(path, "bfloat16_crops")


def test_without_openvino(tiny_config, tmp_path, monkeypatch):
    path = _export(tiny_config, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(InputError, match="bfloat16 needs openvino, which is not installed"):
        load_scorer(path, "bfloat16")


def test_the_command_exports_and_compares(command, trained, tmp_path):
    out = tmp_path / "out"

    process = command(
        "export",
        f"--workdir={trained}",
        "--precision=bfloat16_crops",
        "--heat_maps",
        f"--out={out}",
    )

    assert process.returncode == 0, process.stderr
    assert "boxes that are the same: 100.0%" in process.stdout
    description = json.loads((out / "model.json").read_text())
    assert description["precision"] == "bfloat16_crops"
    assert 0 <= description["precision_report"]["largest_person_difference"] < 0.05
    # The file itself is in float32, for any runtime.
    assert [path.name for path in sorted(out.iterdir())] == ["model.json", "model.onnx"]
    assert OnnxScorer(out / "model.onnx").runtime.startswith("onnxruntime")
