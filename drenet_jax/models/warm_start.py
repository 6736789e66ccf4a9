"""The first variables of a run that starts from other weights (`config.init`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ml_collections

from drenet_jax.errors import InputError
from drenet_jax.models.build import Model
from drenet_jax.models.checkpoint_integrity import check_shapes
from drenet_jax.models.checkpoint_metadata import Meta
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.models.drenet import PASSES, DRENet


def start_from(
    folder: str | os.PathLike[str],
    model: Model,
    variables: dict[str, Any],
    labels: Sequence[str],
    *,
    parts: str = "all",
) -> dict[str, Any]:
    """The first variables of a run that starts from weights which are there already.

    Weights of a whole model are taken as they are. Weights of some parts (a backbone that
    `convert_weights` made) go into their places in `variables`.

    Args:
      folder: `config.init.weights`: a workdir, or what `convert_weights` wrote.
      model: that is to be trained.
      variables: of `model`, freshly drawn (`build.init_variables`).
      labels: of the data.
      parts: `config.init.parts`: "all", or "backbone" to take nothing else, which may come from
        another kind of model, or from one with other labels.

    Returns:
      variables of `model`.

    Raises:
      InputError: `folder` holds no weights, or they do not fit the model or the labels.
    """
    flag = f"--config.init.weights={folder}"
    with Checkpoints.of(folder, flag="--config.init.weights") as source:
        step = source.best_step
        account = source.metadata(step)
        whole = isinstance(account, Meta)
        if whole and parts == "all":
            if tuple(labels) != account.labels:
                theirs = ", ".join(account.labels)
                raise InputError(
                    f"{flag} has the labels {theirs}, the data have {', '.join(labels)}; "
                    f"prepare the data with --labels={','.join(account.labels)}."
                )
            known, wanted = _of_passes(source.weight_shapes(step)), _of_passes(variables)
            if known - wanted:
                raise InputError(
                    f"{flag} has statistics of each pass's own; set "
                    "--config.model.batch_statistics=per_pass to take them, or "
                    "--config.init.parts=backbone to take the backbone alone."
                )
            shapes = {
                collection: {part: tree[part] for part in tree if part not in wanted - known}
                for collection, tree in variables.items()
            }
            return _for_every_pass(source.weights(step, shapes), variables)
        if whole:
            result = backbone_architecture(account.config), account.config.model.width
        else:
            result = account.architecture, account.width
        # The field of the config that names the architecture.
        field = "backbone" if isinstance(model, DRENet) else "name"
        wanted = model.backbone if isinstance(model, DRENet) else model.architecture, model.width
        if result != wanted:
            raise InputError(
                f"{flag} is of a {result[0]} of width {result[1]}, but "
                f"--config.model.{field}={wanted[0]} and --config.model.width={model.width}; "
                "set both to what the weights are, or name other weights."
            )
        if parts == "backbone":
            theirs = source.weights(step, source.weight_shapes(step))
            taken = _backbone_alone(theirs, variables)
            check_shapes(taken, _backbone_alone(variables, theirs), flag)
        else:
            shapes = {
                collection: {part: tree[part] for part in account.parts if part in tree}
                for collection, tree in variables.items()
            }
            taken = source.weights(step, shapes)
    taken = _for_every_pass(taken, variables)
    return {collection: tree | taken[collection] for collection, tree in variables.items()}


def _of_passes(variables: dict[str, Any]) -> set[str]:
    """The passes after the first that have statistics of their own."""
    # VGG has no batch statistics.
    return set(PASSES[1:]) & variables.get("batch_stats", {}).keys()


def _for_every_pass(taken: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
    """Weights that know one kind of image are the start of every pass of `variables`."""
    missing = _of_passes(variables) - _of_passes(taken)
    if not missing:
        return taken
    statistics = taken["batch_stats"]
    return {**taken, "batch_stats": statistics | dict.fromkeys(missing, statistics["backbone"])}


def backbone_architecture(config: ml_collections.ConfigDict) -> str:
    """One of `BACKBONES`: that of the model which `config.model` describes."""
    return config.model.backbone if config.model.name == "drenet" else config.model.name


def _backbone_alone(variables: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """What belongs to the backbone, its statistics of each pass that both have."""
    return {
        # VGG has no batch statistics.
        collection: {
            part: tree[part] for part in PASSES if part in tree and part in others[collection]
        }
        for collection, tree in variables.items()
    }
