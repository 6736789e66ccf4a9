"""What each method of the studies changes of one small base configuration.

All methods have the same budget: the same optimiser, learning rate and number of steps, whatever
the number of training slices. No setting was tuned for a method, but for the learning rate of VGG,
which did not learn at all with that of the others; docs/study.md says how they were chosen.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from pathlib import Path

import ml_collections

IMAGE_SIZE_PX = 128
# Optimiser steps of 16 slices: with 50 training persons of the phantoms, 16 epochs.
STEPS = 240
# What a step of DRENet costs in steps of ResNet, in processor seconds of the pilot.
DRENET_STEP_IN_RESNET_STEPS = 5
WARMUP_STEPS = 24


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
      title: how the tables call it.
      change: makes it of the base configuration.
      steps: of the optimiser.
      learning_rate_factor: on the base configuration's.
    """

    title: str
    change: Callable[[ml_collections.ConfigDict], None]
    steps: int = STEPS
    learning_rate_factor: float = 1.0


def _nothing(config: ml_collections.ConfigDict) -> None:
    del config


def _model(**fields) -> Callable[[ml_collections.ConfigDict], None]:
    return lambda config: config.model.update(fields)


def _rank_factor_0(config: ml_collections.ConfigDict) -> None:
    config.train.rank_factor = 0.0


def _per_pass(change: Callable[[ml_collections.ConfigDict], None]) -> Callable:
    def both(config: ml_collections.ConfigDict) -> None:
        change(config)
        config.model.batch_statistics = "per_pass"

    return both


def _fill(when: str) -> Callable[[ml_collections.ConfigDict], None]:
    return lambda config: config.data.update(fill=when)


def _one_scale(config: ml_collections.ConfigDict) -> None:
    model = config.model
    model.anchor_strides_px, model.anchor_sizes_px = (32,), (28,)
    model.anchor_scales, model.anchor_aspect_ratios = ((1.0,),), ((1.0,),)
    model.anchor_groups = (0,)


def _nts_net(config: ml_collections.ConfigDict) -> None:
    of_base = config.model
    config.model = _file("nts_net").model
    for field in ("backbone", "width", "image_size_px", "crop_size_px", "batch_statistics"):
        config.model[field] = of_base[field]
    # Half of the 48, 96 and 192 pixels, to which the scales of NTS-Net are factors above 1.
    config.model.anchor_sizes_px = (24, 48, 96)


def _classifier(name: str) -> Callable[[ml_collections.ConfigDict], None]:
    def change(config: ml_collections.ConfigDict) -> None:
        width = config.model.width
        config.model = _file("vgg16" if name == "vgg16" else "resnet50").model
        config.model.update(name=name, width=width, image_size_px=IMAGE_SIZE_PX)

    return change


# "Own statistics" was decided on when the results of the others were there.
METHODS = {
    "drenet": Method("DRENet (K = 3)", _nothing),
    "drenet_per_pass": Method("DRENet, per-pass batch norm", _per_pass(_nothing)),
    "resnet": Method("ResNet18", _classifier("resnet18")),
    "resnet_long": Method(
        "ResNet18, as many processor seconds as DRENet",
        _classifier("resnet18"),
        STEPS * DRENET_STEP_IN_RESNET_STEPS,
    ),
    "densenet": Method("DenseNet121", _classifier("densenet121")),
    # Without batch norm: with the others' learning rate it stayed at chance in the pilot.
    "vgg": Method("VGG16", _classifier("vgg16"), learning_rate_factor=0.15),
    "nts_net": Method("NTS-Net", _nts_net),
    "nts_net_per_pass": Method("NTS-Net, per-pass batch norm", _per_pass(_nts_net)),
    "no_weighted_image": Method("DRENet without the weighted image", _model(context="none")),
    "no_weighted_image_per_pass": Method(
        "DRENet without the weighted image, per-pass batch norm", _per_pass(_model(context="none"))
    ),
    "no_ranking": Method("DRENet without the ranking loss", _rank_factor_0),
    "no_confidence_gradient": Method(
        "DRENet without the gradient through the confidences", _model(context="weighted_detached")
    ),
    "one_scale": Method("DRENet with one scale", _one_scale),
    "k1": Method("DRENet with K = 1", _model(top_k=(1,))),
    "k1_per_pass": Method("DRENet with K = 1, per-pass batch norm", _per_pass(_model(top_k=(1,)))),
    "k6": Method("DRENet with K = 6", _model(top_k=(6,))),
    "fill_train": Method("DRENet, blank filled in training only", _fill("train")),
    "fill_train_per_pass": Method(
        "DRENet, blank filled in training only, per-pass batch norm", _per_pass(_fill("train"))
    ),
    "fill_never": Method("DRENet, blank never filled", _fill("never")),
    "fill_never_per_pass": Method(
        "DRENet, blank never filled, per-pass batch norm", _per_pass(_fill("never"))
    ),
}


def method_config(
    method: str, *, seed: int, data_dir: Path, train_slices: int, steps: int = 0
) -> ml_collections.ConfigDict:
    """The training configuration of a method.

    Args:
      method: a key of `METHODS`.
      seed: of first weights, order and augmentation.
      data_dir: the prepared training set.
      train_slices: in it; the schedule is in epochs, and must be the same in steps for any number.
      steps: instead of the method's own.
    """
    config = _base()
    METHODS[method].change(config)
    steps = steps or METHODS[method].steps
    in_epochs = config.data.batch_size / train_slices
    config.seed = seed
    config.data.dir = str(data_dir)
    config.optimizer.learning_rate *= METHODS[method].learning_rate_factor
    config.optimizer.warmup_epochs = min(WARMUP_STEPS, steps // 2) * in_epochs
    config.train.steps = steps
    config.train.epochs = math.ceil(steps * in_epochs)
    config.train.validate_every_epochs = config.train.epochs
    return config


def _base() -> ml_collections.ConfigDict:
    """A DRENet that one core trains in a minute."""
    config = _file("demo")
    config.model.width = 8
    config.model.image_size_px = IMAGE_SIZE_PX
    config.model.crop_size_px = 48
    # So that six proposals fit beside each other into 128 pixels whatever their scores are.
    config.model.anchor_sizes_px = (28, 56)
    # As published; the others say so.
    config.model.batch_statistics = "shared"
    config.optimizer.schedule = "cosine"
    return config


def _file(name: str) -> ml_collections.ConfigDict:
    return importlib.import_module(f"drenet_jax.configs.{name}").get_config()
