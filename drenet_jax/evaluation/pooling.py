"""A cross-validation's predictions, pooled: each is of a model that never saw the person."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from drenet_jax.data.csv_tables import write_rows
from drenet_jax.data.prepared_data import PreparedData
from drenet_jax.evaluation.calibration import Calibration, apply_temperature
from drenet_jax.evaluation.decisions import MetricSettings, positive_class
from drenet_jax.evaluation.metric_formulas import DECISION_METRICS
from drenet_jax.evaluation.metrics import evaluation_metrics, metrics_with_intervals
from drenet_jax.evaluation.predictions import (
    PersonPredictions,
    SlicePredictions,
    concatenate,
    person_predictions,
)
from drenet_jax.evaluation.report.evaluation_report import ReportContext
from drenet_jax.evaluation.report.result_files import (
    excluded,
    pictures_of,
    write_evaluation,
)

FOLDS_FILE = "folds.csv"


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """A model to train and the patients to test with it.

    Attributes:
      repeat: from 1.
      number: of the fold in its repeat, from 1.
      name: the number, or the site that is tested.
      data: its persons.
    """

    repeat: int
    number: int
    name: str
    data: PreparedData

    def folder(self, workdir: Path) -> Path:
        return workdir / f"repeat{self.repeat}" / f"fold{self.number}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Tested:
    """A fold's result, read back.

    Attributes:
      fold: which.
      slices: its test persons' slices.
      persons: its test persons.
      metrics: its metrics.json.
    """

    fold: Fold
    slices: SlicePredictions
    persons: PersonPredictions
    metrics: Mapping

    def calibrated(self) -> SlicePredictions | None:
        """The slices at the fold's own temperature, if it has one."""
        temperature = self.metrics["calibration"]["temperature"]
        if temperature is None:
            return None
        # A softmax is its logits again up to a constant, which a softmax does not see.
        with np.errstate(divide="ignore"):
            logits = np.log(self.slices.probabilities)
        return dataclasses.replace(
            self.slices, probabilities=apply_temperature(logits, temperature)
        )


def write_pooled(
    plan: Sequence[Fold],
    config: ml_collections.ConfigDict,
    data: PreparedData,
    workdir: Path,
    folder: Path,
    *,
    by_site: bool,
) -> None:
    """Writes the evaluation of all folds' predictions together, and `folds.csv`.

    Args:
      plan: the folds, all of them evaluated.
      config: of the training.
      data: whose persons they share out.
      workdir: of the cross-validation.
      folder: an existing one, for the files.
      by_site: whether each fold is a site.
    """
    positive = positive_class(data.labels, config.evaluation.positive_label)
    settings = MetricSettings.from_config(config.evaluation)
    tested = [_read_fold(fold, workdir, settings, positive) for fold in plan]
    slices = concatenate([item.slices for item in tested])
    # Each repeat tests everybody once: a person is one case in each, and the bootstrap, which draws
    # persons, draws all of a person's cases together.
    persons = concatenate([item.persons for item in tested])
    metrics = evaluation_metrics(
        slices,
        persons,
        split="cross-validation",
        positive=positive,
        settings=settings,
        aggregate=settings.aggregate,
    )
    metrics |= {
        "folds": len(plan),
        "n_persons": len(np.unique(persons.patient_id)),
        "validation_threshold": _at_own_thresholds(tested, persons, positive, settings),
        "sites": _sites(slices, persons, positive, settings),
    }
    rows = [_row(item) for item in tested]
    context = ReportContext(
        title=f"{config.model.name}, cross-validation",
        model={"name": config.model.name, "workdir": str(workdir), "data": str(data.path)},
        config=json.loads(config.to_json()),
        ct=data.ct.to_dict(),
        design=_design(plan, by_site),
        partitions=[],
        excluded=excluded(data),
        pictures=lambda names: pictures_of(data, names, config.data.fill),
        folds=rows,
    )
    write_evaluation(
        folder,
        metrics,
        slices,
        persons,
        calibration=_calibration(tested, slices, persons, settings.aggregate, positive),
        context=context,
        settings=settings,
    )
    for name in ("slices", "persons"):
        sizes = [len(getattr(item, name)) for item in tested]
        _add_fold_columns(folder / f"{name}.csv", plan, sizes)
    write_rows(folder / FOLDS_FILE, list(rows[0]), (list(row.values()) for row in rows))


def _read_fold(fold: Fold, workdir: Path, settings: MetricSettings, positive: int) -> _Tested:
    test = fold.folder(workdir) / "test"
    slices = SlicePredictions.from_csv(test / "slices.csv")
    metrics = json.loads((test / "metrics.json").read_text(encoding="utf-8"))
    persons = person_predictions(slices, settings.aggregate, positive)
    return _Tested(fold, slices, persons, metrics)


