"""What all plots share: colours, sizes, legends, axes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from drenet_jax.evaluation.decisions import confusion_counts
from drenet_jax.evaluation.persons import PersonPredictions, SlicePredictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles tell them apart too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PERSON_COLOUR, SLICE_COLOUR = COLOURS[:2]
LINE_STYLES = ("-", "--", "-.", ":")
GUIDE = {"color": "0.6", "linewidth": 1, "linestyle": ":"}

_DOTS_PER_INCH = 150


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


def save(figure: Figure, path: str | os.PathLike) -> None:
    figure.savefig(path, format="png", bbox_inches="tight", pad_inches=0.1)


def plain(text: str) -> str:
    """`text` as Matplotlib prints it as it stands: a pair of dollar signs would start a formula."""
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
    predictions: SlicePredictions | PersonPredictions,
    positive: int,
    name: str,
    auc: Mapping,
    line: Mapping[str, object],
    *,
    clip: bool = False,
) -> None:
    """Draws one curve; where there is none, the legend says why.

    Args:
      ax: where.
      predictions: of slices or persons.
      positive: the index of the class that is told from the rest.
      name: for the legend.
      auc: the metric, for the legend.
      line: colour, style and, if wanted, width.
      clip: whether to cut the curve off at the axes, which may show a corner only.
    """
    if auc["value"] is None:
        ax.plot([], [], label=plain(f"{name}: {auc['why']}"), **line)
        return
    from sklearn import metrics

    false_positive, recall, _ = metrics.roc_curve(
        predictions.label == positive, predictions.probabilities[:, positive]
    )
    text = f"{name}: AUC {auc['value']:.3f}"
    if auc["low"] is not None:
        text += f" ({auc['low']:.3f}–{auc['high']:.3f})"
    ax.plot(false_positive, recall, label=plain(text), clip_on=clip, **{"linewidth": 2, **line})


def confusion_axes(
    ax: Axes,
    predictions: SlicePredictions | PersonPredictions,
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
