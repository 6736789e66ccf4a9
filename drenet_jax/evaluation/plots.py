"""Plots of an evaluation: ROC curves, confusion matrices, calibration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn import metrics as sklearn_metrics

from drenet_jax.evaluation.calibration import reliability
from drenet_jax.evaluation.decisions import confusion_counts
from drenet_jax.evaluation.metrics import of_label
from drenet_jax.evaluation.predictions import (
    PersonPredictions,
    Predictions,
    SlicePredictions,
)

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles tell them apart too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PERSON_COLOUR, SLICE_COLOUR = COLOURS[:2]
LINE_STYLES = ("-", "--", "-.", ":")
GUIDE: dict[str, Any] = {"color": "0.6", "linewidth": 1, "linestyle": ":"}

_DOTS_PER_INCH = 150

_MOST_COLUMNS = 4


def new_figure(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    height_ratios: Sequence[float] | None = None,
    sharex: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` × `height` inches and its axes, [rows * columns]."""
    # Not by pyplot, which would look for a screen and keep every figure alive.
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=sharex,
        gridspec_kw={"height_ratios": height_ratios} if height_ratios else None,
    )
    return figure, axes.ravel()


def save(figure: Figure, path: str | os.PathLike) -> None:
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.1)


def plain(text: str) -> str:
    """`text` escaped for Matplotlib, in which a pair of dollar signs starts a formula."""
    return text.replace("$", r"\$")


def legend(ax: Axes) -> None:
    ax.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.9, edgecolor="0.85")


def style(number: int) -> dict[str, str]:
    """Colour and line of the curve with this number, from 0."""
    # The colours and the line styles repeat after different numbers: a pair comes again after 12.
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINE_STYLES[number % len(LINE_STYLES)],
    }


def roc_axes(ax: Axes, title: str) -> None:
    ax.plot([0, 1], [0, 1], **GUIDE)
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
        xlabel="1 − specificity",
        ylabel="recall (sensitivity)",
        title=plain(title),
    )
    ax.grid(color="0.92")


def roc_curve(
    ax: Axes,
    predictions: Predictions,
    positive: int,
    name: str,
    auc: Mapping,
    line: Mapping[str, Any],
    *,
    clip: bool = False,
) -> None:
    """Draws one curve; where there is none, the legend says why.

    Args:
      ax: where.
      predictions: of slices or persons.
      positive: the index of the positive class.
      name: for the legend.
      auc: the metric, for the legend.
      line: colour, style and, if wanted, width.
      clip: whether to cut the curve off at the axes, which may show a corner only.
    """
    if auc["value"] is None:
        ax.plot([], [], label=plain(f"{name}: {auc['why']}"), **line)
        return
    false_positive, recall, _ = sklearn_metrics.roc_curve(
        predictions.label == positive, predictions.probabilities[:, positive]
    )
    text = f"{name}: AUC {auc['value']:.3f}"
    if auc["low"] is not None:
        text += f" ({auc['low']:.3f}–{auc['high']:.3f})"
    ax.plot(false_positive, recall, label=plain(text), clip_on=clip, **{"linewidth": 2, **line})


def confusion_axes(
    ax: Axes,
    predictions: Predictions,
    positive: int,
    threshold: float,
    title: str,
) -> None:
    """Draws a confusion matrix: counts, and shares of the true label."""
    labels = [plain(name) for name in predictions.labels]
    counts = confusion_counts(predictions, positive, threshold)
    of_truth = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, of_truth, out=np.zeros(counts.shape), where=of_truth > 0)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        percent = f"\n{100 * share[row, column]:.0f}%" if of_truth[row, 0] else ""
        ax.text(
            column,
            row,
            f"{counts[row, column]}{percent}",
            ha="center",
            va="center",
            color="white" if share[row, column] > 0.55 else "black",
        )
    ax.set_xticks(range(len(labels)), labels, rotation=20, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(labels)), labels)
    ax.set(xlabel="predicted", ylabel="true", title=plain(title))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


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
    figure, axes = new_figure(5.2 * (1 + many), 5.2, columns=1 + many)
    roc_axes(axes[0], f"{metrics['positive']} against the rest")
    curves: tuple[tuple[Predictions, str, str], ...] = (
        (persons, "person", "patients"),
        (slices, "image", "slices"),
    )
    for i, (predictions, level, name) in enumerate(curves):
        roc_curve(axes[0], predictions, positive, name, metrics[level]["auc"], style(i))
    legend(axes[0])
    if many:
        roc_axes(axes[1], "each label against the rest, patients")
        for i, label in enumerate(labels):
            auc = metrics["person"][of_label("auc", label)]
            roc_curve(axes[1], persons, i, label, auc, style(i))
        legend(axes[1])
    save(figure, path)


def confusion_figure(
    path: str | os.PathLike,
    panels: Sequence[tuple[str, Predictions]],
    positive: int,
    threshold: float,
) -> None:
    """Writes confusion matrices: counts, and shares of the true label.

    The decision is `decisions.predicted_labels`.

    Args:
      path: the PNG file to write.
      panels: title and predictions of each.
      positive: the index of the positive class.
      threshold: of its probability.
    """
    columns = min(len(panels), _MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    size = 1.6 + 0.9 * len(panels[0][1].labels)
    figure, axes = new_figure(
        columns * (size + 0.6), rows * (size + 0.6), rows=rows, columns=columns
    )
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (title, predictions) in zip(axes, panels, strict=False):
        confusion_axes(ax, predictions, positive, threshold, title)
    save(figure, path)


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
    figure, axes = new_figure(5.2 * n, 6.6, rows=2, columns=n, height_ratios=(3, 1), sharex=True)
    for column, (title, slices, persons) in enumerate(versions):
        top, bottom = axes[column], axes[n + column]
        _reliability_axes(top, bottom, slices, persons, positive, bins)
        name = plain(persons.labels[positive])
        top.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel=f"share that is {name}")
        top.set_title(plain(title), pad=58 if len(persons) else 22)
        bottom.set(xlabel=f"predicted probability of {name}", ylabel="share of cases")
        for ax in (top, bottom):
            ax.grid(color="0.92")
        # Above the axes: a point may lie anywhere within.
        top.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, frameon=False)
    save(figure, path)


def _reliability_axes(
    top: Axes,
    bottom: Axes,
    slices: SlicePredictions,
    persons: PersonPredictions,
    positive: int,
    bins: int,
) -> None:
    top.plot([0, 1], [0, 1], label="perfect", **GUIDE)
    for predictions, level, colour, style, marker in (
        (persons, "patients", PERSON_COLOUR, "-", "o"),
        (slices, "slices", SLICE_COLOUR, "--", "s"),
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
            linestyle="" if level == "patients" else style,
            marker=marker,
            markersize=5,
            label=f"{level}, Brier score {np.mean((score - truth) ** 2):.3f}",
        )
        if level == "patients":
            intervals = [
                binomtest(k, total).proportion_ci(method="wilson")
                for k, total in zip(np.rint(share * n).astype(int), n, strict=True)
            ]
            low, high = zip(*intervals, strict=True)
            top.vlines(mean, low, high, color=colour, alpha=0.5, linewidth=1.5)
        bottom.hist(
            score,
            bins=np.linspace(0, 1, bins + 1).tolist(),
            weights=np.full(len(score), 1 / len(score)),
            color=colour,
            linestyle=style,
            histtype="step",
            linewidth=1.5,
        )
