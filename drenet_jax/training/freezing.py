"""Stages of a backbone that stay as they are, and a learning rate of its own for the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections

from drenet_jax.errors import InputError
from drenet_jax.models.backbones import densenet, efficientnet_lite, resnet, vgg
from drenet_jax.models.warm_start import backbone_architecture

PyTree = Any

_BACKBONE = "backbone"


def stage_count(architecture: str) -> int:
    """How many stages a backbone has; the last one is frozen if all of it is.

    A ResNet's and a DenseNet's first stage has the stem with it, and a DenseNet's stage the
    transition behind it. A VGG's last stage is its two hidden layers. An EfficientNet-Lite's stages
    are those of one resolution; the last one has the last 1×1 convolution with it.
    """
    if architecture in resnet.ARCHITECTURES:
        return len(resnet.ARCHITECTURES[architecture][1])
    if architecture in densenet.ARCHITECTURES:
        return len(densenet.ARCHITECTURES[architecture])
    if architecture in efficientnet_lite.ARCHITECTURES:
        return efficientnet_lite.STAGES
    return len(vgg.ARCHITECTURES[architecture]) + 1


def stage_of(architecture: str, module: str) -> int:
    """The stage, from 1, of a module right below the backbone, by its name."""
    if architecture in vgg.ARCHITECTURES:
        kind, _, number = module.partition("_")
        if kind == "classifier":
            return stage_count(architecture)
        # ReLUs count, and so does the pooling at the end of a block.
        ends = [2 * n + 1 for n in vgg.ARCHITECTURES[architecture]]
        return next(stage for stage in range(1, len(ends) + 1) if int(number) < sum(ends[:stage]))
    if architecture in efficientnet_lite.ARCHITECTURES:
        return efficientnet_lite.stage_of(architecture, module)
    if module == "norm5":
        return stage_count(architecture)
    result = re.match(r"(?:layer|denseblock|transition)(\d)", module)
    return int(result[1]) if result else 1


def frozen_rule(config: ml_collections.ConfigDict) -> Callable[[Sequence[str]], bool]:
    """Whether the parameter at a path is frozen.

    Raises:
      InputError: `train.frozen_stages` is not from 0 to the backbone's number of stages.
    """
    architecture = backbone_architecture(config)
    n, stages = config.train.frozen_stages, stage_count(architecture)
    if not 0 <= n <= stages:
        raise InputError(
            f"--config.train.frozen_stages={n} must be from 0 to {stages}, the stages of "
            f"{architecture}."
        )

    def is_frozen(path: Sequence[str]) -> bool:
        return len(path) > 1 and path[0] == _BACKBONE and stage_of(architecture, path[1]) <= n

    return is_frozen


def optimizer_groups(config: ml_collections.ConfigDict, params: PyTree) -> PyTree:
    """`frozen`, `backbone` or `rest` for each of the model's parameters."""
    is_frozen = frozen_rule(config)

    def group(path: Sequence[Any], leaf: Any) -> str:
        del leaf
        names = [key.key for key in path]
        if is_frozen(names):
            return "frozen"
        return "backbone" if names[0] == _BACKBONE else "rest"

    return jax.tree_util.tree_map_with_path(group, params)


def stop_frozen_gradients(config: ml_collections.ConfigDict, params: PyTree) -> PyTree:
    """The parameters, of which those that are frozen get no gradient, and none is computed.

    Activations keep theirs: that of a weighted context image goes on to the proposal head.
    """
    is_frozen = frozen_rule(config)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jax.lax.stop_gradient(leaf) if is_frozen([key.key for key in path]) else leaf
        ),
        params,
    )
