"""What `audit` writes: `audit.json`, `audit.csv`, `audit.md` and `audit.png`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drenet_jax.data.csv_tables import write_rows
from drenet_jax.evaluation import plots
from drenet_jax.evaluation.evaluation_files import AUDIT_FILE, AUDIT_PLOT
from drenet_jax.evaluation.metrics import metric_text

_COLUMNS = ("evaluation", "name", "kind", "metric", "value", "low", "high", "why")
_METRICS = ("image_auc", "person_auc", "image_difference", "person_difference")
_COLOUR_OF = {"model": plots.COLOURS[0], "control": plots.COLOURS[1], "reference": "0.55"}
_MEANING = {
    "model": "the model",
    "control": "sees no lungs",
    "reference": "sees the lungs (frozen network)",
}


def write_audit(folder: Path, result: Mapping[str, Any]) -> None:
    """Writes the files of an audit.

    Args:
      folder: an existing one.
      result: from `auditor.audit`.
    """
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / AUDIT_FILE).write_text(text + "\n", encoding="utf-8")
    write_rows(
        folder / "audit.csv",
        _COLUMNS,
        (
            (evaluation["name"], row["name"], row["kind"], name, *_cells(row[name]))
            for evaluation in result["evaluations"]
            for row in evaluation["rows"]
            for name in _METRICS
            if name in row
        ),
    )
    (folder / "audit.md").write_text(markdown(result), encoding="utf-8", errors="backslashreplace")
    draw(folder / AUDIT_PLOT, result)


def _cells(metric: Mapping[str, Any]) -> list[Any]:
    numbers = ["" if metric[name] is None else metric[name] for name in ("value", "low", "high")]
    return [*numbers, metric.get("why", "")]


def markdown(result: Mapping[str, Any]) -> str:
    """The report."""
    lines = [
        "# Audit for shortcuts",
        "",
        *(f"**{sentence}**" for sentence in result["verdict"]["sentences"]),
        "",
        f"{result['positive']} against the rest; data: `{result['data']}`"
        + (f"; model: `{result['source']}`." if result["source"] else "."),
        "AUCs with 95% intervals by bootstrap over persons; differences are paired. A control is a "
        "logistic regression that does not see the lungs. What the rows mean: docs/audit.md.",
        "",
        "![AUC of the persons](audit.png)",
    ]
    for evaluation in result["evaluations"]:
        titles = {row["name"]: row["title"] for row in evaluation["rows"]}
        reference = titles[evaluation["reference"]]
        lines += [
            "",
            f"## {evaluation['name'].capitalize()}: {evaluation['n_persons']} persons, "
            f"{evaluation['n_slices']} slices",
            "",
            f"{evaluation['how'].capitalize()}.",
            "",
            f"| what is seen | AUC, slices | AUC, persons | persons, less {reference} |",
            "| --- | --- | --- | --- |",
        ]
        for row in evaluation["rows"]:
            difference = row.get("person_difference")
            cells = [
                row["title"],
                metric_text(row["image_auc"]),
                metric_text(row["person_auc"]),
                metric_text(difference, plus=True) if difference else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [
            f"\nNo control of the {name}: {why}." for name, why in evaluation["left_out"].items()
        ]
    return "\n".join(lines) + "\n"


def draw(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Draws the persons' AUCs of the first evaluation with their intervals."""
    evaluation = result["evaluations"][0]
    rows = evaluation["rows"][::-1]
    figure, (ax,) = plots.new_figure(8.5, 1.6 + 0.42 * len(rows))
    shown: set[str] = set()
    for y, row in enumerate(rows):
        auc = row["person_auc"]
        if auc["value"] is None:
            continue
        kind = row["kind"]
        ax.barh(
            y,
            auc["value"] - 0.5,
            left=0.5,
            height=0.62,
            color=_COLOUR_OF[kind],
            alpha=0.75,
            label=None if kind in shown else _MEANING[kind],
        )
        shown.add(kind)
        if auc["low"] is not None:
            ax.plot([auc["low"], auc["high"]], [y, y], color="0.15", linewidth=1.6)
        end = auc["value"] if auc["high"] is None else max(auc["high"], auc["value"])
        ax.text(end + 0.008, y, f"{auc['value']:.2f}", va="center", fontsize=9)
        if row["name"] == evaluation["reference"]:
            ax.axvline(auc["value"], **plots.GUIDE)
    ax.axvline(0.5, color="0.3", linewidth=1)
    ax.set_yticks(range(len(rows)), [row["title"] for row in rows])
    lows = [row["person_auc"]["low"] for row in rows if row["person_auc"]["low"] is not None]
    ax.set(
        xlim=(min([0.45, *lows]) - 0.01, 1.06),
        xlabel=f"AUC, {plots.plain(result['positive'])} against the rest "
        f"({evaluation['n_persons']} persons, {evaluation['name']}); line: 95% interval",
    )
    ax.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    ax.spines[["top", "right"]].set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles[::-1],
        labels[::-1],
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
        ncols=3,
        fontsize=9,
        frameon=False,
    )
    plots.save(figure, path)
