"""Runs to compare: found, scored where needed, and brought into the same order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drenet_jax.errors import InputError
from drenet_jax.evaluation.persons import (
    PersonPredictions,
    SlicePredictions,
    person_predictions,
)
from drenet_jax.evaluation.settings import MetricSettings


@dataclasses.dataclass(frozen=True, eq=False)
class ComparedRun:
    """What a run says of the persons on which runs are compared.

    Attributes:
      name: for tables and legends.
      source: the folder.
      aggregate: how persons were made of slices.
      positive: the index of the positive class.
      slices, persons: of the split.
      settings: of the metrics.
    """

    name: str
    source: str
    aggregate: str
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

    Folders that are not told apart by one part keep their whole path.
    """
    parts = [Path(folder).parts for folder in folders]
    shortest = min(map(len, parts))
    for back in range(1, shortest + 1):
        names = [one[-back] for one in parts]
        if len(set(names)) == len(names):
            return names
        if len(set(names)) > 1:
            break
    return list(folders)


def _read_run(folder: str, split: str, name: str) -> ComparedRun:
    # What crossvalidate wrote has its tables one folder down.
    found = [one for one in (Path(folder), Path(folder) / "result") if _is_evaluation(one)]
    run = _of_evaluation(found[0], split, name) if found else _of_workdir(folder, split, name)
    keys = _keys(run.slices)
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(
            f"{folder} has several predictions of slice {twice[2]!r} of person {twice[0]!r}, as a "
            "repeated cross-validation does; compare runs without repeats."
        )
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    slices = run.slices.of(order)
    persons = person_predictions(slices, run.aggregate, run.positive)
    return dataclasses.replace(run, slices=slices, persons=persons)


def _is_evaluation(folder: Path) -> bool:
    return (folder / "slices.csv").is_file() and (folder / "metrics.json").is_file()


def _of_evaluation(folder: Path, split: str, name: str) -> ComparedRun:
    slices = SlicePredictions.from_csv(folder / "slices.csv")
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        found, aggregate = metrics["split"], metrics["aggregate"]
        positive = slices.labels.index(metrics["positive"])
        settings = MetricSettings(
            threshold=metrics["threshold"],
            aggregate=aggregate,
            calibration_bins=metrics["calibration_bins"],
            bootstrap_draws=metrics["draws"],
            bootstrap_seed=metrics["seed"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'metrics.json'} is not what evaluate writes ({error}); evaluate again."
        ) from error
    if found != split:
        raise InputError(
            f"--split={split}, but {folder} holds an evaluation of {found}; name that split, or "
            "evaluate this one."
        )
    persons = person_predictions(slices, aggregate, positive)
    return ComparedRun(name, str(folder), aggregate, positive, slices, persons, settings)


def _of_workdir(folder: str, split: str, name: str) -> ComparedRun:
    # Imported here: tables that are read need neither JAX nor TensorFlow.
    from drenet_jax.evaluation.evaluate import ScoredRun

    if split == "cross-validation":
        raise InputError(
            f"--split={split}, but {folder} is not a folder that crossvalidate has finished; name "
            "another folder or split."
        )
    run = ScoredRun(Path(folder), split)
    settings = MetricSettings.from_config(run.predictor.meta.config.evaluation)
    slices = run.slices(calibrated=False)
    persons = person_predictions(slices, settings.aggregate, run.positive)
    return ComparedRun(name, folder, settings.aggregate, run.positive, slices, persons, settings)


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
        lonely = min(ours ^ theirs)
        raise InputError(
            f"{both} are not of the same persons: {len(ours - theirs)} are only in the first and "
            f"{len(theirs - ours)} only in the second, for instance {str(lonely)!r}; compare runs "
            "on the same split of the same data set."
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
