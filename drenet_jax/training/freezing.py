"""Stages of a backbone that stay as they are, and a learning rate of its own for the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections

from drenet_jax.errors import InputError
from drenet_jax.models.backbones.registry import BACKBONES
from drenet_jax.models.warm_start import backbone_architecture

PyTree = Any

_BACKBONE = "backbone"


def frozen_rule(config: ml_collections.ConfigDict) -> Callable[[Sequence[str]], bool]:
    """Whether the parameter at a path is frozen.

    Raises:
      InputError: `train.frozen_stages` is not from 0 to the backbone's number of stages.
    """
    architecture = backbone_architecture(config)
    network = BACKBONES[architecture]
    n, stages = config.train.frozen_stages, network.stage_count(architecture)
    if not 0 <= n <= stages:
        raise InputError(
            f"--config.train.frozen_stages={n} must be from 0 to {stages}, the stages of "
            f"{architecture}."
        )

    def is_frozen(path: Sequence[str]) -> bool:
        if len(path) < 2 or path[0] != _BACKBONE:
            return False
        return network.stage_of(architecture, path[1]) <= n

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
