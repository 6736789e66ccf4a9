"""The plots of an evaluation: ROC curves, confusion matrices, calibration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from drenet_jax.evaluation.persons import PersonPredictions, SlicePredictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles tell them apart too.
_PERSON_COLOUR = "#0072B2"
_SLICE_COLOUR = "#D55E00"
_LABEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LINE_STYLES = ("-", "--", "-.", ":")
_GUIDE = {"color": "0.6", "linewidth": 1, "linestyle": ":"}

_DOTS_PER_INCH = 150
_CALIBRATION_BINS = 10
# Of the normal distribution, for a 95% interval.
_Z = 1.959964


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
    figure, axes = _figure(5.2 * (1 + many), 5.2, columns=1 + many)
    _roc_axes(axes[0], f"{metrics['positive']} against the rest")
    for predictions, name, colour, style in (
        (persons, "persons", _PERSON_COLOUR, "-"),
        (slices, "slices", _SLICE_COLOUR, "--"),
    ):
        _roc_curve(
            axes[0], predictions, positive, name, metrics[_level(predictions)]["auc"], colour, style
        )
    _legend(axes[0])
    if many:
        _roc_axes(axes[1], "each label against the rest, persons")
        for i, label in enumerate(labels):
            _roc_curve(
                axes[1],
                persons,
                i,
                label,
                metrics["person"][f"auc_{label}"],
                _LABEL_COLOURS[i % len(_LABEL_COLOURS)],
                _LINE_STYLES[i % len(_LINE_STYLES)],
            )
        _legend(axes[1])
    _save(figure, path)


def confusion_figure(
    path: str | os.PathLike, slices: SlicePredictions, persons: PersonPredictions, metrics: Mapping
) -> None:
    """Writes the confusion matrices of persons and of slices: counts, and shares of the true label.

    The decision is the metrics' own: with two classes the positive one from the threshold on, with
    more the most probable one.

    Args:
      path: the PNG file to write.
      slices: of one split.
      persons: of the same split.
      metrics: theirs, from `evaluation_metrics`.
    """
    size = 1.6 + 0.9 * max(2, len(persons.labels))
    figure, axes = _figure(2 * size + 1.4, size + 0.6, columns=2)
    for ax, predictions, name in ((axes[0], persons, "persons"), (axes[1], slices, "slices")):
        _confusion(ax, predictions, metrics)
        ax.set_title(f"{len(predictions)} {name}")
    _save(figure, path)


def calibration_figure(
    path: str | os.PathLike, slices: SlicePredictions, persons: PersonPredictions, metrics: Mapping
) -> None:
    """Writes the reliability diagram of the positive class's probability, and its distribution.

    Cases are put in ten bins of equal width. A point is a bin's mean probability and its share of
    positive cases. The bars at the persons' points are Wilson's 95% intervals; slices have none,
    since slices of one person are not independent. The Brier score is the mean squared difference
    of probability and truth.

    Args:
      path: the PNG file to write.
      slices: of one split.
      persons: of the same split.
      metrics: theirs, from `evaluation_metrics`.
    """
    positive = list(persons.labels).index(metrics["positive"])
    name = _plain(metrics["positive"])
    figure, (top, bottom) = _figure(5.2, 6.4, rows=2, height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], label="perfect", **_GUIDE)
    edges = np.linspace(0, 1, _CALIBRATION_BINS + 1)
    for predictions, level, colour, style, marker in (
        (persons, "persons", _PERSON_COLOUR, "-", "o"),
        (slices, "slices", _SLICE_COLOUR, "--", "s"),
    ):
        if len(predictions) == 0:
            continue
        truth = (predictions.label == positive).astype(np.float64)
        score = predictions.probabilities[:, positive]
        mean, share, n = reliability(truth, score, edges)
        brier = np.mean((score - truth) ** 2)
        top.plot(
            mean,
            share,
            color=colour,
            # A line through the persons' few points would look like a course that is not there.
            linestyle="" if level == "persons" else style,
            marker=marker,
            markersize=5,
            label=f"{level}, Brier score {brier:.3f}",
        )
        if level == "persons":
            low, high = wilson_interval(share, n)
            top.vlines(mean, low, high, color=colour, alpha=0.5, linewidth=1.5)
        bottom.hist(
            score,
            bins=edges,
            weights=np.full(len(score), 1 / len(score)),
            color=colour,
            linestyle=style,
            histtype="step",
            linewidth=1.5,
        )
    top.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel=f"share that is {name}")
    bottom.set(xlabel=f"predicted probability of {name}", ylabel="share of cases")
    for ax in (top, bottom):
        ax.grid(color="0.92")
    # Above the axes: a point may lie anywhere within.
    top.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, frameon=False)
    _save(figure, path)


def reliability(
    truth: np.ndarray, score: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points of a reliability diagram.

    Args:
      truth: [N] float, 1 for a positive case and 0 for another.
      score: [N] float, the probability of the positive class.
      edges: [B + 1] float, rising; a bin holds its lower edge, and the last its upper one too.

    Returns:
      mean score, share of positive cases and number of cases, [B'] each, of the bins that hold any.
    """
    place = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, len(edges) - 2)
    n = np.bincount(place, minlength=len(edges) - 1)
    held = n > 0
    n_held = n[held]
    mean = np.bincount(place, weights=score, minlength=len(n))[held] / n_held
    share = np.bincount(place, weights=truth, minlength=len(n))[held] / n_held
    return mean, share, n_held


