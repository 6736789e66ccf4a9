"""The evaluation of a trained model on a split."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from drenet_jax.ct.orientation import Box
from drenet_jax.data.batches import crop_geometries
from drenet_jax.data.duplicates import named_persons
from drenet_jax.data.identities import person_key
from drenet_jax.data.lesions import LESIONS_FILE, read_lesions
from drenet_jax.data.prepared_data import PreparedData, open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.calibration import apply_temperature, fit_temperature
from drenet_jax.evaluation.decisions import (
    positive_class,
    settings_with_flags,
    youden_threshold,
)
from drenet_jax.evaluation.evaluation_files import (
    Calibration,
    context_of_run,
    evaluation_metrics,
    write_evaluation,
)
from drenet_jax.evaluation.pointing_game import Points, play, pointing_metrics, write_hits
from drenet_jax.evaluation.predictions import (
    PersonPredictions,
    SlicePredictions,
    person_predictions,
)
from drenet_jax.evaluation.predictor import Predictor, score_split
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.models.checkpoints import Checkpoints

NO_TEMPERATURE = (
    "no temperature suits the validation slices: there are none, all are right, or the model is no "
    "better than chance on them"
)


def evaluate_split(
    workdir: Path,
    split: str,
    folder: Path,
    data_dir: str = "",
    *,
    aggregate: str | None = None,
    threshold: float | None = None,
    calibrated: bool = False,
    explain: bool = False,
    lesions: str = "",
    other_persons: bool = False,
) -> dict:
    """Scores a split with the best checkpoint of `workdir` and writes the result into `folder`.

    Args:
      workdir: of the run.
      split: `train`, `validation` or `test`.
      folder: an existing folder for the output files.
      data_dir: another data set, of persons that the model does not know, or its own, if that has
        moved since; "": its own, where it was.
      aggregate: how a person's probabilities are made of the slices' (`predictions.AGGREGATES`);
        None: as the config of the run says.
      threshold: a case is positive from this probability on; None: as the config of the run says.
      calibrated: the slices' probabilities are at the temperature that suits validation best.
      explain: also play the pointing game.
      lesions: the table of lesions; "": the one that lay beside the cohort.
      other_persons: the user states that no patient of `data_dir` was in training. Needed only
        where the run's own data set is gone, by which it is checked otherwise.

    Returns:
      what `metrics.json` holds.

    Raises:
      InputError: there is no checkpoint, the data set is gone or holds persons or pictures that
        the model knows, the split is empty, there is no temperature to calibrate with, or no table
        of lesions to explain by.
    """
    run = ScoredRun(
        workdir,
        split,
        data_dir,
        lesions=lesions if explain else None,
        other_persons=other_persons,
    )
    config = run.predictor.meta.config
    settings = settings_with_flags(config.evaluation, aggregate=aggregate, threshold=threshold)
    if calibrated:
        run.require_temperature()
    to_persons = functools.partial(
        person_predictions, aggregate=settings.aggregate, positive=run.positive
    )
    slices, validation = run.slices(calibrated), run.validation(calibrated)
    persons = to_persons(slices)
    metrics = evaluation_metrics(
        slices,
        persons,
        split=split,
        positive=run.positive,
        settings=settings,
        validation_threshold=None
        if validation is None
        else _threshold(to_persons(validation), run.positive),
        aggregate=settings.aggregate,
    )
    if explain:
        pointed = play(slices, run.points, crop_geometries(run.data, split), run.lesions)
        metrics["explain"] = pointing_metrics(slices, pointed, settings)
        write_hits(folder / "explain.csv", pointed)
    versions = [("as the model gives it", run.slices(calibrated=False))]
    if run.temperature is not None:
        title = f"at the temperature {run.temperature:.3g}, fitted on validation"
        versions.append((title, run.slices(calibrated=True)))
    calibration = Calibration(
        temperature=run.temperature,
        why="" if run.temperature is not None else NO_TEMPERATURE,
        used=calibrated,
        versions=[(title, slices, to_persons(slices)) for title, slices in versions],
    )
    identity, config = run.predictor.identity, json.loads(config.to_json())
    return write_evaluation(
        folder,
        metrics,
        slices,
        persons,
        calibration=calibration,
        context=context_of_run(run.data, split, identity, config, is_other=run.is_other),
        settings=settings,
    )


class ScoredRun:
    """A run's predictions of a split, and of its validation split where there is one.

    Attributes:
      predictor: the best checkpoint.
      data: the data set that is scored.
      is_other: whether it is not the one that the run was trained on.
      positive: the index of the positive class.
      lesions: those that are known, where the model is asked to point at them; else none.
    """

    def __init__(
        self,
        workdir: Path,
        split: str,
        data_dir: str = "",
        *,
        lesions: str | None = None,
        other_persons: bool = False,
    ):
        """Scores; see `evaluate_split` for the arguments and errors.

        Without `lesions` the model is not asked to point.
        """
        self._workdir = workdir
        self._points: list[Points] = []
        self.predictor = Predictor.load(workdir)
        self.data, self._own_data = _open_data(
            self.predictor, workdir, split, data_dir, other_persons
        )
        _require_unknown(self.predictor.meta, workdir, self.data, split, other_persons)
        self.is_other = self._own_data is not self.data
        config = self.predictor.meta.config
        self.positive = positive_class(self.data.labels, config.evaluation.positive_label)
        self._split = split
        is_pointing = lesions is not None
        # Before the scoring, which takes longer.
        self.lesions = {} if lesions is None else _read_lesions(self.data, lesions)
        self._scored = self._score(self.data, split, self._keep_points if is_pointing else None)

    @functools.cached_property
    def temperature(self) -> float | None:
        """Fitted on the validation slices; None where there are none, or none fits."""
        if self._validation is None:
            return None
        slices, logits = self._validation
        return fit_temperature(logits, slices.label)

    @functools.cached_property
    def _validation(self) -> tuple[SlicePredictions, np.ndarray] | None:
        if self._own_data is None or not self._own_data.n_slices["validation"]:
            return None
        if self._own_data is self.data and self._split == "validation":
            return self._scored
        return self._score(self._own_data, "validation")

    @property
    def points(self) -> Points:
        """Where the model points on the split's slices, if it was asked to."""
        return Points.join(self._points)

    def _keep_points(self, images: np.ndarray, scored: Mapping[str, np.ndarray]) -> None:
        self._points.append(Points.of(scored, images.shape[-1]))

    def slices(self, calibrated: bool) -> SlicePredictions:
        """The split's slices, at the temperature or as the model gives them."""
        return self._at_temperature(self._scored, calibrated)

    def validation(self, calibrated: bool) -> SlicePredictions | None:
        """Likewise those of the run's own validation split; None where there is none."""
        if self._validation is None:
            return None
        return self._at_temperature(self._validation, calibrated)

    def require_temperature(self) -> None:
        """Raises InputError if there is no temperature."""
        if self.temperature is None:
            raise InputError(
                f"--calibrated: {self._workdir}: {NO_TEMPERATURE}; leave the flag out."
            )

    def _score(
        self, data: PreparedData, split: str, watch: Callable | None = None
    ) -> tuple[SlicePredictions, np.ndarray]:
        fill = self.predictor.meta.config.data.fill
        scorer, variables = self.predictor.scorer, self.predictor.variables
        return score_split(scorer, variables, data, split, fill, watch=watch)

    def _at_temperature(
        self, scored: tuple[SlicePredictions, np.ndarray], calibrated: bool
    ) -> SlicePredictions:
        slices, logits = scored
        if not calibrated:
            return slices
        assert self.temperature is not None
        probabilities = apply_temperature(logits, self.temperature)
        return dataclasses.replace(slices, probabilities=probabilities)


