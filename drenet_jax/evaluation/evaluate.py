"""The evaluation of a trained model on a split, and the files that tell it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from drenet_jax.data.records import PreparedData, open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation import figures
from drenet_jax.evaluation.inference import Predictor
from drenet_jax.evaluation.metrics import evaluation_metrics, youden_threshold
from drenet_jax.evaluation.persons import (
    PersonPredictions,
    SlicePredictions,
    person_predictions,
)
from drenet_jax.evaluation.report import evaluation_report
from drenet_jax.evaluation.splits import positive_class, score_split

# The bootstrap draws the same persons for every run and model, so that runs can be compared.
BOOTSTRAP_SEED = 0


def evaluate_split(workdir: Path, split: str, folder: Path, data_dir: str = "") -> dict:
    """Scores a split with the best checkpoint of `workdir` and writes the result into `folder`.

    Args:
      workdir: of the run.
      data_dir: the data set that it was trained on, if it has moved since, or any data set for
        converted weights; "": where it was.
      split: `train`, `validation` or `test`.
      folder: an existing folder for the files of DESIGN section 2.

    Returns:
      what `metrics.json` holds.

    Raises:
      InputError: there is no checkpoint, the data set is gone or another, or the split is empty.
    """
    predictor = Predictor.load(workdir)
    config = predictor.meta.config
    data = open_data(data_dir or config.data.dir)
    if data.labels != predictor.meta.labels:
        raise InputError(
            f"{data.path} has the labels {', '.join(data.labels)}, the model of {workdir} has "
            f"{', '.join(predictor.meta.labels)}; prepare the data with "
            f"--labels={','.join(predictor.meta.labels)}."
        )
    # Converted weights were trained elsewhere, on data that nobody here has.
    trained_on = predictor.meta.data_fingerprint
    if trained_on and trained_on != data.fingerprint:
        raise InputError(
            f"{data.path} was prepared anew since {workdir} was trained on it, so persons of its "
            f"{split} split may be known to the model; train again, or restore the data set."
        )
    if not data.n_slices[split]:
        raise InputError(f"--split={split}: {data.path} has nobody in it; name another split.")
    positive = positive_class(data.labels, config.evaluation.positive_label)

    slices = _score(predictor, data, split)
    persons = person_predictions(slices)
    if split == "validation":
        threshold = _validation_threshold(persons, positive)
    elif data.n_slices["validation"]:
        validation = person_predictions(_score(predictor, data, "validation"))
        threshold = _validation_threshold(validation, positive)
    else:
        threshold = None
    metrics = evaluation_metrics(
        slices,
        persons,
        split=split,
        positive=positive,
        draws=config.evaluation.bootstrap_draws,
        seed=BOOTSTRAP_SEED,
        validation_threshold=threshold,
    )

    slices.to_csv(folder / "slices.csv")
    persons.to_csv(folder / "persons.csv")
    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    plots = {name: folder / f"{name}.png" for name in ("roc", "confusion", "calibration")}
    figures.roc_figure(plots["roc"], slices, persons, metrics)
    figures.confusion_figure(plots["confusion"], slices, persons, metrics)
    figures.calibration_figure(plots["calibration"], slices, persons, metrics)
    report = evaluation_report(
        metrics,
        slices,
        persons,
        excluded=_excluded(data.path / "excluded.csv"),
        model={**predictor.identity, "data": str(data.path)},
        settings=json.loads(config.to_json()),
        figures=plots,
    )
    (folder / "report.html").write_text(report, encoding="utf-8")
    return metrics


def _score(predictor: Predictor, data: PreparedData, split: str) -> SlicePredictions:
    fill = predictor.meta.config.data.fill
    return score_split(predictor.scorer, predictor.variables, data, split, fill)[0]


def _validation_threshold(validation: PersonPredictions, positive: int) -> float | None:
    """The threshold that is best on validation persons (DESIGN 3.7)."""
    return youden_threshold(
        np.equal(validation.label, positive), validation.probabilities[:, positive]
    )


def _excluded(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); run prepare again.") from error
