"""What `predict` takes for one person, from the shell to the report, cold and warm."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from benchmarks.ct import phantom_series
from benchmarks.model import CLASSES
from benchmarks.timing import Row, Timing, interleaved_timings, plain_row, ratio_row
from drenet_jax import parallel
from drenet_jax.ct.settings import CtSettings
from drenet_jax.exporting.runtimes import EXPORTED, missing_package
from drenet_jax.models.build import build_model, init_variables
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.models.checkpoints import save_converted
from drenet_jax.models.slice_scorer import SliceScorer
from drenet_jax.version import __version__

SUITE = "predict"
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "onnx", "onnxruntime")

_BATCHES = (1, 2, 4, 8)


def run(
    config: ml_collections.ConfigDict,
    settings: CtSettings,
    series: Sequence[Path],
    rounds: int,
    seed: int,
    device: str,
) -> tuple[list[Row], list[str]]:
    """`predict` in separate processes, compared with the forward passes of the same slices.

    Args:
      config: of the model, whose weights are random.
      settings: of preprocessing.
      series: the first is the person; none: a phantom whose picked slices are all kept.
      rounds: how often the warm call is measured; the cold one is measured once.
      seed: of the phantom.
      device: "cpu" or "gpu".
    """
    with tempfile.TemporaryDirectory(prefix="drenet_jax_") as name:
        folder = Path(name)
        person = series[0] if series else _kept_phantom(folder, settings, seed)
        model = build_model(config, CLASSES)
        variables = init_variables(model, 0)
        ct = dataclasses.replace(settings, image_size_px=config.model.image_size_px)
        labels = tuple(f"class {i}" for i in range(CLASSES))
        save_converted(
            folder / "run",
            jax.tree.map(np.asarray, variables),
            Meta(config, labels, ct, 0, "benchmark", __version__),
        )
        cold = _predict(person, folder, "jax")
        result = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
        n = result["person"]["n_slices"]
        scorer = SliceScorer(model, parallel.best_batch_size(n), heat_maps=True)
        replicated = parallel.replicate(variables)
        images = np.random.default_rng(0).integers(
            0, 256, (n, *(config.model.image_size_px,) * 2), np.uint8
        )
        times = interleaved_timings(
            {
                "predict": lambda: _predict(person, folder, "jax"),
                "passes": lambda: scorer(replicated, images),
            },
            rounds,
        )
        of_onnx = _onnx_rows(person, folder, images, rounds) if device == "cpu" else []
    rows = [
        ratio_row(
            SUITE,
            f"predict of {n} slices, warm cache of programs",
            times["predict"],
            "its forward passes",
            times["passes"],
            1.5,
        ),
        plain_row(SUITE, "the same, cold: programs compiled anew", Timing((cold,))),
        plain_row(
            SUITE,
            "all but the forward passes, warm",
            Timing(
                tuple(
                    a - b
                    for a, b in zip(times["predict"].seconds, times["passes"].seconds, strict=True)
                )
            ),
        ),
    ]
    return [*rows, *of_onnx, *_batch_rows(model, replicated, images, rounds)], []


def _onnx_rows(person: Path, folder: Path, images: np.ndarray, rounds: int) -> list[Row]:
    """The same with ONNX Runtime, where it is installed."""
    if missing_package():
        return []
    from drenet_jax.exporting.onnx_scorer import OnnxScorer

    first = _predict(person, folder, "onnx")
    scorer = OnnxScorer(folder / "run" / EXPORTED / "onnx" / "model.onnx")
    times = interleaved_timings(
        {
            "predict": lambda: _predict(person, folder, "onnx"),
            "passes": lambda: scorer(None, images),
        },
        rounds,
    )
    rest = zip(times["predict"].seconds, times["passes"].seconds, strict=True)
    return [
        ratio_row(
            SUITE,
            f"predict of {len(images)} slices with ONNX Runtime",
            times["predict"],
            "its forward passes",
            times["passes"],
            1.5,
        ),
        plain_row(SUITE, "the same, first call: the model is exported", Timing((first,))),
        plain_row(
            SUITE,
            "all but the forward passes with ONNX Runtime",
            Timing(tuple(whole - passes for whole, passes in rest)),
        ),
    ]


def _batch_rows(model, variables: dict, images: np.ndarray, rounds: int) -> list[Row]:
    """What a slice costs in forward passes of several sizes: where padding begins to cost."""
    scorers = {batch: SliceScorer(model, batch, heat_maps=True) for batch in _BATCHES}
    repeated = {
        batch: np.resize(images, (scorer.batch_size, *images.shape[1:]))
        for batch, scorer in scorers.items()
    }
    times = interleaved_timings(
        {
            str(batch): lambda batch=batch: scorers[batch](variables, repeated[batch])
            for batch in _BATCHES
        },
        rounds,
    )
    return [
        plain_row(
            SUITE,
            f"a slice in a forward pass of {batch}",
            times[str(batch)].per(len(repeated[batch])),
        )
        for batch in _BATCHES
    ]


def _kept_phantom(folder: Path, settings: CtSettings, seed: int) -> Path:
    """A phantom of which every sampled slice is kept, as the target assumes."""
    # More lung than required, since segmented lungs are a little smaller than the drawn ones.
    return phantom_series(folder / "phantom", seed, 1.2 * settings.min_area_share)


def _predict(person: Path, folder: Path, runtime: str) -> float:
    """Seconds of a call; the folder keeps the compiled programs between calls."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    start = time.perf_counter()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "drenet_jax.predict",
            f"--runtime={runtime}",
            f"--workdir={folder / 'run'}",
            f"--input={person}",
            f"--out={folder / 'out'}",
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "programs")},
    )
    return time.perf_counter() - start