def _read_lesions(data: PreparedData, path: str) -> dict[tuple[str, str], list[Box]]:
    beside = data.records / LESIONS_FILE
    if not path and not beside.is_file():
        raise InputError(
            f"--explain: {data.path} was prepared from a cohort without a {LESIONS_FILE} beside "
            "it; name one with --lesions."
        )
    return read_lesions(path or beside)


def _open_data(
    predictor: Predictor, workdir: Path, split: str, data_dir: str, other_persons: bool
) -> tuple[PreparedData, PreparedData | None]:
    """The data set to score, and the run's own, whose validation split chose the weights."""
    meta = predictor.meta
    data = open_data(data_dir or meta.config.data.dir)
    if data.labels != meta.labels:
        raise InputError(
            f"{data.path} has the labels {', '.join(data.labels)}, the model of {workdir} has "
            f"{', '.join(meta.labels)}; prepare the data with --labels={','.join(meta.labels)}."
        )
    if not data.n_slices[split]:
        raise InputError(f"--split={split}: {data.path} has no persons; name another split.")
    # Converted weights were trained elsewhere, on data that are not available here.
    if not meta.data_fingerprint or meta.data_fingerprint == data.fingerprint:
        return data, data
    if not data_dir:
        raise InputError(
            f"{data.path} was prepared anew since {workdir} was trained on it, so persons of its "
            f"{split} split may be known to the model; train again, or restore the data set."
        )
    if data.ct != meta.ct:
        raise InputError(
            f"{data.path} was prepared with {data.ct.to_dict()}, the data of {workdir} with "
            f"{meta.ct.to_dict()}; prepare the data with the same --config."
        )
    return data, _known_data(meta, workdir, data, split, other_persons)


