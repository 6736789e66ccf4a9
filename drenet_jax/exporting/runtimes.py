"""Which runtime scores the slices: JAX, or ONNX Runtime on a graph exported once for each run.

Nothing here imports JAX unless it is needed: with an exported graph, a prediction starts without.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from drenet_jax.errors import InputError
from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.exporting.description import read_description
from drenet_jax.output_files import new_folder

RUNTIMES = ("auto", "jax", "onnx")
# In the run's folder.
EXPORTED = "exported"

_SPEED_FILE = "speed.json"
# Rounds of one batch each, of which the fastest counts.
_ROUNDS = 2
# With one of these, JAX may use another device than the CPU.
_ACCELERATOR_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "libtpu")

_log = logging.getLogger(__name__)


def load_predictor(
    workdir: str | os.PathLike[str],
    *,
    runtime: str = "auto",
    calibrated: bool = False,
    threshold: float | None = None,
    aggregate: str | None = None,
    prepare_jax: Callable[[], None] = lambda: None,
) -> Predictor:
    """The best checkpoint of `workdir`, in a runtime.

    For ONNX Runtime the model is exported into `WORKDIR/exported` at the first call, which checks
    the graph against JAX, and again after the checkpoints change.

    Args:
      workdir: of the run.
      runtime: `jax`; `onnx`, on the CPU; or `auto`: ONNX Runtime where it is installed, JAX would
        use the CPU, the model is in float32 and the graph was faster when it was exported; else
        JAX.
      calibrated, threshold, aggregate: as `Predictor.load`.
      prepare_jax: called before JAX is used.

    Raises:
      InputError: as `Predictor.load`; or `onnx` is named and not installed, or the model cannot be
        exported.
    """
    workdir = Path(workdir)

    def with_jax() -> Predictor:
        prepare_jax()
        return Predictor.load(
            workdir, calibrated=calibrated, threshold=threshold, aggregate=aggregate
        )

    if runtime == "jax" or (runtime == "auto" and not _may_use_onnx()):
        return with_jax()
    require_onnx("--runtime=onnx")
    folder = workdir / EXPORTED / f"onnx-{_fingerprint(workdir)}"
    exported = _read(folder)
    predictor = None
    if exported is None:
        predictor = with_jax()
        if runtime == "auto" and not _fits_auto(predictor):
            return predictor
        try:
            _export(predictor, workdir, folder)
        except InputError as error:
            if runtime == "onnx":
                raise
            _log.warning("JAX is used: %s", error)
            return predictor
        exported = read_description(folder)
    if runtime == "auto" and not _is_faster(folder):
        return predictor or with_jax()
    from drenet_jax.exporting.onnx_predictor import make_predictor

    return make_predictor(
        *exported,
        workdir=workdir,
        calibrated=calibrated,
        threshold=threshold,
        aggregate=aggregate,
    )


def _read(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """An export that is there and whole; one that is damaged is removed."""
    if folder.is_dir():
        try:
            return read_description(folder)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
    return None


def require_onnx(flag: str) -> None:
    """Raises InputError unless ONNX and ONNX Runtime are installed."""
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"{flag} needs {name}, which is not installed; install the extra: "
                "pip install 'drenet_jax[onnx]'."
            )


def _may_use_onnx() -> bool:
    """Whether ONNX Runtime is installed and JAX would use the CPU, without importing JAX."""
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
        return False
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return True
    return not any(importlib.util.find_spec(name) for name in _ACCELERATOR_PLUGINS)


def _fits_auto(predictor: Predictor) -> bool:
    import jax

    return (
        jax.process_count() == 1
        and jax.default_backend() == "cpu"
        # Roundings of bfloat16 would change, and with them boxes.
        and predictor.meta.config.model.dtype == "float32"
        # Drawn anew for each slice.
        and predictor.meta.config.model.get("proposals") != "random"
    )


def _fingerprint(workdir: Path) -> str:
    """Of the checkpoints' files, by name, size and time, which Orbax is not needed for."""
    folder = workdir / "checkpoints"
    listing = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            listing.update(
                f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode()
            )
    return listing.hexdigest()[:16]


def _export(predictor: Predictor, workdir: Path, folder: Path) -> None:
    """Exports the model, measures it beside JAX, and removes the exports of other checkpoints."""
    from drenet_jax.exporting.exporter import check_slices, export_model
    from drenet_jax.exporting.onnx_scorer import OnnxScorer

    with new_folder(folder, flag="--workdir") as made:
        export_model(predictor, str(workdir), made, format="onnx", heat_maps=True)
        scorer = OnnxScorer(made / "model.onnx")
        images = check_slices(predictor.meta.ct)[: scorer.batch_size]
        jax_s, onnx_s = [], []
        for _ in range(_ROUNDS):
            jax_s.append(_seconds(lambda: predictor.scorer(predictor.variables, images)))
            onnx_s.append(_seconds(lambda: scorer(None, images)))
        speed = {
            "jax_ms_per_slice": round(min(jax_s) * 1e3 / len(images), 3),
            "onnx_ms_per_slice": round(min(onnx_s) * 1e3 / len(images), 3),
        }
        (made / _SPEED_FILE).write_text(json.dumps(speed) + "\n", encoding="utf-8")
    for other in folder.parent.glob("onnx-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _seconds(run: Callable[[], dict[str, np.ndarray]]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _is_faster(folder: Path) -> bool:
    try:
        speed = json.loads((folder / _SPEED_FILE).read_text(encoding="utf-8"))
        return speed["onnx_ms_per_slice"] < speed["jax_ms_per_slice"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
