"""The arms of the study: what is trained, on which data, for how many steps.

Arms that are compared differ in the named thing alone: same data, order, augmentation, optimizer
and schedule. Nothing is tuned for an arm; docs/study.md says what the pilot looked at.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

SEEDS = (0, 1, 2, 3, 4)
BATCH_SIZE = 16

# Optimizer steps on phantoms.
STEPS = 600
WARMUP_STEPS = 50
# What a training step of DRENet costs in steps of its backbone alone, in processor seconds of the
# pilot.
DRENET_STEP_IN_BACKBONE_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of training.

    Attributes:
      title: in tables.
      data: of `cohorts.COHORTS`.
      config: makes its configuration.
      steps: of the optimizer; 0: the epochs of its configuration.
      seeds: of weights, order and augmentation.
    """

    title: str
    data: str
    config: Callable[[], ml_collections.ConfigDict]
    steps: int = 0
    seeds: tuple[int, ...] = SEEDS


def _file(name: str, preset: str = "strong") -> ml_collections.ConfigDict:
    return importlib.import_module(f"drenet_jax.configs.{name}").get_config(preset)


def _phantoms(proposals: str = "learned") -> ml_collections.ConfigDict:
    """DRENet over a narrow ResNet18, in the paper's proportions."""
    # As published: with strong augmentation DRENet had learned little after 400 steps of the pilot.
    config = _file("demo", "paper")
    model = config.model
    model.proposals = proposals
    # 5x5 and 3x3 cells of two sizes each: 68 anchors (paper: 245), whose sides are 15% to 30% of
    # the image's (paper: 11% and 21%). Crops are enlarged 2 to 4 times (paper: 2.3 and 4.7).
    model.anchor_sizes_px, model.crop_size_px = (24, 48), 96
    model.anchor_scales = ((1.0, 4 / 3), (0.75, 1.0))
    config.optimizer.schedule = "cosine"
    return config


def _phantoms_classifier(name: str) -> ml_collections.ConfigDict:
    config = _phantoms()
    width, size_px = config.model.width, config.model.image_size_px
    config.model = _file("resnet50").model
    config.model.update(name=name, width=width, image_size_px=size_px)
    return config


def _covid_ct(preset: str = "strong", **fields: Any) -> ml_collections.ConfigDict:
    """The recipe at 160 pixels, with other fields as `group.field`."""
    config = _file("covid_ct", preset)
    config.model.image_size_px = 160
    config.update_from_flattened_dict(fields)
    return config


def _drenet_lite(proposals: str = "learned") -> ml_collections.ConfigDict:
    """The same recipe for DRENet."""
    config = _covid_ct()
    config.model = _file("drenet_lite").model
    config.model.image_size_px = 160
    config.model.proposals = proposals
    # As on phantoms.
    phantoms = _phantoms().model
    for field in ("anchor_sizes_px", "anchor_scales", "crop_size_px"):
        config.model[field] = phantoms[field]
    return config


def _covid_ct_arm(
    title: str,
    fields: Mapping[str, Any] = types.MappingProxyType({}),
    *,
    preset: str = "strong",
    data: str = "covid_ct_160",
) -> Arm:
    # One seed: 279 persons in 5 folds leave more to chance than a seed does.
    return Arm(title, data, functools.partial(_covid_ct, preset, **fields), seeds=(0,))


ARMS = {
    "drenet": Arm("DRENet", "phantoms", _phantoms, STEPS),
    "random_boxes": Arm("DRENet, random boxes", "phantoms", lambda: _phantoms("random"), STEPS),
    "backbone": Arm(
        "its backbone alone", "phantoms", lambda: _phantoms_classifier("resnet18"), STEPS
    ),
    "backbone_equal_compute": Arm(
        "its backbone alone, equal compute",
        "phantoms",
        lambda: _phantoms_classifier("resnet18"),
        STEPS * DRENET_STEP_IN_BACKBONE_STEPS,
    ),
    "densenet": Arm("DenseNet121", "phantoms", lambda: _phantoms_classifier("densenet121"), STEPS),
    "scratch": _covid_ct_arm(
        "random weights, flips and brightness", {"init.weights": ""}, preset="paper"
    ),
    "scratch_strong": _covid_ct_arm("random weights, strong augmentation", {"init.weights": ""}),
    "imagenet": _covid_ct_arm("ImageNet weights, flips and brightness", preset="paper"),
    "imagenet_strong": _covid_ct_arm("ImageNet weights, strong augmentation"),
    "imagenet_strong_filled": _covid_ct_arm(
        "the same, lungs alone, blank filled", {"data.fill": "always"}
    ),
    "imagenet_strong_lungs": _covid_ct_arm(
        "the same, lungs alone on black", {"data.fill": "never"}
    ),
    "best": _covid_ct_arm("224 pixels", {"model.image_size_px": 224}, data="covid_ct"),
    "best_lungs": _covid_ct_arm(
        "224 pixels, lungs alone on black",
        {"model.image_size_px": 224, "data.fill": "never"},
        data="covid_ct",
    ),
    "no_label_smoothing": _covid_ct_arm("without label smoothing", {"train.label_smoothing": 0.0}),
    "ema": _covid_ct_arm("with averaged weights (decay 0.99)", {"train.ema_decay": 0.99}),
    "mixup": _covid_ct_arm("with mixup (alpha 0.2)", {"augment.mixup": 0.2}),
    "sgd": _covid_ct_arm(
        "with the authors' optimizer",
        {
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 8e-4,
            "optimizer.weight_decay": 1e-4,
            "optimizer.schedule": "steps",
            "optimizer.warmup_epochs": 0.0,
        },
    ),
    "drenet_lite": Arm("DRENet-Lite", "covid_ct_160", _drenet_lite, seeds=(0,)),
    "drenet_lite_random_boxes": Arm(
        "DRENet-Lite, random boxes", "covid_ct_160", lambda: _drenet_lite("random"), seeds=(0,)
    ),
}


def training_config(
    arm: Arm, *, seed: int, data_dir: str, train_slices: int, steps: int = 0
) -> ml_collections.ConfigDict:
    """The configuration of a run.

    Args:
      arm: of `ARMS`.
      seed: of first weights, order and augmentation.
      data_dir: a prepared data set or a fold of one.
      train_slices: in it: the schedule is in epochs, and must be the same in steps for any number.
      steps: instead of the arm's own.
    """
    config = arm.config()
    config.seed = seed
    config.data.dir = data_dir
    config.data.batch_size = BATCH_SIZE
    steps = steps or arm.steps
    if steps:
        config.optimizer.warmup_epochs = min(WARMUP_STEPS, steps // 2) * BATCH_SIZE / train_slices
        config.train.steps = steps
        config.train.epochs = -(-steps * BATCH_SIZE // train_slices)
    config.train.validate_every_epochs = config.train.epochs
    return config
