"""Exports a checkpoint, and checks the file in its own runtime before anything is published."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from drenet_jax.ct.settings import CtSettings
from drenet_jax.ct.window import window
from drenet_jax.errors import InputError
from drenet_jax.evaluation.decisions import DecisionRule
from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.exporting import agreement
from drenet_jax.exporting.description import (
    METADATA_KEY,
    checkpoint_files,
    describe,
    write_description,
)
from drenet_jax.exporting.precision import BFLOAT16, PrecisionReport
from drenet_jax.models.build import Model, build_model
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.models.slice_scorer import make_forward
from drenet_jax.phantoms.phantom import LABELS, make_phantom

if TYPE_CHECKING:
    from drenet_jax.data.prepared_data import PreparedData

# The name of the model in Triton, and its folder in the model repository.
TRITON_MODEL = "drenet"
# The model's file in the folder of an export.
MODEL_FILES = {
    "onnx": "model.onnx",
    "triton": f"{TRITON_MODEL}/1/model.onnx",
    "stablehlo": "model.stablehlo",
}

# Of phantoms for the check: enough slices for boxes at many places.
_SLICES_PER_LABEL = 3
_PHANTOM_SIZE_PX = 192

# More change the ranges little.
_CALIBRATION_SLICES = 128
_CALIBRATION_BATCH = 4

_SPEED_ROUNDS = 2

# A request of Triton may hold a person's slices, and those of another can join them in a batch.
_PERSONS = 2

# What loads a StableHLO file in a process of its own: nothing of this package.
_RUN_STABLEHLO = """
import sys
import numpy as np
from jax import export
model = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
results = model.call(np.load(sys.argv[2]))
np.savez(sys.argv[3], **{name: np.asarray(value) for name, value in results.items()})
"""


@dataclasses.dataclass(frozen=True)
class Export:
    """What `export_model` wrote, and how it compares.

    Attributes:
      file: the model's.
      agreement: of the graph in float32 with JAX, on drawn slices.
      ms_per_slice: measured here, in `jax` and `exported`; empty of StableHLO.
      precision_report: of a lower precision beside float32, else None.
    """

    file: Path
    agreement: agreement.Agreement
    ms_per_slice: dict[str, float]
    precision_report: PrecisionReport | None = None


def export_model(
    predictor: Predictor,
    workdir: str | os.PathLike[str],
    folder: Path,
    *,
    format: str,
    heat_maps: bool,
    precision: str = "float32",
    data: PreparedData | None = None,
    split: str = "test",
    rule: DecisionRule | None = None,
) -> Export:
    """Writes the model's file and its description.

    Args:
      predictor: the model.
      workdir: from which it was loaded.
      folder: an empty one.
      format: one of `MODEL_FILES`; "triton" is ONNX in a model repository.
      heat_maps: whether the file gives Grad-CAM maps too.
      precision: one of `precision.PRECISIONS`; below float32 of ONNX only.
      data: of a lower precision: its training slices give the ranges of activations.
      split: of `data`, on which the lower precision is compared with float32.
      rule: of the description; None: the predictor's.

    Raises:
      InputError: the model cannot be exported, or the file does not agree.
    """
    meta = predictor.meta
    # float32 whatever it was trained in: other runtimes have other roundings of bfloat16.
    config = meta.config.copy_and_resolve_references()
    config.model.dtype = "float32"
    # Formulas of the CPU would be slow elsewhere, and in ONNX Runtime.
    model = build_model(config, len(meta.labels), platform="gpu")
    variables = jax.tree.map(lambda leaf: np.asarray(leaf[0]), predictor.variables)
    description = _description(predictor, workdir, rule or predictor.rule, precision, heat_maps)
    path = folder / MODEL_FILES[format]
    path.parent.mkdir(parents=True, exist_ok=True)
    images = check_slices(meta.ct)
    if format != "stablehlo":
        metadata = {METADATA_KEY: json.dumps(description, allow_nan=False)}
        given = _write_onnx(path, model, variables, metadata, images, heat_maps)
    else:
        from drenet_jax.exporting.stablehlo import to_stablehlo

        path.write_bytes(to_stablehlo(model, variables, heat_maps=heat_maps))
        given = _run_stablehlo(path, images)
    agreed = agreement.compare(_expected(predictor, config, variables, images), given)
    if agreed.problem:
        raise InputError(
            f"the exported {format} file does not give what JAX gives ({agreed.problem}); nothing "
            "is written. Report it with the run's config."
        )
    report, speed = None, {}
    if precision != "float32":
        assert data is not None, precision
        report = _lower_precision(path, precision, predictor, data, split)
    if format != "stablehlo":
        speed = _ms_per_slice(predictor, path, precision, images)
    measured = {
        "ms_per_slice": speed,
        "precision_report": report and report.to_dict(),
        "checkpoint_files": checkpoint_files(workdir),
    }
    if format == "triton":
        from drenet_jax.exporting.triton import write_config

        folder = folder / TRITON_MODEL
        write_config(folder, path, meta.labels, max_batch_size=_PERSONS * meta.ct.slices_per_person)
    write_description(folder, path, description | measured)
    return Export(path, agreed, speed, report)


def _lower_precision(
    path: Path, precision: str, predictor: Predictor, data: PreparedData, split: str
) -> PrecisionReport:
    """Compares a lower precision with float32; for int8 the file is replaced."""
    # Here, because onnxruntime is an extra.
    from drenet_jax.exporting.onnx_predictor import load_scorer

    float32 = path
    if precision not in BFLOAT16:
        from drenet_jax.exporting.quantization import quantize

        float32 = path.rename(path.with_name("float32.onnx"))
        batches = calibration_batches(data, predictor.meta.config.data.fill)
        quantize(float32, path, batches, keep_boxes=precision == "int8_crops")
    report = agreement.compare_precisions(
        load_scorer(float32, "float32"),
        load_scorer(path, precision),
        predictor.meta,
        predictor.rule,
        data,
        split,
    )
    if float32 != path:
        float32.unlink()
    return report


def calibration_batches(data: PreparedData, fill: str) -> Iterator[np.ndarray]:
    """Training slices, evenly from all persons, by which activations get their ranges."""
    # Here, because a prediction that exports its model should not load TensorFlow.
    from drenet_jax.data.batches import split_batches

    n = data.n_slices["train"]
    taken = set(np.linspace(0, n - 1, min(n, _CALIBRATION_SLICES)).astype(int).tolist())
    start = 0
    for batch in split_batches(data, "train", batch_size=_CALIBRATION_BATCH, fill=fill):
        for image in batch["image"]:
            # One at a time: some methods of calibration want batches of one size.
            if start in taken:
                yield image[None]
            start += 1


def _ms_per_slice(
    predictor: Predictor, path: Path, precision: str, images: np.ndarray
) -> dict[str, float]:
    """Both runtimes in turn, the fastest of some rounds of one batch."""
    from drenet_jax.exporting.onnx_predictor import load_scorer

    scorer = load_scorer(path, precision)
    images = images[: scorer.batch_size]
    runs = {
        "jax": lambda: predictor.scorer(predictor.variables, images),
        "exported": lambda: scorer(None, images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_SPEED_ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: round(min(of) * 1e3 / len(images), 2) for name, of in seconds.items()}


def _expected(
    predictor: Predictor, config: ConfigDict, variables: Mapping[str, Any], images: np.ndarray
) -> dict[str, np.ndarray]:
    """What JAX gives in float32."""
    if predictor.meta.config.model.dtype == config.model.dtype:
        return predictor.scorer(predictor.variables, images)
    model = build_model(config, len(predictor.meta.labels))
    forward = jax.jit(make_forward(model, heat_maps=True))
    return {
        name: np.asarray(value) for name, value in forward(variables, jnp.asarray(images)).items()
    }


def _write_onnx(
    path: Path,
    model: Model,
    variables: Mapping[str, Any],
    metadata: Mapping[str, str],
    images: np.ndarray,
    heat_maps: bool,
) -> dict[str, np.ndarray]:
    """Writes the file; returns what ONNX Runtime gives."""
    # Here, because onnx and onnxruntime are an extra.
    from drenet_jax.exporting import onnx_model
    from drenet_jax.exporting.onnx_scorer import OnnxScorer

    exported = onnx_model.to_onnx(model, variables, metadata, heat_maps=heat_maps)
    path.write_bytes(exported.SerializeToString())
    return OnnxScorer(path)(None, images)


def check_slices(ct: CtSettings) -> np.ndarray:
    """uint8 [N, S, S]: lung crops of chest phantoms of all labels."""
    crops = []
    for label in LABELS:
        phantom = make_phantom(label, 1, _PHANTOM_SIZE_PX, "A")
        n = len(phantom.volume_hu)
        for i in np.linspace(0.35 * n, 0.65 * n, _SLICES_PER_LABEL).astype(int):
            mask = phantom.lung_mask[i]
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            grey = window(phantom.volume_hu[i], ct.window_level_hu, ct.window_width_hu) * mask
            crop = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            crops.append(cv2.resize(crop, (ct.image_size_px,) * 2, interpolation=cv2.INTER_LINEAR))
    return np.stack(crops)


def _description(
    predictor: Predictor,
    workdir: str | os.PathLike[str],
    rule: DecisionRule,
    precision: str,
    heat_maps: bool,
) -> dict:
    meta: Meta = predictor.meta
    step = predictor.identity["step"]
    with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
        temperature = checkpoints.metrics(step).get("temperature")
        validation = checkpoints.validation(step)
    return describe(
        checkpoint=meta.to_dict(),
        step=step,
        decision=rule.to_dict(),
        temperature=temperature,
        validation=validation,
        precision=precision,
        heat_maps=heat_maps,
    )


def _run_stablehlo(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the file gives in a process that does not know this package.

    Raises:
      InputError: it cannot be run.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, results = Path(scratch) / "images.npy", Path(scratch) / "results.npz"
        np.save(given, images)
        process = subprocess.run(
            [sys.executable, "-c", _RUN_STABLEHLO, path, given, results],
            capture_output=True,
            text=True,
            cwd=scratch,
            check=False,
        )
        if process.returncode != 0:
            last = process.stderr.strip().splitlines()[-1:]
            raise InputError(
                f"the exported StableHLO cannot be run ({''.join(last)[:200]}); nothing is written."
            )
        with np.load(io.BytesIO(results.read_bytes())) as arrays:
            return dict(arrays)
