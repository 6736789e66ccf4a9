"""A shipped model at its full size, with random weights, in each format beside JAX.

    python -m tests.exporting.shipped_model CONFIG FOLDER

A process of its own, since the tests' checks of shapes know no batch without a size. Prints a line
of JSON for each engine: how it agrees.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np

from drenet_jax.exporting import agreement, exporter
from drenet_jax.exporting.onnx_model import to_onnx
from drenet_jax.exporting.onnx_scorer import OnnxScorer
from drenet_jax.exporting.openvino_scorer import OpenVinoScorer
from drenet_jax.exporting.stablehlo import to_stablehlo
from drenet_jax.models.build import build_model
from drenet_jax.models.slice_scorer import make_forward
from tests.exporting.random_models import random_variables, smooth_slices


def main(name: str, folder: Path) -> None:
    config = importlib.import_module(f"drenet_jax.configs.{name}").get_config()
    model = build_model(config, 3)
    variables = random_variables(model)
    images = smooth_slices(3, config.model.image_size_px)
    forward = jax.jit(make_forward(model, heat_maps=True))
    expected = {key: np.asarray(value) for key, value in forward(variables, images).items()}
    # As `export_model` builds it.
    model = build_model(config, 3, platform="gpu")

    path = folder / "model.onnx"
    path.write_bytes(to_onnx(model, variables, {}, heat_maps=True).SerializeToString())
    by_onnx = OnnxScorer(path)(None, images)
    by_openvino = OpenVinoScorer(path)(None, images)
    stablehlo = folder / "model.stablehlo"
    stablehlo.write_bytes(to_stablehlo(model, variables, heat_maps=True))
    by_stablehlo = exporter._run_stablehlo(stablehlo, images)

    assert set(by_onnx) == set(by_openvino) == set(by_stablehlo) == set(expected)
    for engine, given in (
        ("ONNX Runtime", by_onnx),
        ("OpenVINO", by_openvino),
        ("StableHLO", by_stablehlo),
    ):
        agreed = agreement.compare(expected, given)
        print(json.dumps({"engine": engine, **dataclasses.asdict(agreed)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
