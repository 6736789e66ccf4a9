"""The files that tell the result of an evaluation: tables, plots and a report."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from drenet_jax.data.batches import split_batches
from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.records import PreparedData
from drenet_jax.errors import InputError
from drenet_jax.evaluation import plots
from drenet_jax.evaluation.calibration import brier_score, expected_calibration_error
from drenet_jax.evaluation.decisions import MetricSettings, worst_errors
from drenet_jax.evaluation.predictions import PersonPredictions, SlicePredictions
from drenet_jax.evaluation.report.evaluation_report import RunReport, run_report
from drenet_jax.version import __version__

_SHOWN_MISSES = 10
_SOFTWARE = ("jax", "flax", "optax", "numpy", "scikit-learn", "tensorflow-datasets")

# (patient_id, slice_index, slice_name) -> uint8 [S, S], what the model saw.
Pictures = Mapping[tuple[str, int, str], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """Predictions before and after calibration.

    Attributes:
      temperature: of the model; None where there is none, or many.
      why: why there is none, for the reader; "" otherwise.
      used: whether the result's own predictions are those after calibration.
      versions: title, slices and persons: before, and after where that is possible.
    """

    temperature: float | None
    why: str
    used: bool
    versions: Sequence[tuple[str, SlicePredictions, PersonPredictions]]

    def to_dict(self, positive: int, bins: int) -> dict:
        """Fit for JSON: the temperature and what it changes."""
        matches = [
            {
                "image": _calibration_figures(slices, positive, bins),
                "person": _calibration_figures(persons, positive, bins),
            }
            for _, slices, persons in self.versions
        ]
        before, after = matches if len(matches) == 2 else (*matches, None)
        values = {
            "temperature": self.temperature,
            "used": self.used,
            "before": before,
            "after": after,
        }
        return values | {"why": self.why} if self.why else values


@dataclasses.dataclass(frozen=True, eq=False)
class ReportContext:
    """What a report tells beside the predictions.

    Attributes:
      title: of the report.
      model: what identifies it.
      config: the training configuration.
      ct: the settings of the image side.
      design: how persons were assigned to training, validation and test, in a sentence.
      partitions: name, persons and slices of each part; none for a cross-validation.
      excluded: what `prepare` left out: patient_id, file, why.
      pictures: gives those of the persons named.
      folds: of a cross-validation, a row each.
    """

    title: str
    model: Mapping[str, object]
    config: Mapping
    ct: Mapping[str, object]
    design: str
    partitions: Sequence[tuple[str, int, int]]
    excluded: Sequence[Mapping[str, str]]
    pictures: Callable[[Sequence[str]], Pictures]
    folds: Sequence[Mapping] = ()


def context_of_run(
    data: PreparedData,
    split: str,
    model: Mapping[str, object],
    config: Mapping,
    *,
    is_other: bool,
) -> ReportContext:
    """What there is to tell of a model's evaluation on a split of `data`.

    Args:
      data: the data set.
      split: of it.
      model: what is known of the model, for the report.
      config: of its training.
      is_other: it was trained on another data set.
    """
    title = f"{model['name']} on the {split} split"
    design = (
        "By person, into training, validation and test; who is where is in split.json "
        f"(fingerprint {data.fingerprint})."
    )
    if is_other:
        title += " of another data set"
        design += " The model was trained and chosen on another data set, of other persons."
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
    """The slices of some persons of any split, as input to the model in an evaluation."""
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
    metrics: Mapping,
    slices: SlicePredictions,
    persons: PersonPredictions,
    *,
    calibration: Calibration,
    study: ReportContext,
    settings: MetricSettings,
) -> dict:
    """Writes the output files of an evaluation.

    Args:
      folder: an existing one.
      metrics: from `evaluation_metrics`.
      slices, persons: that the metrics are of.
      calibration: of the same cases.
      study: the rest of the report.
      settings: of the metrics.

    Returns:
      what metrics.json holds.
    """
    positive = slices.labels.index(metrics["positive"])
    calibration_report = calibration.to_dict(positive, settings.calibration_bins)
    metrics = {**metrics, "calibration": calibration_report}
    slices.to_csv(folder / "slices.csv")
    persons.to_csv(folder / "persons.csv")
    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    plot_files = {name: folder / f"{name}.png" for name in ("roc", "confusion", "calibration")}
    plots.roc_figure(plot_files["roc"], slices, persons, metrics)
    plots.confusion_figure(plot_files["confusion"], slices, persons, metrics)
    plots.calibration_figure(
        plot_files["calibration"], calibration.versions, positive, settings.calibration_bins
    )
    misses = worst_errors(persons, positive, metrics["threshold"], _SHOWN_MISSES)
    report = run_report(
        RunReport(
            title=study.title,
            metrics=metrics,
            slices=slices,
            persons=persons,
            misses=misses,
            pictures=study.pictures([miss.patient_id for miss in misses]),
            model=study.model,
            config=study.config,
            ct=study.ct,
            design=study.design,
            partitions=study.partitions,
            folds=study.folds,
            excluded=study.excluded,
            software=_software(),
            plots=plot_files,
        )
    )
    (folder / "report.html").write_text(report, encoding="utf-8")
    return metrics


def _calibration_figures(
    predictions: SlicePredictions | PersonPredictions, positive: int, bins: int
) -> dict[str, float]:
    truth, score = predictions.label == positive, predictions.probabilities[:, positive]
    return {
        "brier": brier_score(truth, score),
        "ece": expected_calibration_error(truth, score, bins),
    }


def _software() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _SOFTWARE}
    return {"drenet_jax": __version__, "python": platform.python_version(), **versions}