def _known_data(
    meta: Meta, workdir: Path, data: PreparedData, split: str, other_persons: bool
) -> PreparedData | None:
    """The run's own data set, whose training and validation persons are not in `data`."""
    folder = Path(meta.config.data.dir)
    own = open_data(folder) if folder.is_dir() else None
    if own is None or own.fingerprint != meta.data_fingerprint:
        if other_persons:
            return None
        raise InputError(
            f"whether {workdir} was trained on persons of {data.path} cannot be checked, since the "
            f"data set that it was trained on is not at {folder} any more; put it back, or say "
            "--other_persons if you know that they are others."
        )
    # However they are spelled: "P01" here is hardly another person than "p01" there.
    known = {person_key(person) for name in ("train", "validation") for person in own.persons[name]}
    common = sorted(person for person in data.persons[split] if person_key(person) in known)
    if common:
        raise InputError(
            f"{len(common)} persons of the {split} split of {data.path} have the patient_id of "
            f"persons that {workdir} was trained or chosen on ({common[0]!r}); take them out of "
            "the cohort, or name them otherwise if they are others."
        )
    return own


def _require_unknown(
    meta: Meta, workdir: Path, data: PreparedData, split: str, other_persons: bool
) -> None:
    """Refuses persons whose pictures the model was trained or chosen on, whatever their names.

    Raises:
      InputError: there are such persons, or it is not known on which pictures it was trained.
    """
    # Converted weights were trained elsewhere. A run may always be asked about its own persons.
    is_own = meta.data_fingerprint == data.fingerprint
    if not meta.data_fingerprint or (is_own and split != "test"):
        return
    with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
        digests = checkpoints.digests(checkpoints.best_step)
    if digests is None:
        if is_own or other_persons:
            return
        raise InputError(
            f"whether {workdir} was trained on pictures of {data.path} cannot be checked, since an "
            "earlier version of drenet_jax wrote it; train again, or say --other_persons if you "
            "know that they are others."
        )
    known = data.digests.known(digests.all, data.persons[split])
    if known:
        raise InputError(
            f"{workdir} was trained or chosen on pictures of {len(known)} persons of the {split} "
            f"split of {data.path}, under these or other names: {named_persons(known)}; take "
            "them out of the cohort and prepare it again."
        )


def _threshold(validation: PersonPredictions, positive: int) -> float | None:
    """The threshold that maximizes Youden's J on the validation patients."""
    return youden_threshold(
        np.equal(validation.label, positive), validation.probabilities[:, positive]
    )
