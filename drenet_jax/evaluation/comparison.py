"""Several runs on the same persons: the paper's tables and plots, and tests of the differences."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from drenet_jax.errors import InputError
from drenet_jax.evaluation import comparison_tables, plots
from drenet_jax.evaluation.decisions import (
    MetricSettings,
    confusion_counts,
    decide,
    is_positive,
    positive_class,
)
from drenet_jax.evaluation.person_report import PACKAGE
from drenet_jax.evaluation.predictions import (
    PersonPredictions,
    SlicePredictions,
    person_predictions,
)
from drenet_jax.evaluation.statistics import (
    delong,
    holm,
    mcnemar,
    metrics_with_intervals,
    paired_bootstrap,
)
from drenet_jax.html_images import data_uri
from drenet_jax.html_templates import render

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
    files = {name: folder / f"{name}.png" for name in ("roc", "confusion")}
    _roc_figure(files["roc"], runs, result)
    plots.confusion_figure(
        files["confusion"],
        [(run.name, run.persons) for run in runs],
        runs[0].positive,
        runs[0].settings.threshold,
    )
    report = render(
        PACKAGE,
        "compare.html.j2",
        title=f"{len(runs)} runs on the same {result['n_persons']} patients",
        result=result,
        tables=tables,
        notes=notes,
        roc=data_uri(files["roc"].read_bytes()),
        confusion=data_uri(files["confusion"].read_bytes()),
    )
    (folder / "report.html").write_text(report, encoding="utf-8")
    return result


def _compared(runs: Sequence[ComparedRun], split: str) -> dict:
    first = runs[0]
    # The first run's settings hold for all.
    settings, positive = first.settings, first.positive
    differences = [_difference(run, first) for run in runs[1:]]
    for test in _TESTS:
        tests = [difference[test] for difference in differences if test in difference]
        adjusted = holm([row["p_value"] for row in tests])
        for row, p_holm in zip(tests, adjusted, strict=True):
            row["p_holm"] = p_holm
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
                "aggregate": run.settings.aggregate,
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
    truth = first.persons.label
    both = [each.persons.probabilities for each in (run, first)]
    difference = {
        "run": run.name,
        "against": first.name,
        "image": paired_bootstrap(run.slices, first.slices, positive, settings),
        "person": paired_bootstrap(run.persons, first.persons, positive, settings),
        "delong_auc": delong(truth == positive, *(p[:, positive] for p in both)).to_dict(),
        "mcnemar_accuracy": mcnemar(
            *(is_positive(p, positive, settings.threshold) == (truth == positive) for p in both)
        ).to_dict(),
    }
    if len(first.slices.labels) > 2:
        difference["mcnemar_accuracy_argmax"] = mcnemar(
            *(decide(p, positive, settings.threshold) == truth for p in both)
        ).to_dict()
    return difference


@dataclasses.dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run's predictions of the compared patients.

    Attributes:
      name: for tables and legends.
      source: the folder.
      positive: the index of the positive class.
      slices, persons: of the split.
      settings: of the metrics.
    """

    name: str
    source: str
    positive: int
    slices: SlicePredictions
    persons: PersonPredictions
    settings: MetricSettings


def read_runs(folders: Sequence[str], split: str, names: Sequence[str] = ()) -> list[ComparedRun]:
    """Reads or scores runs on the same persons.

    Args:
      folders: workdirs, which are scored, or folders that `evaluate` or `crossvalidate` wrote,
        which are read.
      split: which persons; of folders that are read it must be the one that they hold.
      names: one for each folder; empty: what tells the folders apart.

    Returns:
      the runs, their slices and persons in the same order.

    Raises:
      InputError: there are not two runs, a folder is neither, or runs are of other persons, slices,
        labels or splits.
    """
    if len(folders) < 2:
        raise InputError("--runs must name two or more folders, separated by commas.")
    names = list(names) or short_names(folders)
    if len(names) != len(folders):
        raise InputError(
            f"--names has {len(names)} names for the {len(folders)} folders of --runs; give each "
            "one name."
        )
    if len(set(names)) < len(names):
        raise InputError(f"--names={','.join(names)}: two runs have the same name; give others.")
    runs = [_read_run(folder, split, name) for folder, name in zip(folders, names, strict=True)]
    for run in runs[1:]:
        _check_alike(runs[0], run)
    return runs


def short_names(folders: Sequence[str]) -> list[str]:
    """The last parts of the paths; of `a/test` and `b/test`, where these are alike, `a` and `b`.

    Folders that share their last part keep their full path.
    """
    parts = [Path(folder).parts for folder in folders]
    shortest = min(map(len, parts))
    for back in range(1, shortest + 1):
        names = [part[-back] for part in parts]
        if len(set(names)) == len(names):
            return names
        if len(set(names)) > 1:
            break
    return list(folders)


def _read_run(folder: str, split: str, name: str) -> ComparedRun:
    # What crossvalidate wrote has its tables one folder down.
    candidates = [Path(folder), Path(folder) / "result"]
    evaluated = [path for path in candidates if _is_evaluation(path)]
    slices, positive, settings = (
        read_evaluation(evaluated[0], split) if evaluated else _of_workdir(folder, split)
    )
    keys = _keys(slices)
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(
            f"{folder} has several predictions of slice {twice[2]!r} of person {twice[0]!r}, as a "
            "repeated cross-validation does; compare runs without repeats."
        )
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    slices = slices.of(order)
    persons = person_predictions(slices, settings.aggregate, positive)
    source = str(evaluated[0]) if evaluated else folder
    return ComparedRun(name, source, positive, slices, persons, settings)


