"""The plots of a comparison: all runs' ROC curves (Fig. 2A) and confusion matrices (Fig. 2B, 4)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from drenet_jax.evaluation import plotting
from drenet_jax.evaluation.compared_runs import ComparedRun

# The corner of few false positives that is shown enlarged. Of 50 healthy persons it holds ten.
_CORNER = 0.2

_MOST_COLUMNS = 4


def roc_figure(path: str | os.PathLike, runs: Sequence[ComparedRun], result: Mapping) -> None:
    """Writes the persons' ROC curves, whole and, beside, the corner of few false positives.

    Args:
      path: the PNG file to write.
      runs: to be drawn.
      result: what compare.json holds of them.
    """
    figure, (whole, corner) = plotting.new_figure(10.8, 5.4, columns=2)
    plotting.roc_axes(whole, f"{result['positive']} against the rest, persons")
    plotting.roc_axes(corner, "the corner of few false positives")
    lowest = 1.0
    for number, (run, told) in enumerate(zip(runs, result["runs"], strict=True)):
        auc = told["person"]["auc"]
        # Thinner from one to the next, so that curves that lie on each other are all seen.
        width = 3 - 1.6 * number / (len(runs) - 1)
        line = {**plotting.style(number), "linewidth": width}
        plotting.roc_curve(whole, run.persons, run.positive, run.name, auc, line)
        if auc["value"] is None:
            continue
        plotting.roc_curve(corner, run.persons, run.positive, run.name, auc, line, clip=True)
        is_positive = run.persons.label == run.positive
        score = run.persons.probabilities[:, run.positive]
        # Where the curve leaves the left edge.
        lowest = min(lowest, float(np.mean(score[is_positive] > score[~is_positive].max())))
    plotting.legend(whole)
    low = max(0.0, math.floor(10 * (lowest - 0.05)) / 10)
    corner.set(xlim=(-0.02 * _CORNER, _CORNER), ylim=(low, low + 1.02 * (1 - low)), aspect="auto")
    plotting.save(figure, path)


def confusion_figure(path: str | os.PathLike, runs: Sequence[ComparedRun]) -> None:
    """Writes each run's confusion matrix of persons: counts, and shares of the true label."""
    columns = min(len(runs), _MOST_COLUMNS)
    rows = -(-len(runs) // columns)
    size = 1.6 + 0.9 * len(runs[0].slices.labels)
    figure, axes = plotting.new_figure(
        columns * (size + 0.5), rows * (size + 0.6), rows=rows, columns=columns
    )
    for ax in axes[len(runs) :]:
        ax.set_axis_off()
    threshold = runs[0].settings.threshold
    for ax, run in zip(axes, runs, strict=False):
        plotting.confusion_axes(ax, run.persons, run.positive, threshold, run.name)
    plotting.save(figure, path)