def wilson_interval(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95% interval of a share of n independent cases, elementwise: (low, high)."""
    scale = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / scale
    half = _Z / scale * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return centre - half, centre + half


def confusion_counts(
    predictions: SlicePredictions | PersonPredictions, positive: int, threshold: float
) -> np.ndarray:
    """[C, C] int, cases by true (row) and predicted (column) label; see `confusion_figure`."""
    n = len(predictions.labels)
    if n == 2:
        is_positive = predictions.probabilities[:, positive] >= threshold
        predicted = np.where(is_positive, positive, 1 - positive)
    else:
        predicted = predictions.probabilities.argmax(axis=1)
    counts = np.zeros((n, n), np.int64)
    np.add.at(counts, (predictions.label, predicted), 1)
    return counts


def _roc_axes(ax: Axes, title: str) -> None:
    ax.plot([0, 1], [0, 1], **_GUIDE)
    ax.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
        xlabel="1 − specificity",
        ylabel="recall (sensitivity)",
        title=_plain(title),
    )
    ax.grid(color="0.92")


def _roc_curve(
    ax: Axes,
    predictions: SlicePredictions | PersonPredictions,
    positive: int,
    name: str,
    auc: Mapping,
    colour: str,
    style: str,
) -> None:
    """Draws one curve; where there is none, the legend says why."""
    if auc["value"] is None:
        ax.plot([], [], color=colour, linestyle=style, label=_plain(f"{name}: {auc['why']}"))
        return
    from sklearn.metrics import roc_curve

    false_positive, recall, _ = roc_curve(
        predictions.label == positive, predictions.probabilities[:, positive]
    )
    text = f"{name}: AUC {auc['value']:.3f}"
    if auc["low"] is not None:
        text += f" ({auc['low']:.3f}–{auc['high']:.3f})"
    ax.plot(
        false_positive,
        recall,
        color=colour,
        linestyle=style,
        linewidth=2,
        label=_plain(text),
        clip_on=False,
    )


def _confusion(
    ax: Axes, predictions: SlicePredictions | PersonPredictions, metrics: Mapping
) -> None:
    labels = [_plain(name) for name in predictions.labels]
    counts = confusion_counts(
        predictions, list(predictions.labels).index(metrics["positive"]), metrics["threshold"]
    )
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
    ax.set(xlabel="predicted", ylabel="true")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _level(predictions: SlicePredictions | PersonPredictions) -> str:
    return "person" if isinstance(predictions, PersonPredictions) else "image"


def _plain(text: str) -> str:
    """`text` as Matplotlib prints it as it stands: a pair of dollar signs would start a formula."""
    return text.replace("$", r"\$")


def _legend(ax: Axes) -> None:
    ax.legend(loc="lower right", fontsize=9, frameon=True, framealpha=0.9, edgecolor="0.85")


def _figure(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    height_ratios: Sequence[float] | None = None,
    sharex: bool = False,
) -> tuple[Figure, np.ndarray]:
    """A figure of `width` × `height` inches and its axes, [rows * columns]."""
    # Imported here: drawing is for `evaluate` alone, and pyplot, which would look for a screen and
    # keep every figure alive, is not needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=sharex,
        gridspec_kw={"height_ratios": height_ratios} if height_ratios else None,
    )
    return figure, axes.ravel()


def _save(figure: Figure, path: str | os.PathLike) -> None:
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.1)
