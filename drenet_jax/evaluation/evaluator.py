"""The evaluation of a trained model on a split."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from drenet_jax import parallel
from drenet_jax.ct.orientation import Box
from drenet_jax.data.batches import crop_geometries, split_batches
from drenet_jax.data.duplicates import named_persons
from drenet_jax.data.identities import person_key
from drenet_jax.data.lesions import LESIONS_FILE, read_lesions
from drenet_jax.data.prepared_data import PreparedData, open_data
from drenet_jax.errors import InputError, StorageError
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
    read_audit,
    write_evaluation,
)
from drenet_jax.evaluation.pointing_game import Points, play, pointing_metrics, write_hits
from drenet_jax.evaluation.predictions import (
    PersonPredictions,
    SlicePredictions,
    person_predictions,
)
from drenet_jax.evaluation.predictor import Predictor, Scorer
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.models.slice_scorer import check_finite
from drenet_jax.storage import objects

NO_TEMPERATURE = (
    "no temperature fits the validation slices: there are none, all are correct, or the model is "
    "no better than chance on them"
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
    audit: str = "",
    load: Callable[[Path], Predictor] = Predictor.load,
) -> dict:
    """Scores a split with the best checkpoint of `workdir` and writes the result into `folder`.

    Args:
      workdir: of the run.
      split: `train`, `validation` or `test`.
      folder: an existing folder for the output files.
      data_dir: another data set, of persons that the model does not know, or its own, if that has
        moved since; "": its own, where it was.
      aggregate: how slice probabilities are aggregated (`aggregates.AGGREGATES`);
        None: as the config of the run says.
      threshold: a case is positive from this probability on; None: as the config of the run says.
      calibrated: the slices' probabilities are at the temperature fitted on the validation slices.
      explain: also play the pointing game.
      lesions: the table of lesions; "": the one that lay beside the cohort.
      other_persons: the user states that no patient of `data_dir` was in training. Needed only
        where the run's own data set is gone, by which it is checked otherwise.
      audit: the folder of an audit of this run for shortcuts, which the report shows; "": none.
      load: gives the predictor of `workdir`.

    Returns:
      what `metrics.json` holds.

    Raises:
      InputError: there is no checkpoint, the data set is gone or holds persons or pictures that
        the model knows, the split is empty, there is no temperature to calibrate with, no table of
        lesions to explain by, or the audit is of something else.
    """
    shortcuts = read_audit(Path(audit), workdir) if audit else None
    run = open_run(workdir, split, data_dir, other_persons=other_persons, load=load)
    config = run.predictor.meta.config
    positive = positive_class(run.data.labels, config.evaluation.positive_label)
    settings = settings_with_flags(config.evaluation, aggregate=aggregate, threshold=threshold)
    known_lesions = _read_lesions(run.data, lesions) if explain else {}
    points: list[Points] = []

    def keep_points(batch: Mapping[str, Any], scored: Mapping[str, np.ndarray]) -> None:
        points.append(Points.of(scored, batch["image"].shape[-1]))

    scored = run.score(run.data, split, keep_points if explain else None)
    validation = temperature = None
    if run.own_data is run.data and split == "validation":
        validation = scored
    elif run.own_data is not None and run.own_data.n_slices["validation"]:
        validation = run.score(run.own_data, "validation")
    if validation is not None:
        temperature = fit_temperature(validation[1], validation[0].label)
    if calibrated and temperature is None:
        raise InputError(f"--calibrated: {workdir}: {NO_TEMPERATURE}; leave the flag out.")

    def to_persons(slices: SlicePredictions) -> PersonPredictions:
        return person_predictions(slices, settings.aggregate, positive)

    used_temperature = temperature if calibrated else None
    slices = _at_temperature(scored, used_temperature)
    persons = to_persons(slices)
    metrics = evaluation_metrics(
        slices,
        persons,
        split=split,
        positive=positive,
        settings=settings,
        validation_threshold=None
        if validation is None
        else _threshold(to_persons(_at_temperature(validation, used_temperature)), positive),
        aggregate=settings.aggregate,
    )
    if explain:
        hits = play(slices, Points.join(points), crop_geometries(run.data, split), known_lesions)
        metrics["explain"] = pointing_metrics(slices, hits, settings)
        write_hits(folder / "explain.csv", hits)
    versions = [("before calibration", scored[0])]
    if temperature is not None:
        title = f"temperature {temperature:.3g}, fitted on validation"
        versions.append((title, _at_temperature(scored, temperature)))
    calibration = Calibration(
        temperature=temperature,
        why="" if temperature is not None else NO_TEMPERATURE,
        used=calibrated,
        versions=[(title, slices, to_persons(slices)) for title, slices in versions],
    )
    return write_evaluation(
        folder,
        metrics,
        slices,
        persons,
        calibration=calibration,
        context=context_of_run(
            run.data,
            split,
            run.predictor.identity,
            json.loads(config.to_json()),
            is_other=run.own_data is not run.data,
            audit=shortcuts,
        ),
        settings=settings,
    )


def score_split(
    scorer: Scorer,
    variables: dict,
    data: PreparedData,
    split: str,
    fill: str,
    *,
    watch: Callable[[dict[str, Any], dict[str, np.ndarray]], None] | None = None,
) -> tuple[SlicePredictions, Float[np.ndarray, "slices classes"]]:
    """Scores every slice of a split exactly once, in the order of the records.

    With several hosts, each scores its part of every batch, and all get the whole result.

    Args:
      scorer: the model.
      variables: its weights, replicated over the devices.
      data: what `prepare` wrote.
      split: `train`, `validation` or `test`; it must hold slices.
      fill: when the blank is filled (`data.fill`).
      watch: called with each batch (`split_batches`: the images and masks are this host's) and
        the outputs of this host's images.

    Returns:
      the predictions, and the logits in the same order.

    Raises:
      InputError: a result is not finite, or a batch does not fit the memory.
    """
    columns: dict[str, list] = {
        name: [] for name in ("patient_id", "slice_name", "slice_index", "site", "label")
    }
    probabilities, logits = [], []
    batch_size = scorer.batch_size * parallel.host_count()
    # Read once for the scorer, which is a batch ahead, and once for what belongs to its results.
    batches, images = itertools.tee(split_batches(data, split, batch_size=batch_size, fill=fill))
    scored = scorer.padded(variables, (batch["image"] for batch in images))
    for batch, outputs in tqdm(
        zip(batches, scored, strict=True),
        desc=f"score {split}",
        total=-(-data.n_slices[split] // batch_size),
        unit="batch",
        leave=False,
        disable=not parallel.is_first_host(),
    ):
        probabilities.append(outputs["probabilities"])
        logits.append(outputs["logits"])
        for name, column in columns.items():
            column.extend(batch[name])
        if watch is not None:
            n = len(batch["image"])
            watch(batch, {name: array[:n] for name, array in outputs.items()})
    assert probabilities, split
    # Hosts follow each other in a batch, and the last batch alone is not full: padding comes last.
    n = len(columns["label"])
    all_probabilities = parallel.gather_rows(np.stack(probabilities))[:n]
    all_logits = parallel.gather_rows(np.stack(logits))[:n]
    check_finite(all_logits)
    predictions = SlicePredictions.from_columns(data.labels, columns, all_probabilities)
    return predictions, all_logits


@dataclasses.dataclass(frozen=True, eq=False)
class OpenRun:
    """The best checkpoint of a run, and data that it may be evaluated on.

    Attributes:
      predictor: the checkpoint.
      data: the data set to score.
      own_data: the one that it was trained on, whose validation split selected the weights; None
        where that is gone.
    """

    predictor: Predictor
    data: PreparedData
    own_data: PreparedData | None

    def score(
        self, data: PreparedData, split: str, watch: Callable | None = None
    ) -> tuple[SlicePredictions, np.ndarray]:
        """As `score_split`."""
        fill = self.predictor.meta.config.data.fill
        scorer, variables = self.predictor.scorer, self.predictor.variables
        return score_split(scorer, variables, data, split, fill, watch=watch)


def open_run(
    workdir: Path,
    split: str,
    data_dir: str = "",
    *,
    other_persons: bool = False,
    load: Callable[[Path], Predictor] = Predictor.load,
) -> OpenRun:
    """Loads a run's best checkpoint; see `evaluate_split` for arguments and errors."""
    predictor = load(workdir)
    data, own_data = _open_data(predictor.meta, workdir, split, data_dir, other_persons)
    _require_unknown(predictor.meta, workdir, data, split)
    return OpenRun(predictor, data, own_data)


def _at_temperature(
    scored: tuple[SlicePredictions, np.ndarray], temperature: float | None
) -> SlicePredictions:
    slices, logits = scored
    if temperature is None:
        return slices
    return dataclasses.replace(slices, probabilities=apply_temperature(logits, temperature))


def _read_lesions(data: PreparedData, path: str) -> dict[tuple[str, str], list[Box]]:
    beside = data.records / LESIONS_FILE
    if not path and not beside.is_file():
        raise InputError(
            f"--explain: {data.name} was prepared from a cohort without a {LESIONS_FILE} beside "
            "it; name one with --lesions."
        )
    return read_lesions(path or beside)


def _open_data(
    meta: Meta, workdir: Path, split: str, data_dir: str, other_persons: bool
) -> tuple[PreparedData, PreparedData | None]:
    """The data set to score, and the run's own, whose validation split chose the weights."""
    data = open_data(data_dir or meta.config.data.dir)
    if data.labels != meta.labels:
        raise InputError(
            f"{data.name} has the labels {', '.join(data.labels)}, the model of {workdir} has "
            f"{', '.join(meta.labels)}; prepare the data with --labels={','.join(meta.labels)}."
        )
    if not data.n_slices[split]:
        raise InputError(f"--split={split}: {data.name} has no persons; name another split.")
    # Converted weights were trained elsewhere, on data that are not available here.
    if not meta.data_fingerprint or meta.data_fingerprint == data.fingerprint:
        return data, data
    if not data_dir:
        raise InputError(
            f"{data.name} was prepared anew since {workdir} was trained on it, so persons of its "
            f"{split} split may be known to the model; train again, or restore the data set."
        )
    if data.ct != meta.ct:
        raise InputError(
            f"{data.name} was prepared with {data.ct.to_dict()}, the data of {workdir} with "
            f"{meta.ct.to_dict()}; prepare the data with the same --config."
        )
    return data, _known_data(meta, workdir, data, split, other_persons)


def _known_data(
    meta: Meta, workdir: Path, data: PreparedData, split: str, other_persons: bool
) -> PreparedData | None:
    """The run's own data set, whose training and validation persons are not in `data`."""
    folder = meta.config.data.dir
    own = None
    if objects.is_remote(folder):
        # Gone, or without access.
        with contextlib.suppress(InputError, StorageError):
            own = open_data(folder)
    elif Path(folder).is_dir():
        own = open_data(folder)
    if own is None or own.fingerprint != meta.data_fingerprint:
        if other_persons:
            return None
        raise InputError(
            f"whether {workdir} was trained on persons of {data.name} cannot be checked, since the "
            f"data set that it was trained on is no longer at {folder}; restore it, or pass "
            "--other_persons if they are different patients."
        )
    # Compared by key: "P01" and "p01" are one patient.
    known = {person_key(person) for name in ("train", "validation") for person in own.persons[name]}
    common = sorted(person for person in data.persons[split] if person_key(person) in known)
    if common:
        raise InputError(
            f"{len(common)} persons of the {split} split of {data.name} have the patient_id of "
            f"persons that {workdir} was trained or selected on ({common[0]!r}); remove them from "
            "the cohort, or rename them if they are different patients."
        )
    return own


def _require_unknown(meta: Meta, workdir: Path, data: PreparedData, split: str) -> None:
    """Refuses persons whose pictures the model was trained or selected on, whatever their names.

    Raises:
      InputError: there are such persons.
    """
    # Converted weights were trained elsewhere. A run may be evaluated on its own patients.
    is_own = meta.data_fingerprint == data.fingerprint
    if not meta.data_fingerprint or (is_own and split != "test"):
        return
    with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
        digests = checkpoints.digests(checkpoints.best_step)
    assert digests is not None  # a run keeps them with each checkpoint
    known = data.digests.known(digests.all, data.persons[split])
    if known:
        raise InputError(
            f"{workdir} was trained or selected on pictures of {len(known)} persons of the {split} "
            f"split of {data.name}, under these or other names: {named_persons(known)}; remove "
            "them from the cohort and prepare it again."
        )


def _threshold(validation: PersonPredictions, positive: int) -> float | None:
    """The threshold that maximizes Youden's J on the validation patients."""
    return youden_threshold(
        np.equal(validation.label, positive), validation.probabilities[:, positive]
    )
