"""The audit for shortcuts: does anything but the lungs predict the labels as well as a model?

DeGrave et al., Nature Machine Intelligence 2021; Maguolo and Nanni, Information Fusion 2021.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from drenet_jax.data.folds import persons_of_records, stratified_folds
from drenet_jax.data.prepared_data import PreparedData, open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.comparison import read_evaluation
from drenet_jax.evaluation.decisions import MetricSettings, positive_class
from drenet_jax.evaluation.metrics import Metric, number_text, ranking_metrics
from drenet_jax.evaluation.predictions import (
    Predictions,
    SlicePredictions,
    concatenate,
    person_predictions,
)
from drenet_jax.evaluation.statistics import all_but_one, person_draws, with_interval
from drenet_jax.shortcuts.controls import (
    CONTROLS,
    LUNGS,
    ControlFeatures,
    Network,
    control_features,
    slice_keys,
)

MODEL = "model"
_CHANCE = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class AuditedModel:
    """A model's predictions of persons that it was not trained on.

    Attributes:
      source: the workdir.
      data: the data set.
      slices: the predictions.
      positive: the index of the positive class.
      settings: of the metrics.
      is_cross_validation: whether everybody was scored, by models of others.
    """

    source: str
    data: PreparedData
    slices: SlicePredictions
    positive: int
    settings: MetricSettings
    is_cross_validation: bool


def read_model(workdir: Path, data_dir: str = "") -> AuditedModel:
    """A run's predictions of its validation and test persons, or those of a cross-validation.

    Args:
      workdir: of `train` or `crossvalidate`.
      data_dir: the data set, if it was moved.

    Raises:
      InputError: it is neither, or has no such persons.
    """
    result = workdir / "result"
    if (result / "slices.csv").is_file():
        slices, positive, settings = read_evaluation(result, "cross-validation")
        data = open_data(data_dir or open_data(workdir / "repeat1" / "fold1" / "data").records_name)
        slices = _mean_of_repeats(slices)
        return AuditedModel(str(workdir), data, slices, positive, settings, True)
    # Imported here: what is read needs neither checkpoints nor a compiled network.
    from drenet_jax.evaluation.evaluator import open_run
    from drenet_jax.models.checkpoints import Checkpoints

    with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
        trained_on = checkpoints.meta(checkpoints.best_step).config.data.dir
    data = open_data(data_dir or trained_on)
    splits = [split for split in ("validation", "test") if data.n_slices[split]]
    if not splits:
        raise InputError(
            f"{data.name} has neither validation nor test persons; cross-validate instead."
        )
    run = open_run(workdir, splits[-1], data_dir)
    parts = [run.score(run.data, split)[0] for split in splits]
    if run.own_data is not run.data:
        raise InputError(
            f"{run.data.name} is not the data set that {workdir} was trained on; give that one, "
            "whose training persons the controls learn from."
        )
    evaluation = run.predictor.meta.config.evaluation
    positive = positive_class(run.data.labels, evaluation.positive_label)
    settings = MetricSettings.from_config(evaluation)
    return AuditedModel(str(workdir), run.data, concatenate(parts), positive, settings, False)


def _mean_of_repeats(slices: SlicePredictions) -> SlicePredictions:
    keys = slice_keys(slices)
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    number = {key: i for i, key in enumerate(first)}
    group = np.array([number[key] for key in keys])
    counts = np.bincount(group)
    means = np.stack([np.bincount(group, column) for column in slices.probabilities.T], axis=1)
    rows = slices.of(np.array(list(first.values())))
    return dataclasses.replace(rows, probabilities=means / counts[:, None])


def audit(
    config: ml_collections.ConfigDict,
    network: Network,
    *,
    model: AuditedModel | None = None,
    data: PreparedData | None = None,
) -> dict[str, Any]:
    """Compares a model, or the lungs by a frozen network, with what sees no lungs.

    Args:
      config: `configs/audit.py`.
      network: frozen; gives features of crops.
      model: to audit; None: the data set alone.
      data: to audit without a model.

    Returns:
      what `audit.json` holds: "evaluations" (which persons, and rows with AUCs and differences) and
      "verdict".

    Raises:
      InputError: the facts of the files are missing, or the folds cannot be made.
    """
    if model is not None:
        data, positive, settings = model.data, model.positive, model.settings
    else:
        assert data is not None
        positive, settings = positive_class(data.labels, ""), MetricSettings()
    try:
        folds = stratified_folds(data, persons_of_records(data), config.folds, config.seed)
    except InputError as error:
        raise InputError(str(error).replace("--folds", "--config.folds")) from error
    features = control_features(data, config.batch_size, network)
    person = features.slices.patient_id
    tests = [np.isin(person, fold.persons["test"]) for fold in folds]
    scored: dict[str, SlicePredictions] = {}
    held_out: dict[str, SlicePredictions] = {}
    is_held_out = np.zeros(len(person), bool)
    if model is not None:
        is_scored = np.isin(person, model.slices.patient_id) | model.is_cross_validation
        _require_same_slices(model, features.slices.of(is_scored))
        if not model.is_cross_validation:
            is_held_out = is_scored
    for name in (name for name in CONTROLS if name in features.features):
        c = config.c_features if CONTROLS[name].is_wide else config.c_facts
        parts = [features.scores(name, ~test, test, c) for test in tests]
        scored[name] = concatenate(parts)
        if is_held_out.any():
            held_out[name] = features.scores(name, features.split == "train", is_held_out, c)
    evaluations = []
    if held_out and model is not None:
        evaluations.append(
            _evaluation(
                "held-out persons",
                "the controls learn from the run's training persons; all are scored on its "
                "validation and test persons (validation chose the model's weights)",
                {MODEL: model.slices, **held_out},
                features,
                positive,
                settings,
            )
        )
    pooled = {MODEL: model.slices} if model is not None and model.is_cross_validation else {}
    evaluations.append(
        _evaluation(
            "cross-validation",
            f"all persons, each scored by classifiers of others ({config.folds} folds by person)",
            {**pooled, **scored},
            features,
            positive,
            settings,
        )
    )
    return {
        "source": model.source if model else "",
        "data": data.name,
        "labels": list(data.labels),
        "positive": data.labels[positive],
        "config": json.loads(config.to_json()),
        "draws": settings.bootstrap_draws,
        "seed": settings.bootstrap_seed,
        "evaluations": evaluations,
        "verdict": verdict(evaluations[0], config.margin),
    }


def _require_same_slices(model: AuditedModel, slices: SlicePredictions) -> None:
    ours, theirs = set(slice_keys(slices)), set(slice_keys(model.slices))
    if ours != theirs or slices.labels != model.slices.labels:
        raise InputError(
            f"{model.source} has scored other slices or labels than {model.data.name} holds; name "
            "the data set that it was made from in --data."
        )


def _evaluation(
    name: str,
    how: str,
    scored: Mapping[str, SlicePredictions],
    features: ControlFeatures,
    positive: int,
    settings: MetricSettings,
) -> dict[str, Any]:
    reference = MODEL if MODEL in scored else LUNGS
    drawn: dict[str, dict[str, _Resampled]] = {}
    for key, slices in scored.items():
        aggregate = settings.aggregate if key == MODEL else "mean"
        persons = person_predictions(slices, aggregate, positive)
        drawn[key] = {
            "image": _resample(slices, positive, settings),
            "person": _resample(persons, positive, settings),
        }
    rows = []
    for key, levels in drawn.items():
        row: dict[str, Any] = {"name": key, "title": "the model"}
        row["kind"] = MODEL
        if key != MODEL:
            row["title"] = CONTROLS[key].title
            row["kind"] = "reference" if CONTROLS[key].is_reference else "control"
        for level, resampled in levels.items():
            row[f"{level}_auc"] = resampled.metric()
            if key != reference:
                less = resampled.less(drawn[reference][level])
                row[f"{level}_difference"] = less.metric()
        rows.append(row)
    first = scored[reference]
    return {
        "name": name,
        "how": how,
        "reference": reference,
        "n_persons": len(np.unique(first.patient_id)),
        "n_slices": len(first),
        "rows": rows,
        "left_out": dict(features.why_missing),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Resampled:
    """An AUC of the sample, of the draws of persons, and without each person."""

    value: np.ndarray
    drawn: np.ndarray
    left_out: np.ndarray

    def less(self, other: _Resampled) -> _Resampled:
        """The paired difference: both were evaluated on the same draws."""
        return _Resampled(
            self.value - other.value, self.drawn - other.drawn, self.left_out - other.left_out
        )

    def metric(self) -> Metric:
        value = None if np.isnan(self.value[0]) else float(self.value[0])
        why = "" if value is not None else "only one class present"
        return with_interval(value, self.drawn, self.left_out, why=why)


def _resample(predictions: Predictions, positive: int, settings: MetricSettings) -> _Resampled:
    person, times = person_draws(
        predictions.patient_id, settings.bootstrap_draws, settings.bootstrap_seed
    )
    n = times.shape[1]
    is_positive, score = predictions.label == positive, predictions.probabilities[:, positive]
    return _Resampled(
        *(
            ranking_metrics(is_positive, score, person, counts, ())["auc"]
            for counts in (np.ones((1, n)), times, all_but_one(n))
        )
    )


def verdict(evaluation: Mapping[str, Any], margin: float) -> dict[str, Any]:
    """What the persons' AUCs say, in plain words.

    A control is as good as the model if its AUC is above chance (the interval's lower end above
    1/2) and less than `margin` below the model's. It is worse if the interval of the difference
    lies below -`margin`. Otherwise there are too few persons to tell.

    Args:
      evaluation: of `audit.json`.
      margin: of AUC.

    Returns:
      "conclusion": "shortcut", "no_shortcut", "undecided" or "no_signal"; "sentences"; "controls":
      those that the first or third of them is about.
    """
    rows = {row["name"]: row for row in evaluation["rows"]}
    reference = rows[evaluation["reference"]]
    is_model = evaluation["reference"] == MODEL
    subject = "the model" if is_model else "the lungs alone"
    auc = reference["person_auc"]
    if not _is_above_chance(auc):
        sentence = f"The AUC of {subject} ({_range(auc)}) is not above chance: nothing to explain."
        return {"conclusion": "no_signal", "sentences": [sentence], "controls": []}
    as_good, unclear = [], []
    for row in evaluation["rows"]:
        if row["kind"] != "control" or row["person_difference"]["value"] is None:
            continue
        difference = row["person_difference"]
        if _is_above_chance(row["person_auc"]) and difference["value"] > -margin:
            as_good.append(row)
        elif difference["high"] is None or difference["high"] >= -margin:
            unclear.append(row)
    if as_good:
        end = (
            "the model's AUC is no evidence that it recognises disease."
            if is_model
            else "an AUC on these data is no evidence that a model recognises disease."
        )
        sentences = [
            f"{_capital(CONTROLS[row['name']].claim)} as well as {subject} "
            f"{'does' if is_model else 'do'} (AUC {number_text(row['person_auc']['value'])} "
            f"against {number_text(auc['value'])}, difference "
            f"{_range(row['person_difference'], plus=True)}): {end}"
            for row in as_good
        ]
        return _verdict("shortcut", sentences, as_good)
    if unclear:
        listed = "; ".join(
            f"{row['title']}: difference {_range(row['person_difference'], plus=True)}"
            for row in unclear
        )
        sentence = (
            f"{evaluation['n_persons']} persons are too few to tell whether a control comes within "
            f"{margin:g} of {subject} ({listed})."
        )
        return _verdict("undecided", [sentence], unclear)
    sentence = f"No control comes within {margin:g} of {subject} (AUC {_range(auc)})."
    return _verdict("no_shortcut", [sentence], [])


def _is_above_chance(auc: Mapping[str, Any]) -> bool:
    # Draws of a perfect ranking are all alike, and give no interval.
    return auc["value"] == 1 if auc["low"] is None else auc["low"] > _CHANCE


def _verdict(conclusion: str, sentences: list[str], rows: list[Any]) -> dict[str, Any]:
    controls = [row["name"] for row in rows]
    return {"conclusion": conclusion, "sentences": sentences, "controls": controls}


def _range(metric: Mapping[str, Any], *, plus: bool = False) -> str:
    value, low, high = (number_text(metric[name], plus=plus) for name in ("value", "low", "high"))
    return f"{value}, {low} to {high}" if low else value


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
