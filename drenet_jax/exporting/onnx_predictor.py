"""A predictor of an exported ONNX model; nothing here imports JAX."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drenet_jax.errors import InputError
from drenet_jax.evaluation.calibration import ValidationRecord
from drenet_jax.evaluation.decisions import DecisionRule
from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.exporting.description import read_description
from drenet_jax.exporting.graph_scorer import GraphScorer
from drenet_jax.exporting.onnx_scorer import OnnxScorer
from drenet_jax.exporting.precision import BFLOAT16
from drenet_jax.models.checkpoint_metadata import Meta


def load_scorer(file: Path, precision: str) -> GraphScorer:
    """The scorer of a file, in the runtime that computes its precision.

    Raises:
      InputError: the runtime is not installed, or cannot load the file.
    """
    if precision in BFLOAT16:
        if importlib.util.find_spec("openvino") is None:
            raise InputError(
                f"{precision} needs openvino, which is not installed; install the extra: "
                "pip install 'drenet_jax[openvino]'."
            )
        from drenet_jax.exporting.openvino_scorer import OpenVinoScorer

        return OpenVinoScorer(file, precision)
    return OnnxScorer(file)


def load_onnx(folder: Path, **options: Any) -> Predictor:
    """The predictor of a folder that `export --format=onnx --heat_maps` wrote.

    Args:
      folder: it.
      options: of `make_predictor`.

    Raises:
      InputError: the folder is none, or as `make_predictor`.
    """
    return make_predictor(*read_description(folder), **options)


def make_predictor(
    file: Path,
    description: Mapping[str, Any],
    *,
    workdir: Path | None = None,
    calibrated: bool = False,
    rule: DecisionRule | None = None,
) -> Predictor:
    """The predictor of an exported file.

    Args:
      file, description: as `read_description` gives them.
      workdir: of the run, for `result.json`; None: the folder of the file.
      calibrated: as `Predictor.load`.
      rule: aggregates and decides; None: that of the description.

    Raises:
      InputError: the file cannot be used, or has no temperature.
    """
    if not description["heat_maps"]:
        raise InputError(f"{file} gives no heat maps; export it with --heat_maps.")
    meta = Meta.from_dict(description["checkpoint"])
    temperature = description["fitted_temperature"] if calibrated else None
    if calibrated and temperature is None:
        raise InputError(
            f"--calibrated: the model of {workdir or file} has no temperature; leave the flag out."
        )
    record = description["validation"]
    return Predictor(
        meta,
        description["step"],
        workdir or file.parent,
        load_scorer(file, description["precision"]),
        None,
        temperature,
        None if record is None else ValidationRecord.from_dict(record),
        rule or DecisionRule.from_dict(meta.labels, description["decision"]),
    )
