"""Checks before a run starts or resumes; errors name the config fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from drenet_jax import parallel
from drenet_jax.data.batches import FILLS
from drenet_jax.data.records import PreparedData
from drenet_jax.errors import InputError
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.models.checkpoints import Meta

_GROUPS = ("seed", "data", "model", "optimizer", "train", "init", "evaluation")
_CHOICES = {"data.fill": FILLS, "init.parts": ("all", "backbone")}

# field -> the least value, and whether it may be that value itself.
_BOUNDS: dict[str, tuple[float, bool]] = {
    "data.shuffle_buffer": (1, True),
    "train.accumulate": (1, True),
    "train.epochs": (1, True),
    "train.steps": (0, True),
    "train.validate_every_epochs": (1, True),
    "train.patience_epochs": (0, True),
    "train.rank_factor": (0, True),
    "optimizer.learning_rate": (0, True),
    "optimizer.weight_decay": (0, True),
    "optimizer.decay_factor": (0, False),
    "optimizer.final_factor": (0, True),
    "optimizer.warmup_epochs": (0, True),
    "optimizer.backbone_factor": (0, True),
    "evaluation.batch_size": (1, True),
}

# Config fields that may differ between the start of a run and its continuation.
_MAY_CHANGE = (
    "data.dir",
    "model.remat",
    "train.memory_fraction",
    "train.epochs",
    "train.steps",
    "train.validate_every_epochs",
    "train.patience_epochs",
)
_MAY_CHANGE_BELOW = ("evaluation.",)


def check_groups(config: ml_collections.ConfigDict) -> None:
    """Raises InputError unless `config` is one for training."""
    missing = [name for name in _GROUPS if name not in config]
    if missing:
        raise InputError(
            f"--config: the file has no {', '.join(missing)}; give a training config like "
            "configs/drenet.py."
        )


def check_config(config: ml_collections.ConfigDict, data: PreparedData) -> None:
    """Raises InputError unless the fields can be used and fit the data and the devices.

    Fields of the model, the optimiser and the class weights are checked where those are made.
    """
    if not data.n_slices["train"]:
        raise InputError(f"--config.data.dir={data.path} holds no training slices; prepare some.")
    for field, known in _CHOICES.items():
        value = _value(config, field)
        if value not in known:
            raise InputError(f"--config.{field}={value!r} must be one of {', '.join(known)}.")
    for field, (least, may_be_least) in _BOUNDS.items():
        value = _value(config, field)
        if value < least or (value == least and not may_be_least):
            bound = f"{least} or more" if may_be_least else f"above {least}"
            raise InputError(f"--config.{field}={value} must be {bound}.")
    if not 0 < config.train.memory_fraction <= 1:
        raise InputError(
            f"--config.train.memory_fraction={config.train.memory_fraction} must be above 0 and at "
            "most 1."
        )
    if not 0 <= config.optimizer.momentum < 1:
        raise InputError(
            f"--config.optimizer.momentum={config.optimizer.momentum} must be from 0 to below 1."
        )
    if config.model.image_size_px != data.ct.image_size_px:
        raise InputError(
            f"--config.model.image_size_px={config.model.image_size_px}, but {data.path} holds "
            f"slices of {data.ct.image_size_px} pixels; set the one or prepare the other."
        )
    if config.train.patience_epochs and not data.n_slices["validation"]:
        raise InputError(
            f"--config.train.patience_epochs={config.train.patience_epochs}, but {data.path} "
            "holds no validation slices to tell when the model gets no better; set it to 0."
        )
    MetricSettings.from_config(config.evaluation)
    parallel.check_batch_size(config.data.batch_size, config.train.accumulate)


def check_same_run(meta: Meta, wanted: Meta, workdir: Path) -> None:
    """Raises InputError unless the run in `workdir` can go on as the one that is wanted."""
    old, new = (_flat(item.config.to_dict()) for item in (meta, wanted))
    fixed = set(old) | set(new)
    fixed -= {field for field in _MAY_CHANGE if field != "train.epochs"}
    # A cosine ends with the last epoch.
    if new.get("optimizer.schedule") != "cosine":
        fixed.discard("train.epochs")
    differing = [
        f"{field} {old.get(field)!r} there, {new.get(field)!r} now"
        for field in sorted(fixed)
        if old.get(field) != new.get(field) and not field.startswith(_MAY_CHANGE_BELOW)
    ]
    if meta.labels != wanted.labels:
        differing.append(f"labels {', '.join(meta.labels)} there, {', '.join(wanted.labels)} now")
    if meta.data_fingerprint != wanted.data_fingerprint:
        differing.append("the data were prepared anew, with other persons, splits or settings")
    if differing:
        raise InputError(
            f"--workdir={workdir} holds a run with other settings ({'; '.join(differing)}); "
            "name another folder, or add --fresh to remove that run and start over."
        )


def _value(config: ml_collections.ConfigDict, field: str):
    group, _, name = field.partition(".")
    return config[group][name]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # JSON, through which a checkpoint's config went, knows no tuples.
            flat[prefix + name] = json.loads(json.dumps(value))
    return flat
