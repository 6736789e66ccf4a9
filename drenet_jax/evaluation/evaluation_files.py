"""The output files of an evaluation: metrics.json, tables, plots and the report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drenet_jax.data.batches import split_batches
from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.csv_tables import read_rows
from drenet_jax.data.prepared_data import PreparedData
from drenet_jax.errors import InputError
from drenet_jax.evaluation import plots
from drenet_jax.evaluation.decisions import DecisionRule, MetricSettings
from drenet_jax.evaluation.evaluation_report import (
    POINTERS,
    Pictures,
    ReportContext,
    ShortcutAudit,
    evaluation_report,
    worst_errors,
)
from drenet_jax.evaluation.metrics import (
    DECISION_METRICS,
    classification_metrics,
    metric_text,
    number_text,
)
from drenet_jax.evaluation.predictions import (
    PersonPredictions,
    Predictions,
    SlicePredictions,
    person_predictions,
)
from drenet_jax.evaluation.statistics import metrics_with_intervals

# What `audit` writes, and the evaluation report shows.
AUDIT_FILE, AUDIT_PLOT = "audit.json", "audit.png"

_N_MISSES = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Predictions before and after temperature scaling.

    Attributes:
      temperature: of the model; None where there is none, or several.
      why: why there is none; "" otherwise.
      used: whether the metrics are of the predictions after calibration.
      versions: title, slices and persons: before, and after where that is possible.
    """

    temperature: float | None
    why: str
    used: bool
    versions: Sequence[tuple[str, SlicePredictions, PersonPredictions]]

    def to_dict(self, positive: int, settings: MetricSettings) -> dict[str, Any]:
        """The temperature and the calibration metrics before and after, for metrics.json."""
        before, after = [
            {
                level: _calibration_metrics(predictions, positive, settings)
                for level, predictions in (("image", slices), ("person", persons))
            }
            for _, slices, persons in self.versions
        ] + [None] * (2 - len(self.versions))
        values = {
            "temperature": self.temperature,
            "used": self.used,
            "before": before,
            "after": after,
        }
        return values | {"why": self.why} if self.why else values


def _calibration_metrics(
    predictions: Predictions, positive: int, settings: MetricSettings
) -> dict[str, float | None]:
    p = predictions
    metrics = classification_metrics(p.label, p.probabilities, p.labels, positive, settings)
    return {name: metrics[name] for name in ("brier", "ece")}


def evaluation_metrics(
    slices: SlicePredictions,
    persons: PersonPredictions,
    *,
    split: str,
    positive: int,
    settings: MetricSettings,
    validation_threshold: float | np.ndarray | None = None,
    aggregate: str = "mean",
    site_persons: Callable[[str], PersonPredictions] | None = None,
) -> dict[str, Any]:
    """What `evaluate` writes to metrics.json.

    Args:
      slices: of one split.
      persons: of the same split, from `person_predictions(slices, aggregate, positive)`.
      split: the name of the split.
      positive: the index of the positive class.
      settings: of the metrics and the draws.
      validation_threshold: `youden_threshold` of the validation persons, one for all persons or
        for each; None where there is none.
      aggregate: how `slices` were aggregated to `persons`.
      site_persons: the persons of a site; None: aggregated from the slices from there.

    Returns:
      {"split", "labels", "positive", "aggregate", "threshold", "calibration_bins", "draws", "seed",
      "n_persons", "n_slices", "image": {...}, "person": {...}, "validation_threshold":
      {"threshold", "person": the `DECISION_METRICS` of the persons at that threshold}, or there
      {"threshold": None, "why"}, "sites": [{"site", "n_persons", "n_slices", "image", "person"}]},
      one for each site where there are several. A person who was at two sites counts at each, with
      the slices from there. And "decision": by which rule a case gets its label
      (`DecisionRule.to_dict`), as `predict` says of a person.
    """
    metrics: dict[str, Any] = {
        "split": split,
        "labels": list(slices.labels),
        "positive": slices.labels[positive],
        "aggregate": aggregate,
        "threshold": settings.threshold,
        "calibration_bins": settings.calibration_bins,
        "draws": settings.bootstrap_draws,
        "seed": settings.bootstrap_seed,
        **_levels(slices, persons, positive, settings),
    }
    if validation_threshold is None:
        metrics["validation_threshold"] = {
            "threshold": None,
            "why": "there are no validation persons of both kinds to choose it on",
        }
    else:
        moved = metrics_with_intervals(persons, positive, settings, validation_threshold)
        metrics["validation_threshold"] = {
            "threshold": None
            if isinstance(validation_threshold, np.ndarray)
            else float(validation_threshold),
            "person": {name: moved[name] for name in DECISION_METRICS},
        }
    sites = np.unique(slices.site).tolist()
    metrics["sites"] = []
    for site in sites if len(sites) > 1 else []:
        there = slices.of(slices.site == site)
        there_persons = (
            site_persons(site) if site_persons else person_predictions(there, aggregate, positive)
        )
        metrics["sites"].append({"site": site, **_levels(there, there_persons, positive, settings)})
    rule = DecisionRule(slices.labels, positive, settings.threshold, aggregate)
    metrics["decision"] = rule.to_dict()
    return metrics


