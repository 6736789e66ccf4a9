"""The first variables of a run that starts from other weights (`config.init`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import ml_collections

from drenet_jax.errors import InputError
from drenet_jax.models.build import Model
from drenet_jax.models.checkpoint_integrity import check_shapes
from drenet_jax.models.checkpoint_metadata import BackboneMeta, Meta
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.models.drenet import DRENet
from drenet_jax.models.imagenet import IMAGENET, imagenet_variables
from drenet_jax.models.norm import fit_domains, single_domain_shapes
from drenet_jax.storage import objects, stand_ins

_BACKBONE = "backbone"


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
    `convert_weights` made, or that a package ships) go into their places in `variables`.

    Args:
      folder: `config.init.weights`: a workdir, what `convert_weights` wrote, or `IMAGENET`.
      model: that is to be trained.
      variables: of `model`, freshly drawn (`build.init_variables`).
      labels: of the data.
      parts: `config.init.parts`: "all", or "backbone" to take nothing else, which may come from
        another kind of model, or from one with other labels.

    Returns:
      variables of `model`.

    Raises:
      InputError: `folder` holds no weights, they do not fit the model or the labels, or no package
        with ImageNet weights of the backbone is installed.
    """
    if folder == IMAGENET:
        weights = _imagenet(model)
    elif objects.is_remote(folder):
        with stand_ins.run(os.fspath(folder), flag="--config.init.weights") as copy:
            weights = _saved(copy, model, variables, labels, parts)
    else:
        weights = _saved(folder, model, variables, labels, parts)
    fitted = fit_domains(
        weights["batch_stats"], _parts(variables, weights["params"])["batch_stats"]
    )
    taken = {**weights, "batch_stats": fitted}
    return {collection: tree | taken[collection] for collection, tree in variables.items()}


def _imagenet(model: Model) -> dict[str, Any]:
    """The variables of a backbone, by part."""
    architecture, published = model.backbone.architecture, model.backbone.published_width
    backbone = imagenet_variables(architecture)
    if model.backbone.width != published:
        raise InputError(
            f"--config.init.weights={IMAGENET} is of a {architecture} of width {published}, but "
            f"--config.model.width={model.backbone.width}; set it to {published}."
        )
    return {collection: {_BACKBONE: tree} for collection, tree in backbone.items()}


def _saved(
    folder: str | os.PathLike[str],
    model: Model,
    variables: dict[str, Any],
    labels: Sequence[str],
    parts: str,
) -> dict[str, Any]:
    """The variables of some or all parts of a model, of a checkpoint in `folder`."""
    flag = f"--config.init.weights={folder}"
    statistics = variables["batch_stats"]
    wanted = {**variables, "batch_stats": single_domain_shapes(statistics)}
    with Checkpoints.of(folder, flag="--config.init.weights") as source:
        step = source.best_step
        meta = source.metadata(step)
        saved = source.weight_shapes(step)
        if isinstance(meta, Meta) and parts == "all":
            if tuple(labels) != meta.labels:
                raise InputError(
                    f"{flag} has the labels {', '.join(meta.labels)}, the data have "
                    f"{', '.join(labels)}; prepare the data with --labels={','.join(meta.labels)}."
                )
            if not _has_domains(saved):
                weights = source.weights(step, wanted)
            elif _has_domains(variables):
                weights = source.weights(step, variables)
            else:
                raise InputError(
                    f"{flag} has batch statistics per pass; set "
                    "--config.model.batch_statistics=per_pass to take them, or "
                    "--config.init.parts=backbone to take the backbone alone."
                )
        else:
            _check_architecture(meta, model, flag)
            if parts == "backbone":
                names: Sequence[str] = (_BACKBONE,)
                weights = _parts(source.weights(step, saved), names)
                narrow = {**weights, "batch_stats": single_domain_shapes(weights["batch_stats"])}
                check_shapes(narrow, _parts(wanted, names), flag)
            else:
                assert isinstance(meta, BackboneMeta)
                names = meta.parts
                weights = source.weights(step, _parts(wanted, names))
    return weights


def _check_architecture(meta: Meta | BackboneMeta, model: Model, flag: str) -> None:
    if isinstance(meta, Meta):
        theirs = backbone_architecture(meta.config), meta.config.model.width
    else:
        theirs = meta.architecture, meta.width
    ours = model.backbone.architecture, model.backbone.width
    if theirs != ours:
        # The field of the config that names the architecture.
        field = "backbone" if isinstance(model, DRENet) else "name"
        raise InputError(
            f"{flag} is of a {theirs[0]} of width {theirs[1]}, but "
            f"--config.model.{field}={ours[0]} and --config.model.width={ours[1]}; "
            "set both to what the weights are, or name other weights."
        )


def _has_domains(variables: dict[str, Any]) -> bool:
    """Whether running statistics are per pass. (A VGG has none.)"""
    return any(len(leaf.shape) == 2 for leaf in jax.tree.leaves(variables.get("batch_stats", {})))


def _parts(variables: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The variables of some parts of a model."""
    return {
        collection: {name: tree[name] for name in names if name in tree}
        for collection, tree in variables.items()
    }


def backbone_architecture(config: ml_collections.ConfigDict) -> str:
    """One of `BACKBONES`: that of the model which `config.model` describes."""
    return config.model.backbone if config.model.name == "drenet" else config.model.name
