"""Cross-validation by patient: each is tested once, by a model not trained on them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from drenet_jax.data.csv_tables import read_rows
from drenet_jax.data.folds import persons_of_records, site_folds, stratified_folds
from drenet_jax.data.prepared_data import PreparedData, open_data, write_fold
from drenet_jax.errors import InputError
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.evaluation.pooling import FOLDS_FILE, Fold, write_pooled
from drenet_jax.output_files import new_folder
from drenet_jax.storage import objects
from drenet_jax.storage.work_folder import WorkFolder, open_work_folder
from drenet_jax.training.config_checks import differing_fields
from drenet_jax.training.loop import train_and_evaluate

# Instead of a number of folds: each site in turn is tested by a model of all others.
SITES = "sites"

_PLAN_FILE = "plan.json"
_LOCK_FILE = ".crossvalidate.lock"


def cross_validate(
    config: ml_collections.ConfigDict,
    data_dir: str,
    folds: str,
    repeats: int,
    workdir: str | os.PathLike[str],
) -> dict[str, Any]:
    """Trains and tests every fold and pools the predictions, or resumes doing so.

    The workdir gets `repeat<r>/fold<k>/` with the fold's persons (`data`), its run (`run`) and its
    evaluation (`test`), and at the end `result/`: the files of an evaluation, and `folds.csv`.

    Args:
      config: of the training; `data.dir` is set here.
      data_dir: what `prepare` wrote; the persons of all its splits take part.
      folds: a number of folds, 2 or more, or `SITES`.
      repeats: how many times, with other folds and other first weights.
      workdir: a folder, made if needed, or an address in a bucket.

    Returns:
      what `result/metrics.json` holds.

    Raises:
      InputError: the folds cannot be made, the workdir holds another cross-validation, or a fold
        cannot be trained or evaluated.
    """
    data = open_data(data_dir)
    plan = _plan(data, folds, repeats, config.seed)
    with open_work_folder(workdir, lock_file=_LOCK_FILE, use="cross-validated") as work:
        result = work.path / "result"
        _start(work, _settings(config, data, folds, repeats))
        if not result.exists():
            for fold in plan:
                _run_fold(fold, config, work, len(plan))
            with new_folder(result, flag="--workdir") as folder:
                write_pooled(plan, config, data, work.path, folder, by_site=folds == SITES)
            work.commit(result)
        return json.loads((result / "metrics.json").read_text(encoding="utf-8"))


def fold_table(workdir: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of `result/folds.csv`."""
    _, rows = read_rows(objects.child(os.fspath(workdir), f"result/{FOLDS_FILE}"))
    return [row for _, row in rows]


def _plan(data: PreparedData, folds: str, repeats: int, seed: int) -> list[Fold]:
    persons = persons_of_records(data)
    if folds == SITES:
        if repeats != 1:
            raise InputError(
                f"--repeats={repeats}: --folds={SITES} leaves each site out once; leave --repeats "
                "out."
            )
        parts = site_folds(data, persons, seed)
        return [Fold(1, i, site, part) for i, (site, part) in enumerate(parts.items(), 1)]
    if not folds.isdecimal() or int(folds) < 2:
        raise InputError(f"--folds={folds} must be a number of 2 or more, or {SITES}.")
    return [
        Fold(repeat, i, str(i), part)
        for repeat in range(1, repeats + 1)
        for i, part in enumerate(
            stratified_folds(data, persons, int(folds), _seed(seed, repeat)), 1
        )
    ]


def _seed(seed: int, repeat: int) -> int:
    """Of the folds and of the models of a repeat."""
    return seed + repeat - 1


def _settings(
    config: ml_collections.ConfigDict, data: PreparedData, folds: str, repeats: int
) -> dict[str, Any]:
    """The settings that must stay the same when a cross-validation is resumed."""
    config = config.copy_and_resolve_references()
    # The data set may be moved; its fingerprint stays.
    config.data.dir = ""
    return {
        "folds": folds,
        "repeats": repeats,
        "data": data.fingerprint,
        "config": json.loads(config.to_json()),
    }


def _start(work: WorkFolder, settings: Mapping[str, Any]) -> None:
    """Saves the settings, or compares them with those of the cross-validation to resume.

    Raises:
      InputError: the workdir cannot be written, or holds something else.
    """
    path = work.path / _PLAN_FILE
    try:
        if not path.exists():
            if not work.is_new:
                raise InputError(
                    f"--workdir={work.name} holds other things than a cross-validation; name a new "
                    "folder."
                )
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            work.commit(path)
            return
    except OSError as error:
        raise InputError(
            f"--workdir={work.name} cannot be written ({error.strerror}); name another folder."
        ) from error
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(old, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise InputError(
            f"{work.location(path)} is damaged ({error}); restore it from a copy, or name another "
            "--workdir."
        ) from error
    differing = differing_fields(old, settings)
    if differing:
        raise InputError(
            f"--workdir={work.name} holds a cross-validation with other settings "
            f"({'; '.join(differing)}); name another folder."
        )


def _run_fold(fold: Fold, config: ml_collections.ConfigDict, work: WorkFolder, n: int) -> None:
    """Trains and evaluates a fold, unless that is done."""
    folder = fold.folder(work.path)
    if (folder / "test").exists():
        return
    persons = ", ".join(f"{split} {len(members)}" for split, members in fold.data.persons.items())
    print(f"repeat {fold.repeat}, fold {fold.name} ({n} in all): persons: {persons}", flush=True)
    write_fold(folder / "data", fold.data)
    work.commit(folder / "data")
    config = config.copy_and_resolve_references()
    config.data.dir = work.location(folder / "data")
    config.seed = _seed(config.seed, fold.repeat)
    train_and_evaluate(config, work.location(folder / "run"))
    with new_folder(folder / "test", flag="--workdir") as test, work.run(folder / "run") as run:
        evaluate_split(run, "test", test, config.data.dir)
    work.commit(folder / "test")
