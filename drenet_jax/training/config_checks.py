"""Checks before a run starts or resumes; errors name the config fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import ml_collections

from drenet_jax import parallel
from drenet_jax.data.batches import FILLS
from drenet_jax.data.prepared_data import PreparedData
from drenet_jax.errors import InputError
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.training.experiment_tracking import TRACKERS, check_package

_GROUPS = ("seed", "data", "augment", "model", "optimizer", "train", "init", "evaluation")
_CHOICES = {
    "data.fill": FILLS,
    "init.parts": ("all", "backbone"),
    "train.tracker": TRACKERS,
}

_AT_LEAST_0 = ("0 or more", lambda x: x >= 0)
_AT_LEAST_1 = ("1 or more", lambda x: x >= 1)
_BELOW_1 = ("from 0 to below 1", lambda x: 0 <= x < 1)


def _range(least: float, most: float) -> tuple[str, Callable[[Sequence[float]], bool]]:
    return (
        f"two numbers (low, high) from {least} to {most}",
        lambda x: len(x) == 2 and least <= x[0] <= x[1] <= most,
    )


_BOUNDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "augment.rotation_deg": ("from 0 to below 45", lambda x: 0 <= x < 45),
    "augment.scale": _range(0.5, 2),
    "augment.aspect": ("from 1 to 2", lambda x: 1 <= x <= 2),
    "augment.shift": ("from 0 to 0.5", lambda x: 0 <= x <= 0.5),
    "augment.contrast": _range(0.1, 10),
    "augment.gamma": _range(0.1, 10),
    "augment.noise": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "augment.blur_px": ("from 0 to 10", lambda x: 0 <= x <= 10),
    "augment.cutout": _BELOW_1,
    "augment.mixup": ("from 0 to 10", lambda x: 0 <= x <= 10),
    "train.label_smoothing": _BELOW_1,
    "train.ema_decay": _BELOW_1,
    "data.shuffle_buffer": _AT_LEAST_1,
    "train.accumulate": _AT_LEAST_1,
    "train.epochs": _AT_LEAST_1,
    "train.validate_every_epochs": _AT_LEAST_1,
    "evaluation.batch_size": _AT_LEAST_1,
    "train.steps": _AT_LEAST_0,
    "train.patience_epochs": _AT_LEAST_0,
    "train.rank_patience_epochs": _AT_LEAST_0,
    "train.rank_factor": _AT_LEAST_0,
    "optimizer.learning_rate": _AT_LEAST_0,
    "optimizer.weight_decay": _AT_LEAST_0,
    "optimizer.final_factor": _AT_LEAST_0,
    "optimizer.warmup_epochs": _AT_LEAST_0,
    "optimizer.backbone_factor": _AT_LEAST_0,
    "optimizer.decay_factor": ("above 0", lambda x: x > 0),
    "train.memory_fraction": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "optimizer.momentum": _BELOW_1,
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
    "train.rank_patience_epochs",
    "train.tracker",
)


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
        raise InputError(f"--config.data.dir={data.name} holds no training slices; prepare some.")
    values = flax.traverse_util.flatten_dict(config.to_dict(), sep=".")
    for field, choices in _CHOICES.items():
        if values[field] not in choices:
            raise InputError(
                f"--config.{field}={values[field]!r} must be one of {', '.join(choices)}."
            )
    check_package(config.train.tracker)
    for field, (bound, is_within) in _BOUNDS.items():
        if not is_within(values[field]):
            raise InputError(f"--config.{field}={values[field]} must be {bound}.")
    if config.model.image_size_px != data.ct.image_size_px:
        raise InputError(
            f"--config.model.image_size_px={config.model.image_size_px}, but {data.name} holds "
            f"slices of {data.ct.image_size_px} pixels; set the one or prepare the other."
        )
    if config.train.patience_epochs and not data.n_slices["validation"]:
        raise InputError(
            f"--config.train.patience_epochs={config.train.patience_epochs}, but {data.name} "
            "holds no validation slices, which early stopping needs; set it to 0."
        )
    MetricSettings.from_config(config.evaluation)
    parallel.check_batch_size(config.data.batch_size, config.train.accumulate)
    on_device = config.data.batch_size // (config.train.accumulate * jax.device_count())
    if config.augment.mixup and on_device % 2:
        raise InputError(
            f"--config.augment.mixup={config.augment.mixup} mixes pairs of slices, but "
            f"--config.data.batch_size={config.data.batch_size} gives a device {on_device} at a "
            "time; make that an even number, or set mixup to 0."
        )


def check_same_run(meta: Meta, wanted: Meta, workdir: str) -> None:
    """Raises InputError unless the run in `workdir` can be resumed with the config `wanted`."""
    allowed = [field for field in _MAY_CHANGE if field != "train.epochs"]
    # A cosine ends with the last epoch.
    if wanted.config.optimizer.schedule != "cosine":
        allowed.append("train.epochs")
    old, new = (json.loads(side.config.to_json()) for side in (meta, wanted))
    differing = differing_fields(old, new, (*allowed, "evaluation."))
    if meta.labels != wanted.labels:
        differing.append(f"labels {', '.join(meta.labels)} there, {', '.join(wanted.labels)} now")
    if meta.data_fingerprint != wanted.data_fingerprint:
        differing.append("the data were prepared anew, with other persons, splits or settings")
    if differing:
        raise InputError(
            f"--workdir={workdir} holds a run with other settings ({'; '.join(differing)}); "
            "name another folder, or add --fresh to remove that run and start over."
        )


def differing_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], ignored: Sequence[str] = ()
) -> list[str]:
    """The fields of two nested dicts that differ, each with both values.

    Args:
      old: what the workdir holds.
      new: what is wanted.
      ignored: fields by their path ("train.steps"), or groups by their prefix ("evaluation.").
    """
    there, now = (flax.traverse_util.flatten_dict(dict(fields), sep=".") for fields in (old, new))
    groups = tuple(name for name in ignored if name.endswith("."))
    return [
        f"{field} {there.get(field)!r} there, {now.get(field)!r} now"
        for field in sorted(there.keys() | now.keys())
        if there.get(field) != now.get(field)
        and field not in ignored
        and not field.startswith(groups)
    ]
