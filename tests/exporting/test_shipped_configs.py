"""Every shipped model at its full size, in each format beside JAX."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(package, reason=f"{package} is not installed")

CONFIGS = (
    *("demo", "drenet", "drenet_authors", "drenet_lite", "nts_net"),
    *("resnet50", "densenet121", "vgg16", "efficientnet_lite0"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_format_agrees_with_jax(name, tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "tests.exporting.shipped_model", name, tmp_path],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )

    assert process.returncode == 0, process.stderr[-2000:]
    agreed = [json.loads(line) for line in process.stdout.splitlines()]
    print(name, agreed)
    assert [row["engine"] for row in agreed] == ["ONNX Runtime", "OpenVINO", "StableHLO"]
    for row in agreed:
        assert row["problem"] == "", row
        assert row["n_slices"] == 3
        assert row["largest_difference"] < 1e-4
