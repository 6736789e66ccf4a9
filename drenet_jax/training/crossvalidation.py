"""Cross-validation by patient: each is tested once, by a model not trained on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from drenet_jax.data.folds import persons_of_records, site_folds, stratified_folds
from drenet_jax.data.prepared_data import PreparedData, open_data, write_fold
from drenet_jax.errors import InputError
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.evaluation.pooling import FOLDS_FILE, Fold, write_pooled
from drenet_jax.output_files import locked_folder, new_folder
from drenet_jax.training.config_checks import differing_fields
from drenet_jax.training.loop import train_and_evaluate

# Instead of a number of folds: each site in turn is tested by a model of all others.
SITES = "sites"

_PLAN_FILE = "plan.json"
_LOCK_FILE = ".crossvalidate.lock"


def cross_validate(
    config: ml_collections.ConfigDict, data_dir: str, folds: str, repeats: int, workdir: Path
) -> dict[str, Any]:
    """Trains and tests every fold and pools the predictions, or resumes doing so.

    The workdir gets `repeat<r>/fold<k>/` with the fold's persons (`data`), its run (`run`) and its
    evaluation (`test`), and at the end `result/`: the files of an evaluation, and `folds.csv`.

    Args:
      config: of the training; `data.dir` is set here.
      data_dir: what `prepare` wrote; the persons of all its splits take part.
      folds: a number of folds, 2 or more, or `SITES`.
      repeats: how many times, with other folds and other first weights.
      workdir: made if needed.

    Returns:
      what `result/metrics.json` holds.

    Raises:
      InputError: the folds cannot be made, the workdir holds another cross-validation, or a fold
        cannot be trained or evaluated.
    """
    data = open_data(data_dir)
    plan = _plan(data, folds, repeats, config.seed)
    result = workdir / "result"
    with locked_folder(workdir, name=_LOCK_FILE, use="cross-validated"):
        _start(workdir, _settings(config, data, folds, repeats))
        if not result.exists():
            for fold in plan:
                _run_fold(fold, config, workdir, len(plan))
            with new_folder(result, flag="--workdir") as folder:
                write_pooled(plan, config, data, workdir, folder, by_site=folds == SITES)
    return json.loads((result / "metrics.json").read_text(encoding="utf-8"))


def fold_table(workdir: Path) -> list[dict[str, str]]:
    """The rows of `result/folds.csv`."""
    with (workdir / "result" / FOLDS_FILE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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


def _start(workdir: Path, settings: Mapping[str, Any]) -> None:
    """Saves the settings, or compares them with those of the cross-validation to resume.

    Raises:
      InputError: the workdir cannot be written, or holds something else.
    """
    path = workdir / _PLAN_FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(path.name != _LOCK_FILE for path in workdir.iterdir()):
                raise InputError(
                    f"--workdir={workdir} holds other things than a cross-validation; name a new "
                    "folder."
                )
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            return
    except OSError as error:
        raise InputError(
            f"--workdir={workdir} cannot be written ({error.strerror}); name another folder."
        ) from error
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(old, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); restore it from a copy, or name another --workdir."
        ) from error
    differing = differing_fields(old, settings)
    if differing:
        raise InputError(
            f"--workdir={workdir} holds a cross-validation with other settings "
            f"({'; '.join(differing)}); name another folder."
        )


def _run_fold(fold: Fold, config: ml_collections.ConfigDict, workdir: Path, n: int) -> None:
    """Trains and evaluates a fold, unless that is done."""
    folder = fold.folder(workdir)
    if (folder / "test").exists():
        return
    persons = ", ".join(f"{split} {len(members)}" for split, members in fold.data.persons.items())
    print(f"repeat {fold.repeat}, fold {fold.name} ({n} in all): persons: {persons}", flush=True)
    write_fold(folder / "data", fold.data)
    config = config.copy_and_resolve_references()
    config.data.dir = str(folder / "data")
    config.seed = _seed(config.seed, fold.repeat)
    train_and_evaluate(config, folder / "run")
    with new_folder(folder / "test", flag="--workdir") as test:
        evaluate_split(folder / "run", "test", test, str(folder / "data"))
