"""The output files of an evaluation: tables, plots and the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drenet_jax.data.batches import split_batches
from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.prepared_data import PreparedData
from drenet_jax.errors import InputError
from drenet_jax.evaluation import plots
from drenet_jax.evaluation.calibration import Calibration
from drenet_jax.evaluation.decisions import MetricSettings, worst_errors
from drenet_jax.evaluation.predictions import PersonPredictions, SlicePredictions
from drenet_jax.evaluation.report.evaluation_report import (
    Pictures,
    ReportContext,
    evaluation_report,
)

_N_MISSES = 10


def context_of_run(
    data: PreparedData,
    split: str,
    model: Mapping[str, object],
    config: Mapping[str, Any],
    *,
    is_other: bool,
) -> ReportContext:
    """The context of a model's evaluation on a split of `data`.

    Args:
      data: the data set.
      split: of it.
      model: what identifies the model.
      config: of its training.
      is_other: it was trained on another data set.
    """
    title = f"{model['name']} on the {split} split"
    design = (
        "By person, into training, validation and test; the assignment is in split.json "
        f"(fingerprint {data.fingerprint})."
    )
    if is_other:
        title += " of another data set"
        design += " The model was trained and selected on another data set, of other patients."
    return ReportContext(
        title=title,
        model={**model, "data": str(data.path)},
        config=config,
        ct=data.ct.to_dict(),
        design=design,
        partitions=[(name, len(data.persons[name]), data.n_slices[name]) for name in SPLITS],
        excluded=excluded(data),
        pictures=lambda persons: pictures_of(data, persons, config["data"]["fill"]),
    )


def excluded(data: PreparedData) -> list[dict[str, str]]:
    """The rows of the data set's excluded.csv."""
    path = data.records / "excluded.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run prepare again.") from error


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
    metrics = {**metrics, "calibration": calibration.to_dict(positive, bins)}
    slices.to_csv(folder / "slices.csv")
    persons.to_csv(folder / "persons.csv")
    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    plot_files = {name: folder / f"{name}.png" for name in ("roc", "confusion", "calibration")}
    plots.roc_figure(plot_files["roc"], slices, persons, metrics)
    plots.confusion_figure(plot_files["confusion"], slices, persons, metrics)
    plots.calibration_figure(plot_files["calibration"], calibration.versions, positive, bins)
    misses = worst_errors(persons, positive, metrics["threshold"], _N_MISSES)
    report = evaluation_report(context, metrics, slices, misses, plot_files)
    (folder / "report.html").write_text(report, encoding="utf-8")
    return metrics
