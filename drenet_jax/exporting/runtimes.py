"""Which runtime scores the slices: JAX, or ONNX Runtime on a graph exported once for each run.

Nothing here imports JAX unless it is needed: with an exported graph, a prediction starts without.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drenet_jax.errors import InputError
from drenet_jax.evaluation.decisions import DecisionRule
from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.exporting.description import checkpoint_files, read_description
from drenet_jax.exporting.precision import BFLOAT16, PrecisionReport
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.output_files import new_folder
from drenet_jax.storage import stand_ins

RUNTIMES = ("auto", "jax", "onnx")
# In the run's folder.
EXPORTED = "exported"
# In that: the export that is made by itself.
_FLOAT32 = "onnx"

# A model's file and its description.
_Exported = tuple[Path, dict[str, Any]]

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
      runtime: `jax`; `onnx`, in float32 on the CPU; or `auto`: ONNX Runtime where it is installed,
        JAX would use the CPU, the run is on this machine, the model is in float32 and the graph
        was faster when it was exported; else JAX. An export of a lower precision in
        `WORKDIR/exported` is taken, too, if it is safe (`PrecisionReport.is_safe`) and faster.
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

    # Of a run in a bucket this is a copy, with which the export would go.
    is_copy = stand_ins.shown(workdir) != str(workdir)
    if runtime == "jax" or (runtime == "auto" and (is_copy or not _may_use_onnx())):
        return with_jax()
    require_onnx("--runtime=onnx")
    files = checkpoint_files(workdir)
    exported = _read(workdir / EXPORTED / _FLOAT32, files)
    predictor = None
    if exported is None:
        predictor = with_jax()
        if runtime == "auto" and not _fits_auto(predictor):
            return predictor
        try:
            exported = _export(predictor, workdir)
        except InputError as error:
            if runtime == "onnx":
                raise
            _log.warning("JAX is used: %s", error)
            return predictor
    if runtime == "auto":
        exported = min([exported, *_lower_precisions(workdir, files)], key=_ms_per_slice)
        if _ms_per_slice(exported) > exported[1]["ms_per_slice"]["jax"]:
            return predictor or with_jax()
    from drenet_jax.exporting.onnx_predictor import make_predictor

    # As in JAX, whatever --threshold and --aggregate of `export` were.
    meta = Meta.from_dict(exported[1]["checkpoint"])
    rule = DecisionRule.of(
        meta.labels, meta.config.evaluation, threshold=threshold, aggregate=aggregate
    )
    return make_predictor(*exported, workdir=workdir, calibrated=calibrated, rule=rule)


def _read(folder: Path, files: str) -> _Exported | None:
    """An export of these checkpoint files that is there and whole."""
    with contextlib.suppress(InputError):
        exported = read_description(folder)
        if exported[1]["checkpoint_files"] == files:
            return exported
    return None


def _export(predictor: Predictor, workdir: Path) -> _Exported:
    from drenet_jax.exporting.exporter import export_model

    folder = workdir / EXPORTED / _FLOAT32
    if folder.is_dir():
        shutil.rmtree(folder)  # of other checkpoints, or damaged
    # That of the run, for whoever takes the folder elsewhere.
    rule = DecisionRule.of(predictor.meta.labels, predictor.meta.config.evaluation)
    with new_folder(folder, flag="--workdir") as made:
        export_model(predictor, workdir, made, format="onnx", heat_maps=True, rule=rule)
    return read_description(folder)


def _lower_precisions(workdir: Path, files: str) -> list[_Exported]:
    """The exports of a lower precision in the run's folder that are safe."""
    found = []
    for folder in (workdir / EXPORTED).iterdir():
        if folder.name == _FLOAT32:
            continue  # read already: its checksum takes a moment
        exported = _read(folder, files)
        if exported is None or not exported[1]["heat_maps"]:
            continue
        if exported[1]["precision"] in BFLOAT16 and importlib.util.find_spec("openvino") is None:
            continue
        report = exported[1]["precision_report"]
        if report is not None and PrecisionReport.from_dict(report).is_safe:
            found.append(exported)
    return found


def _ms_per_slice(exported: _Exported) -> float:
    return exported[1]["ms_per_slice"]["exported"]


def missing_package() -> str:
    """The package of the extra `onnx` that is not installed; '' if none is missing."""
    names = ("onnx", "onnxruntime")
    return next((name for name in names if importlib.util.find_spec(name) is None), "")


def require_onnx(flag: str) -> None:
    """Raises InputError unless ONNX and ONNX Runtime are installed."""
    if name := missing_package():
        raise InputError(
            f"{flag} needs {name}, which is not installed; install the extra: "
            "pip install 'drenet_jax[onnx]'."
        )


def _may_use_onnx() -> bool:
    """Whether ONNX Runtime is installed and JAX would use the CPU, without importing JAX."""
    if missing_package():
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
