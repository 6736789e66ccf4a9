"""A prediction in every runtime: XLA, ONNX Runtime, OpenVINO and the published model in PyTorch."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np

from benchmarks import published
from benchmarks.model import CLASSES, random_batch
from benchmarks.timing import Row, Timing, faster_row, interleaved_timings, plain_row, ratio_row
from drenet_jax import parallel
from drenet_jax.errors import InputError
from drenet_jax.exporting import agreement
from drenet_jax.exporting.graph_scorer import GraphScorer
from drenet_jax.exporting.onnx_predictor import load_scorer
from drenet_jax.exporting.precision import BFLOAT16, PRECISIONS
from drenet_jax.exporting.runtimes import require_onnx
from drenet_jax.models.build import build_model, init_variables
from drenet_jax.models.slice_scorer import SliceScorer

SUITE = "runtime"
PACKAGES = ("onnx", "onnxruntime", "openvino", "torch")

# Of the issue of faster predictions on CPUs: over XLA, and over the published model.
_AIM_OVER_XLA = 1.4
_AIM_OVER_PUBLISHED = 2.0


def run(config: ml_collections.ConfigDict, batch: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The rows about runtimes: predictions without heat maps, which the published model lacks.

    Args:
      config: of a DRENet in float32; the weights are random.
      batch: slices in a forward pass.
      rounds: how often everything is measured.

    Returns:
      rows, and sentences about what could not be measured and how the results differ.

    Raises:
      InputError: ONNX is not installed, or a runtime in float32 does not give what JAX gives.
    """
    require_onnx(f"--suite={SUITE}")
    notes: list[str] = []
    model = build_model(config, CLASSES)
    variables = init_variables(model, 0)
    replicated = parallel.replicate(variables)
    scorer = SliceScorer(model, batch, heat_maps=False)
    images = random_batch(config, batch)[1]
    expected = scorer(replicated, images)

    def by_xla() -> object:
        return scorer(replicated, images)

    workloads: dict[str, Callable[[], object]] = {"XLA": by_xla, "XLA again": by_xla}
    with tempfile.TemporaryDirectory() as folder:
        for name, exported in _exported(config, variables, images, Path(folder), notes).items():
            given = exported(None, images)
            agreed = agreement.compare(expected, given)
            if "float32" in name and agreed.problem:
                raise InputError(f"{name} does not give what JAX gives ({agreed.problem}).")
            same = (expected["boxes"] == given["boxes"]).all(axis=2).mean()
            # Not of probabilities: with random weights they are 0 and 1.
            difference = np.abs(expected["logits"] - given["logits"]).max()
            share = difference / np.abs(expected["logits"]).max()
            notes.append(
                f"{name}: {same:.0%} of the boxes are XLA's, logits within {share:.1g} of the "
                "largest"
            )
            workloads[name] = lambda exported=exported: exported(None, images)
        layouts: list[str] = []
        if not published.available("cpu"):
            notes.append("no published model to compare with: torch, or tests/, is missing")
        elif config.model.image_size_px < published.IMAGE_SIZE_PX:
            notes.append(
                "no published model to compare with: its boxes need slices of "
                f"{published.IMAGE_SIZE_PX} pixels"
            )
        else:
            of_published = published.workloads(config, batch, "cpu", train=False)
            layouts = list(of_published)
            workloads |= of_published
        times = {
            name: timing.per(batch)
            for name, timing in interleaved_timings(workloads, rounds).items()
        }
    return _rows(times, layouts, f"per slice (batch {batch}, without heat maps)"), notes


def _exported(
    config: ml_collections.ConfigDict,
    variables: dict,
    images: np.ndarray,
    folder: Path,
    notes: list[str],
) -> dict[str, GraphScorer]:
    """The scorers of the exported model, by runtime and precision."""
    from drenet_jax.exporting.onnx_model import to_onnx
    from drenet_jax.exporting.quantization import quantize

    host_variables = jax.tree.map(np.asarray, variables)
    float32 = folder / "float32.onnx"
    exported = to_onnx(
        build_model(config, CLASSES, platform="gpu"), host_variables, {}, heat_maps=False
    )
    float32.write_bytes(exported.SerializeToString())
    has_openvino = importlib.util.find_spec("openvino") is not None
    if not has_openvino:
        notes.append("no OpenVINO to compare with: it is not installed")
    scorers: dict[str, GraphScorer] = {}
    for precision in PRECISIONS:
        if precision in BFLOAT16:
            if has_openvino:
                scorers[f"OpenVINO {precision}"] = load_scorer(float32, precision)
            continue
        file = folder / f"{precision}.onnx"
        if precision != "float32":
            quantize(
                float32,
                file,
                (image[None] for image in images),
                keep_boxes=precision == "int8_crops",
            )
        scorers[f"ONNX Runtime {precision}"] = load_scorer(file, precision)
        if precision == "float32" and has_openvino:
            from drenet_jax.exporting.openvino_scorer import OpenVinoScorer

            scorers["OpenVINO float32"] = OpenVinoScorer(float32)
    for scorer in scorers.values():
        scorer.batch_size = len(images)
    return scorers


def _rows(times: dict[str, Timing], layouts: list[str], per: str) -> list[Row]:
    xla = times["XLA"]
    rows = [plain_row(SUITE, f"XLA, {per}", xla)]
    # How far two measurements of the same work are apart.
    rows.append(ratio_row(SUITE, "XLA again", times["XLA again"], "XLA", xla, 1.05))
    best = min(layouts, key=lambda name: times[name].median) if layouts else None
    for name, timing in times.items():
        if name in ("XLA", "XLA again"):
            continue
        if name in layouts:
            rows.append(plain_row(SUITE, f"{name}, the published model", timing))
            continue
        rows.append(faster_row(SUITE, name, timing, "XLA", xla, _AIM_OVER_XLA))
        if best is not None:
            rows.append(faster_row(SUITE, name, timing, best, times[best], _AIM_OVER_PUBLISHED))
    if best is not None:
        rows.append(faster_row(SUITE, "XLA", xla, best, times[best], _AIM_OVER_PUBLISHED))
    return rows
