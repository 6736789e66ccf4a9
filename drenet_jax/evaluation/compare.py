"""Several runs on the same persons: the paper's tables and figures, and what differs by chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drenet_jax.evaluation import comparison_figures, comparison_tables, paired
from drenet_jax.evaluation.compared_runs import ComparedRun
from drenet_jax.evaluation.decisions import confusion_counts, decided, is_positive
from drenet_jax.evaluation.metrics import metrics_with_intervals
from drenet_jax.evaluation.report import PACKAGE, data_uri
from drenet_jax.pages import render

# The p-values that are adjusted together: one comparison of each run with the first.
_TESTS = ("delong_auc", "mcnemar_accuracy", "mcnemar_accuracy_argmax")


def compare(runs: Sequence[ComparedRun], split: str, folder: Path) -> dict:
    """Compares runs, each with the first, and writes the result into `folder`.

    `compare.json`, `compare.md`, `tables.csv`, `tables.tex`, `roc.png`, `confusion.png` and
    `report.html`.

    Args:
      runs: two or more, from `read_runs`.
      split: of the persons, for titles.
      folder: an existing one.

    Returns:
      what `compare.json` holds: the "runs" with their metrics and confusion counts, and of all but
      the first the "differences": of each metric, and the tests with `p_value` and `p_holm`.
    """
    result = _compared(runs, split)
    tables, notes = comparison_tables.tables(result)
    (folder / "compare.json").write_text(
        json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    for name, text in (
        ("compare.md", comparison_tables.markdown(tables, notes)),
        ("tables.csv", comparison_tables.csv_text(tables)),
        ("tables.tex", comparison_tables.latex(tables, notes)),
    ):
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    plots = {name: folder / f"{name}.png" for name in ("roc", "confusion")}
    comparison_figures.roc_figure(plots["roc"], runs, result)
    comparison_figures.confusion_figure(plots["confusion"], runs)
    report = render(
        PACKAGE,
        "compare.html.j2",
        title=f"{len(runs)} runs on the same {result['n_persons']} persons",
        result=result,
        tables=tables,
        notes=notes,
        roc=data_uri(plots["roc"].read_bytes()),
        confusion=data_uri(plots["confusion"].read_bytes()),
    )
    (folder / "report.html").write_text(report, encoding="utf-8")
    return result


def _compared(runs: Sequence[ComparedRun], split: str) -> dict:
    first = runs[0]
    # One and the same for all: the first run's.
    settings, positive = first.settings, first.positive
    differences = [_difference(run, first) for run in runs[1:]]
    for test in _TESTS:
        own = [one[test] for one in differences if test in one]
        for one, adjusted in zip(own, paired.holm([one["p_value"] for one in own]), strict=True):
            one["p_holm"] = adjusted
    return {
        "split": split,
        "labels": list(first.slices.labels),
        "positive": first.slices.labels[positive],
        "threshold": settings.threshold,
        "draws": settings.bootstrap_draws,
        "seed": settings.bootstrap_seed,
        "n_persons": len(first.persons),
        "n_slices": len(first.slices),
        "correction": "Holm",
        "runs": [
            {
                "name": run.name,
                "source": run.source,
                "aggregate": run.aggregate,
                "image": metrics_with_intervals(run.slices, positive, settings),
                "person": metrics_with_intervals(run.persons, positive, settings),
                "confusion": confusion_counts(run.persons, positive, settings.threshold).tolist(),
            }
            for run in runs
        ],
        "differences": differences,
    }


def _difference(run: ComparedRun, first: ComparedRun) -> dict:
    """A run less the first: metrics at both levels, and tests of its persons."""
    settings, positive = first.settings, first.positive
    truth = first.persons.label == positive
    scores, first_scores = (one.persons.probabilities[:, positive] for one in (run, first))
    said, first_said = (
        is_positive(one.persons.probabilities, positive, settings.threshold) for one in (run, first)
    )
    result = {
        "run": run.name,
        "against": first.name,
        "image": paired.paired_bootstrap(run.slices, first.slices, positive, settings),
        "person": paired.paired_bootstrap(run.persons, first.persons, positive, settings),
        "delong_auc": paired.delong(truth, scores, first_scores).to_dict(),
        "mcnemar_accuracy": paired.mcnemar(said == truth, first_said == truth).to_dict(),
    }
    if len(first.slices.labels) > 2:
        right = [
            np.equal(decided(one.persons, positive, settings.threshold), one.persons.label)
            for one in (run, first)
        ]
        result["mcnemar_accuracy_argmax"] = paired.mcnemar(*right).to_dict()
    return result
