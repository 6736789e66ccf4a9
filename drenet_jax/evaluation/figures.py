"""The plots of an evaluation: ROC curves, confusion matrices, calibration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from drenet_jax.evaluation import plotting
from drenet_jax.evaluation.calibration import brier_score, reliability
from drenet_jax.evaluation.formulas import of_label
from drenet_jax.evaluation.intervals import Z_95
from drenet_jax.evaluation.persons import PersonPredictions, SlicePredictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def roc_figure(
    path: str | os.PathLike, slices: SlicePredictions, persons: PersonPredictions, metrics: Mapping
) -> None:
    """Writes the ROC curves: the positive class against the rest, of persons and of slices.

    With three or more classes a second panel has each class against the rest, of persons.

    Args:
      path: the PNG file to write.
      slices: of one split.
      persons: of the same split.
      metrics: theirs, from `evaluation_metrics`; the AUCs with their intervals go in the legends.
    """
    labels = list(persons.labels)
    positive = labels.index(metrics["positive"])
    many = len(labels) > 2
    figure, axes = plotting.new_figure(5.2 * (1 + many), 5.2, columns=1 + many)
    plotting.roc_axes(axes[0], f"{metrics['positive']} against the rest")
    for i, (predictions, level, name) in enumerate(
        ((persons, "person", "persons"), (slices, "image", "slices"))
    ):
        plotting.roc_curve(
            axes[0], predictions, positive, name, metrics[level]["auc"], plotting.style(i)
        )
    plotting.legend(axes[0])
    if many:
        plotting.roc_axes(axes[1], "each label against the rest, persons")
        for i, label in enumerate(labels):
            auc = metrics["person"][of_label("auc", label)]
            plotting.roc_curve(axes[1], persons, i, label, auc, plotting.style(i))
        plotting.legend(axes[1])
    plotting.save(figure, path)


def confusion_figure(
    path: str | os.PathLike, slices: SlicePredictions, persons: PersonPredictions, metrics: Mapping
) -> None:
    """Writes the confusion matrices of persons and of slices: counts, and shares of the true label.

    The decision is `decisions.decided`.

    Args:
      path: the PNG file to write.
      slices: of one split.
      persons: of the same split.
      metrics: theirs, from `evaluation_metrics`.
    """
    size = 1.6 + 0.9 * max(2, len(persons.labels))
    figure, axes = plotting.new_figure(2 * size + 1.4, size + 0.6, columns=2)
    positive = list(persons.labels).index(metrics["positive"])
    for ax, predictions, name in ((axes[0], persons, "persons"), (axes[1], slices, "slices")):
        plotting.confusion_axes(
            ax, predictions, positive, metrics["threshold"], f"{len(predictions)} {name}"
        )
    plotting.save(figure, path)


def calibration_figure(
    path: str | os.PathLike,
    versions: Sequence[tuple[str, SlicePredictions, PersonPredictions]],
    positive: int,
    bins: int,
) -> None:
    """Writes reliability diagrams of the positive class's probability, and its distributions.

    Cases are put in bins of equal width. A point is a bin's mean probability and its share of
    positive cases. The bars at the persons' points are Wilson's 95% intervals; slices have none,
    since slices of one person are not independent. The Brier score is the mean squared difference
    of probability and truth.

    Args:
      path: the PNG file to write.
      versions: title, slices and persons of each column, say before and after calibration.
      positive: the index of the positive class.
      bins: their number.
    """
    n = len(versions)
    figure, axes = plotting.new_figure(
        5.2 * n, 6.6, rows=2, columns=n, height_ratios=(3, 1), sharex=True
    )
    for column, (title, slices, persons) in enumerate(versions):
        top, bottom = axes[column], axes[n + column]
        _reliability_axes(top, bottom, slices, persons, positive, bins)
        name = plotting.plain(persons.labels[positive])
        top.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel=f"share that is {name}")
        top.set_title(plotting.plain(title), pad=58 if len(persons) else 22)
        bottom.set(xlabel=f"predicted probability of {name}", ylabel="share of cases")
        for ax in (top, bottom):
            ax.grid(color="0.92")
        # Above the axes: a point may lie anywhere within.
        top.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, frameon=False)
    plotting.save(figure, path)


def _reliability_axes(
    top: Axes,
    bottom: Axes,
    slices: SlicePredictions,
    persons: PersonPredictions,
    positive: int,
    bins: int,
) -> None:
    top.plot([0, 1], [0, 1], label="perfect", **plotting.GUIDE)
    for predictions, level, colour, style, marker in (
        (persons, "persons", plotting.PERSON_COLOUR, "-", "o"),
        (slices, "slices", plotting.SLICE_COLOUR, "--", "s"),
    ):
        if len(predictions) == 0:
            continue
        truth = predictions.label == positive
        score = predictions.probabilities[:, positive]
        mean, share, n = reliability(truth, score, bins)
        top.plot(
            mean,
            share,
            color=colour,
            # A line through the persons' few points would look like a course that is not there.
            linestyle="" if level == "persons" else style,
            marker=marker,
            markersize=5,
            label=f"{level}, Brier score {brier_score(truth, score):.3f}",
        )
        if level == "persons":
            low, high = wilson_interval(share, n)
            top.vlines(mean, low, high, color=colour, alpha=0.5, linewidth=1.5)
        bottom.hist(
            score,
            bins=np.linspace(0, 1, bins + 1),
            weights=np.full(len(score), 1 / len(score)),
            color=colour,
            linestyle=style,
            histtype="step",
            linewidth=1.5,
        )


def wilson_interval(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval of a share of n independent cases, elementwise: (low, high)."""
    scale = 1 + Z_95**2 / n
    centre = (share + Z_95**2 / (2 * n)) / scale
    half = Z_95 / scale * np.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    return centre - half, centre + half