def _at_own_thresholds(
    tested: Sequence[_Tested],
    persons: PersonPredictions,
    positive: int,
    settings: MetricSettings,
) -> dict:
    """As in `evaluation_metrics`, each fold's persons decided at their model's own threshold."""
    thresholds = [item.metrics["validation_threshold"]["threshold"] for item in tested]
    if None in thresholds:
        return {"threshold": None, "why": "not every fold has one, see folds.csv"}
    # Shifted, so that one threshold decides of all as their own ones would.
    own = np.repeat(thresholds, [len(item.persons) for item in tested])
    score = persons.probabilities[:, positive]
    moved_score = score - (own - settings.threshold)
    # Rounding must not move a case over the line.
    below = np.nextafter(settings.threshold, -np.inf)
    moved_score = np.where(
        score >= own,
        np.maximum(moved_score, settings.threshold),
        np.minimum(moved_score, below),
    )
    shifted = persons.probabilities.copy()
    shifted[:, positive] = moved_score
    moved = metrics_with_intervals(
        dataclasses.replace(persons, probabilities=shifted), positive, settings
    )
    return {
        "threshold": None,
        "why": "each fold has its own, see folds.csv",
        "person": {name: moved[name] for name in DECISION_METRICS},
    }


def _sites(
    slices: SlicePredictions,
    persons: PersonPredictions,
    positive: int,
    settings: MetricSettings,
) -> list[dict]:
    """As in `evaluation_metrics`, where a person may be several cases, but is of one site."""
    sites = np.unique(slices.site).tolist()
    return [
        {
            "site": site,
            "n_persons": len(np.unique(persons.patient_id[persons.site == site])),
            "n_slices": int(np.sum(slices.site == site)),
            "image": metrics_with_intervals(slices.of(slices.site == site), positive, settings),
            "person": metrics_with_intervals(persons.of(persons.site == site), positive, settings),
        }
        for site in (sites if len(sites) > 1 else [])
    ]


def _calibration(
    tested: Sequence[_Tested],
    slices: SlicePredictions,
    persons: PersonPredictions,
    aggregate: str,
    positive: int,
) -> Calibration:
    versions = [("as the models give it", slices, persons)]
    moved = [calibrated for fold in tested if (calibrated := fold.calibrated()) is not None]
    why = "each fold has its own, see folds.csv"
    if len(moved) < len(tested):
        why = "not every fold has one, see folds.csv"
    else:
        after = [person_predictions(item, aggregate, positive) for item in moved]
        versions.append(
            ("each fold at its own temperature", concatenate(moved), concatenate(after))
        )
    return Calibration(temperature=None, why=why, used=False, versions=versions)


def _design(plan: Sequence[Fold], by_site: bool) -> str:
    repeats = max(fold.repeat for fold in plan)
    n = max(fold.number for fold in plan)
    if by_site:
        how = f"Leave one site out: {n} models, each tested on the persons of the site it never saw"
    else:
        how = f"{n}-fold cross-validation by person, stratified by label"
    if repeats > 1:
        how += (
            f", repeated {repeats} times with other folds: a person is a case in each repeat, and "
            "the bootstrap draws persons with all their cases"
        )
    validation = sorted({len(fold.data.persons["validation"]) for fold in plan})
    numbers = " or ".join(map(str, validation))
    return f"{how}. Of each model's other persons {numbers} chose the checkpoint (validation)."


def _row(item: _Tested) -> dict[str, object]:
    """A line of the table of folds."""
    auc, accuracy = (item.metrics["person"][name]["value"] for name in ("auc", "accuracy"))
    return {
        "repeat": item.fold.repeat,
        "fold": item.fold.name,
        **{f"{split}_persons": len(members) for split, members in item.fold.data.persons.items()},
        "person_auc": _text(auc),
        "image_auc": _text(item.metrics["image"]["auc"]["value"]),
        "person_accuracy": _text(accuracy),
        "validation_threshold": _text(item.metrics["validation_threshold"]["threshold"]),
        "temperature": _text(item.metrics["calibration"]["temperature"]),
    }


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _add_fold_columns(path: Path, plan: Sequence[Fold], sizes: Sequence[int]) -> None:
    """Says of each row which model made it."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    made_by = [fold for fold, size in zip(plan, sizes, strict=True) for _ in range(size)]
    write_rows(
        path,
        [*header, "repeat", "fold"],
        ([*row, fold.repeat, fold.name] for row, fold in zip(rows, made_by, strict=True)),
    )
