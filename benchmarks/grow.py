"""How the cost grows with the image, the crops, the batch and the persons, and a plot of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
import numpy as np
from matplotlib.ticker import NullLocator

from benchmarks.model import TrainingStep, prediction
from benchmarks.timing import Row, interleaved_timings, plain_row
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.evaluation_files import evaluation_metrics
from drenet_jax.evaluation.plots import new_figure, save
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions

SUITE = "grow"

SIZES_PX = (224, 320, 448, 640, 896)
KS = (1, 2, 3, 4, 6, 9, 12)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PERSONS = (10, 30, 100, 300, 1000, 3000, 10000)

# A step of more takes more memory than a laptop has; larger batches are in the suite of memory.
_LARGEST_STEP = 4
_SLICES_PER_PERSON = 8

# curve -> (what grows, seconds) at each point.
Curves = dict[str, list[tuple[float, float]]]


def run(
    axes: Sequence[str], config: ml_collections.ConfigDict, rounds: int, plots: Path | None
) -> tuple[list[Row], list[str]]:
    """Measures along each axis, fits exponents, and draws.

    Args:
      axes: size, k, batch, persons.
      config: of a DRENet.
      rounds: how often everything is measured.
      plots: an existing folder for `<axis>.png`, or None.

    Returns:
      rows, and a sentence on the exponent of each curve.
    """
    measures: dict[str, tuple[str, Callable]] = {
        "size": ("image size, pixels", _sizes),
        "k": ("crops a slice", _crops),
        "batch": ("slices in a batch", _batches),
        "persons": ("persons", _persons),
    }
    rows, notes = [], []
    for axis in axes:
        title, measure = measures[axis]
        new_rows, curves = measure(config, rounds)
        rows += new_rows
        for curve, points in curves.items():
            grows = exponent(points)
            notes.append(
                f"{curve}: time grows as ({title})^{grows:.2f} from {points[-2][0]:g} to "
                f"{points[-1][0]:g}, and is {points[-1][1] / points[0][1]:.1f} times as long at "
                f"{points[-1][0]:g} as at {points[0][0]:g}."
            )
        if plots is not None:
            _draw(curves, title, plots / f"{axis}.png")
    return rows, notes


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Of the growth between the last two points, where fixed costs weigh least."""
    (a, time_a), (b, time_b) = points[-2:]
    return float(np.log(time_b / time_a) / np.log(b / a))


def _with(config: ml_collections.ConfigDict, **fields) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.model.update(fields)
    return config


def _measure(
    workloads: dict[str, dict[float, Callable[[], Callable]]],
    per: Callable[[float], float],
    rounds: int,
) -> tuple[list[Row], Curves]:
    """curve -> point -> what makes its work; one at a time, for their memory."""
    rows, curves = [], {}
    for curve, points in workloads.items():
        curves[curve] = []
        for point, make in points.items():
            (timing,) = interleaved_timings({"work": make()}, rounds).values()
            timing = timing.per(per(point))
            rows.append(plain_row(SUITE, f"{curve} at {point:g}", timing))
            curves[curve].append((point, timing.median))
    return rows, curves


def _sizes(config, rounds):
    # Boxes and crops grow with the image: the same network, more pixels.
    def of(size: int) -> ml_collections.ConfigDict:
        scale = size / config.model.image_size_px
        return _with(
            config,
            image_size_px=size,
            crop_size_px=round(config.model.crop_size_px * scale),
            anchor_sizes_px=tuple(
                round(size_px * scale) for size_px in config.model.anchor_sizes_px
            ),
        )

    return _measure(
        {
            "inference of a slice, by image size": {
                size: lambda size=size: prediction(of(size), 1, heat_maps=False)
                for size in SIZES_PX
            },
            "training step of a slice, by image size": {
                size: lambda size=size: TrainingStep(of(size), 1) for size in SIZES_PX
            },
        },
        lambda size: 1,
        rounds,
    )


def _crops(config, rounds):
    # So many boxes do not fit without overlap.
    def of(k: int) -> ml_collections.ConfigDict:
        m = max(k, *config.model.train_proposals)
        return _with(config, top_k=(k,), train_proposals=(m,), nms_iou=0.9)

    return _measure(
        {
            "inference of a slice, by K": {
                k: lambda k=k: prediction(of(k), 1, heat_maps=False) for k in KS
            }
        },
        lambda k: 1,
        rounds,
    )


def _batches(config, rounds):
    return _measure(
        {
            "inference, a slice, by batch": {
                batch: lambda batch=batch: prediction(config, batch, heat_maps=False)
                for batch in BATCHES
            },
            "training step, a slice, by batch": {
                batch: lambda batch=batch: TrainingStep(config, batch)
                for batch in BATCHES
                if batch <= _LARGEST_STEP
            },
        },
        lambda batch: batch,
        rounds,
    )


def _persons(config, rounds):
    settings = MetricSettings.from_config(config.evaluation)

    def of(persons: int) -> Callable[[], object]:
        slices = _simulated(persons)

        def work() -> None:
            persons = person_predictions(slices)
            evaluation_metrics(slices, persons, split="test", positive=0, settings=settings)

        return work

    return _measure(
        {
            "figures and their intervals, by persons": {
                persons: lambda persons=persons: of(persons) for persons in PERSONS
            }
        },
        lambda persons: 1,
        rounds,
    )


def _simulated(persons: int) -> SlicePredictions:
    """Slices of so many persons, with the right class somewhat more likely."""
    rng = np.random.default_rng(0)
    n = persons * _SLICES_PER_PERSON
    label = np.repeat(np.arange(persons) % 3, _SLICES_PER_PERSON)
    logits = rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[label]
    logits += np.repeat(rng.normal(size=(persons, 3)), _SLICES_PER_PERSON, axis=0)
    chances = np.exp(logits)
    names = np.array([f"p{i:05d}" for i in range(persons)])
    return SlicePredictions(
        labels=("covid-19", "bacterial", "healthy"),
        patient_id=np.repeat(names, _SLICES_PER_PERSON),
        slice_name=np.array([f"{i}.dcm" for i in range(n)]),
        slice_index=np.tile(np.arange(_SLICES_PER_PERSON), persons),
        site=np.full(n, ""),
        label=label,
        probabilities=chances / chances.sum(axis=1, keepdims=True),
    )


def _draw(curves: Curves, title: str, path: Path) -> None:
    figure, (ax,) = new_figure(5, 3.5)
    for curve, points in curves.items():
        x, seconds = zip(*points, strict=True)
        ax.plot(x, seconds, "o-", label=curve)
    ax.set(xscale="log", yscale="log", xlabel=title, ylabel="seconds")
    measured = sorted({x for points in curves.values() for x, _ in points})
    ax.set_xticks(measured, [f"{x:g}" for x in measured], minor=False)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:g}")
    # Where decades are few, there would be hardly a number on the axis.
    ax.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "235" else "")
    ax.grid(True, which="both", alpha=0.3)
    ax.legend(fontsize="small")
    save(figure, path)
