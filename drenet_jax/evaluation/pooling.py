"""A cross-validation's predictions, pooled: each is of a model that never saw the person."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from drenet_jax.data.csv_tables import write_rows
from drenet_jax.data.prepared_data import PreparedData
from drenet_jax.evaluation.calibration import apply_temperature
from drenet_jax.evaluation.decisions import MetricSettings, positive_class
from drenet_jax.evaluation.evaluation_files import (
    Calibration,
    evaluation_metrics,
    excluded,
    pictures_of,
    write_evaluation,
)
from drenet_jax.evaluation.evaluation_report import ReportContext
from drenet_jax.evaluation.predictions import (
    PersonPredictions,
    SlicePredictions,
    concatenate,
    person_predictions,
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
    slices = concatenate([fold.slices for fold in tested])
    # Each repeat tests everybody once: a person is one case in each, and the bootstrap, which draws
    # persons, draws all of a person's cases together.
    persons = concatenate([fold.persons for fold in tested])
    thresholds = [fold.metrics["validation_threshold"]["threshold"] for fold in tested]
    is_complete = None not in thresholds
    metrics = evaluation_metrics(
        slices,
        persons,
        split="cross-validation",
        positive=positive,
        settings=settings,
        validation_threshold=np.repeat(thresholds, [len(fold.persons) for fold in tested])
        if is_complete
        else None,
        aggregate=settings.aggregate,
        # Of several repeats a person has several cases; all are of one site.
        site_persons=lambda site: persons.of(persons.site == site),
    )
    metrics["folds"] = len(plan)
    metrics["validation_threshold"]["why"] = _own_values(is_complete)
    rows = [_row(fold) for fold in tested]
    context = ReportContext(
        title=f"{config.model.name}, cross-validation",
        model={"name": config.model.name, "workdir": str(workdir), "data": data.name},
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
    for name, table in (("slices", slices), ("persons", persons)):
        made_by = [fold.fold for fold in tested for _ in range(len(getattr(fold, name)))]
        origin: dict[str, list] = {
            "repeat": [fold.repeat for fold in made_by],
            "fold": [fold.name for fold in made_by],
        }
        table.to_csv(folder / f"{name}.csv", origin)
    write_rows(folder / FOLDS_FILE, list(rows[0]), (list(row.values()) for row in rows))


def _read_fold(fold: Fold, workdir: Path, settings: MetricSettings, positive: int) -> _Tested:
    test = fold.folder(workdir) / "test"
    slices = SlicePredictions.from_csv(test / "slices.csv")
    metrics = json.loads((test / "metrics.json").read_text(encoding="utf-8"))
    persons = person_predictions(slices, settings.aggregate, positive)
    return _Tested(fold, slices, persons, metrics)


def _calibration(
    tested: Sequence[_Tested],
    slices: SlicePredictions,
    persons: PersonPredictions,
    aggregate: str,
    positive: int,
) -> Calibration:
    versions = [("before calibration", slices, persons)]
    calibrated = [fold.calibrated() for fold in tested]
    known = [slices for slices in calibrated if slices is not None]
    is_complete = len(known) == len(tested)
    if is_complete:
        after = [person_predictions(slices, aggregate, positive) for slices in known]
        versions.append(
            ("each fold at its own temperature", concatenate(known), concatenate(after))
        )
    return Calibration(
        temperature=None, why=_own_values(is_complete), used=False, versions=versions
    )


def _own_values(is_complete: bool) -> str:
    """Why there is no one threshold or temperature."""
    return f"{'each fold has its own' if is_complete else 'not every fold has one'}, see folds.csv"


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


def _row(fold: _Tested) -> dict[str, object]:
    """A line of the table of folds."""
    auc, accuracy = (fold.metrics["person"][name]["value"] for name in ("auc", "accuracy"))
    return {
        "repeat": fold.fold.repeat,
        "fold": fold.fold.name,
        **{f"{split}_persons": len(members) for split, members in fold.fold.data.persons.items()},
        "person_auc": _text(auc),
        "image_auc": _text(fold.metrics["image"]["auc"]["value"]),
        "person_accuracy": _text(accuracy),
        "validation_threshold": _text(fold.metrics["validation_threshold"]["threshold"]),
        "temperature": _text(fold.metrics["calibration"]["temperature"]),
    }


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