def _levels(
    slices: SlicePredictions,
    persons: PersonPredictions,
    positive: int,
    settings: MetricSettings,
) -> dict[str, Any]:
    return {
        "n_persons": len(np.unique(persons.patient_id)),
        "n_slices": len(slices),
        "image": metrics_with_intervals(slices, positive, settings),
        "person": metrics_with_intervals(persons, positive, settings),
    }


def read_audit(folder: Path, workdir: Path) -> ShortcutAudit:
    """The audit of a run for shortcuts.

    Args:
      folder: that `audit` wrote.
      workdir: of the run.

    Raises:
      InputError: it is no audit, or that of another run or of a data set alone.
    """
    try:
        result = json.loads((folder / AUDIT_FILE).read_text(encoding="utf-8"))
        source, plot = result["source"], (folder / AUDIT_PLOT).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--audit={folder} is not what audit wrote; name its --out.") from error
    if not source or Path(source).resolve() != workdir.resolve():
        raise InputError(
            f"--audit={folder} is the audit of {source or 'a data set alone'}, not of {workdir}; "
            f"make one: python -m drenet_jax.audit --workdir={workdir} --out=NEW_FOLDER"
        )
    return ShortcutAudit(result, plot)


def context_of_run(
    data: PreparedData,
    split: str,
    model: Mapping[str, object],
    config: Mapping[str, Any],
    *,
    is_other: bool,
    audit: ShortcutAudit | None = None,
) -> ReportContext:
    """The context of a model's evaluation on a split of `data`.

    Args:
      data: the data set.
      split: of it.
      model: what identifies the model.
      config: of its training.
      is_other: it was trained on another data set.
      audit: of the model for shortcuts, if there is one.
    """
    title = f"{model['name']} on the {split} split"
    design = (
        "Split by patient into training, validation and test; the assignment is in split.json "
        f"(fingerprint {data.fingerprint})."
    )
    if is_other:
        title += " of another data set"
        design += " The model was trained and selected on another data set, of other patients."
    return ReportContext(
        title=title,
        model={**model, "data": data.name},
        config=config,
        ct=data.ct.to_dict(),
        design=design,
        partitions=[(name, len(data.persons[name]), data.n_slices[name]) for name in SPLITS],
        excluded=excluded(data),
        pictures=lambda persons: pictures_of(data, persons, config["data"]["fill"]),
        audit=audit,
    )


def excluded(data: PreparedData) -> list[dict[str, str]]:
    """The rows of the data set's excluded.csv."""
    _, rows = read_rows(data.records / "excluded.csv")
    return [row for _, row in rows]


def pictures_of(data: PreparedData, persons: Sequence[str], fill: str) -> Pictures:
    """The slices of these patients, of any split, as the model takes them in an evaluation."""
    if not persons:
        return {}
    # More slices than they can have: the number is for progress bars and training only.
    n_slices = {"test": sum(data.n_slices.values())}
    chosen = data.fold({"test": list(persons)}, n_slices)
    pictures = {}
    for batch in split_batches(chosen, "test", batch_size=32, fill=fill):
        keys = zip(batch["patient_id"], batch["slice_index"], batch["slice_name"], strict=True)
        for (patient_id, index, name), image in zip(keys, batch["image"], strict=True):
            pictures[patient_id, int(index), name] = image
    return pictures


def write_evaluation(
    folder: Path,
    metrics: Mapping[str, Any],
    slices: SlicePredictions,
    persons: PersonPredictions,
    *,
    calibration: Calibration,
    context: ReportContext,
    settings: MetricSettings,
) -> dict[str, Any]:
    """Writes the output files of an evaluation.

    Args:
      folder: an existing one.
      metrics: from `evaluation_metrics`.
      slices, persons: that the metrics are of.
      calibration: of the same cases.
      context: the rest of the report.
      settings: of the metrics.

    Returns:
      What metrics.json holds.
    """
    positive, bins = slices.labels.index(metrics["positive"]), settings.calibration_bins
    metrics = {**metrics, "calibration": calibration.to_dict(positive, settings)}
    slices.to_csv(folder / "slices.csv")
    persons.to_csv(folder / "persons.csv")
    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    plot_files = {name: folder / f"{name}.png" for name in ("roc", "confusion", "calibration")}
    plots.roc_figure(plot_files["roc"], slices, persons, metrics)
    panels = [(f"{len(persons)} patients", persons), (f"{len(slices)} slices", slices)]
    plots.confusion_figure(plot_files["confusion"], panels, positive, metrics["threshold"])
    plots.calibration_figure(plot_files["calibration"], calibration.versions, positive, bins)
    misses = worst_errors(persons, positive, metrics["threshold"], _N_MISSES)
    report = evaluation_report(context, metrics, slices, misses, plot_files)
    (folder / "report.html").write_text(report, encoding="utf-8")
    return metrics


def summary_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Printed lines on metrics.json: AUCs of persons and slices, and the pointing game if any."""
    pointing = metrics.get("explain") or {}
    return [
        *(
            f"{level} AUC, {metrics['positive']} against the rest: "
            f"{metric_text(metrics[level]['auc'])}"
            for level in ("person", "image")
        ),
        *(
            f"{title}: {metric_text(pointing[name]['rate'])}, by chance "
            f"{number_text(pointing[name]['chance']['value'])}"
            for name, title in POINTERS.items()
            if pointing.get(name)
        ),
    ]