def _is_evaluation(folder: Path) -> bool:
    return (folder / "slices.csv").is_file() and (folder / "metrics.json").is_file()


def read_evaluation(folder: Path, split: str) -> tuple[SlicePredictions, int, MetricSettings]:
    """The slices, the index of the positive class and the settings of an evaluation.

    Args:
      folder: that `evaluate` or `crossvalidate` wrote.
      split: that it must be of.

    Raises:
      InputError: it is of another split, or damaged.
    """
    slices = SlicePredictions.from_csv(folder / "slices.csv")
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        evaluated_split = metrics["split"]
        positive = slices.labels.index(metrics["positive"])
        settings = MetricSettings(
            threshold=metrics["threshold"],
            aggregate=metrics["aggregate"],
            calibration_bins=metrics["calibration_bins"],
            bootstrap_draws=metrics["draws"],
            bootstrap_seed=metrics["seed"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'metrics.json'} is not what evaluate writes ({error}); evaluate again."
        ) from error
    if evaluated_split != split:
        raise InputError(
            f"--split={split}, but {folder} holds an evaluation of {evaluated_split}; name "
            "that split, or evaluate this one."
        )
    return slices, positive, settings


def _of_workdir(folder: str, split: str) -> tuple[SlicePredictions, int, MetricSettings]:
    # Imported here: tables that are read need neither JAX nor TensorFlow.
    from drenet_jax.evaluation.evaluator import open_run

    if split == "cross-validation":
        raise InputError(
            f"--split={split}, but {folder} is not a folder that crossvalidate has finished; name "
            "another folder or split."
        )
    run = open_run(Path(folder), split)
    evaluation = run.predictor.meta.config.evaluation
    settings = MetricSettings.from_config(evaluation)
    positive = positive_class(run.data.labels, evaluation.positive_label)
    slices, _ = run.score(run.data, split)
    return slices, positive, settings


def _keys(slices: SlicePredictions) -> list[tuple[str, int, str]]:
    columns = (slices.patient_id, slices.slice_index, slices.slice_name)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _check_alike(first: ComparedRun, other: ComparedRun) -> None:
    """Raises InputError, naming what differs, unless both are of the same slices and truths."""
    both = f"{first.source} and {other.source}"
    if first.slices.labels != other.slices.labels or first.positive != other.positive:
        raise InputError(
            f"{both} have other labels ({', '.join(first.slices.labels)}; "
            f"{', '.join(other.slices.labels)}) or another positive one; compare runs on the same "
            "data set."
        )
    ours, theirs = set(first.persons.patient_id), set(other.persons.patient_id)
    if ours != theirs:
        unmatched = min(ours ^ theirs)
        raise InputError(
            f"{both} are not of the same persons: {len(ours - theirs)} are only in the first and "
            f"{len(theirs - ours)} only in the second, for instance {str(unmatched)!r}; compare "
            "runs on the same split of the same data set."
        )
    ours, theirs = set(_keys(first.slices)), set(_keys(other.slices))
    if ours != theirs:
        patient_id, _, name = min(ours ^ theirs)
        raise InputError(
            f"{both} are not of the same slices: only one of them has slice {name!r} of person "
            f"{patient_id!r}; compare runs on the same data set."
        )
    differing = np.flatnonzero(first.persons.label != other.persons.label)
    if differing.size:
        raise InputError(
            f"{both} have other labels for person {str(first.persons.patient_id[differing[0]])!r}; "
            "compare runs on the same data set."
        )


# The corner of few false positives that is shown enlarged. Of 50 healthy persons it holds ten.
_CORNER = 0.2


def _roc_figure(path: str | os.PathLike, runs: Sequence[ComparedRun], result: Mapping) -> None:
    """Writes the persons' ROC curves: full, and the corner of few false positives.

    Args:
      path: the PNG file to write.
      runs: to be drawn.
      result: what compare.json holds of them.
    """
    figure, (full, corner) = plots.new_figure(10.8, 5.4, columns=2)
    plots.roc_axes(full, f"{result['positive']} against the rest, patients")
    plots.roc_axes(corner, "few false positives")
    lowest = 1.0
    for number, (run, report) in enumerate(zip(runs, result["runs"], strict=True)):
        auc = report["person"]["auc"]
        # Thinner from one to the next, so that curves that lie on each other are all seen.
        width = 3 - 1.6 * number / (len(runs) - 1)
        line = {**plots.style(number), "linewidth": width}
        plots.roc_curve(full, run.persons, run.positive, run.name, auc, line)
        if auc["value"] is None:
            continue
        plots.roc_curve(corner, run.persons, run.positive, run.name, auc, line, clip=True)
        is_positive = run.persons.label == run.positive
        score = run.persons.probabilities[:, run.positive]
        # Where the curve leaves the left edge.
        lowest = min(lowest, float(np.mean(score[is_positive] > score[~is_positive].max())))
    plots.legend(full)
    low = max(0.0, math.floor(10 * (lowest - 0.05)) / 10)
    corner.set(xlim=(-0.02 * _CORNER, _CORNER), ylim=(low, low + 1.02 * (1 - low)), aspect="auto")
    plots.save(figure, path)
