"""From a configuration to a network and its first parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from drenet_jax.errors import InputError
from drenet_jax.models import classifier, drenet, proposals
from drenet_jax.models.backbones.backbone import STRIDE_PX
from drenet_jax.models.backbones.registry import BACKBONES
from drenet_jax.parallel import AXIS

MODELS = ("drenet", *BACKBONES)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

Model = drenet.DRENet | classifier.Classifier


def build_model(
    config: ml_collections.ConfigDict, classes: int, *, platform: str | None = None
) -> Model:
    """The network that `config.model` describes.

    Args:
      config: see `configs/drenet.py`.
      classes: how many.
      platform: "cpu", "gpu" or "tpu", where the network is compiled for a device that is not here;
        None: that of JAX's default backend. Parameters and results do not depend on it.

    Raises:
      InputError: a field of `config.model` names what does not exist or does not fit together.
    """
    model = config.model
    _check(model.name in MODELS, "name", model.name, f"is none of {', '.join(MODELS)}")
    _check(model.dtype in DTYPES, "dtype", model.dtype, f"is none of {', '.join(DTYPES)}")
    _check(0 <= model.dropout < 1, "dropout", model.dropout, "must be from 0 to below 1")
    _check_positive(model, "width", "image_size_px")
    is_drenet = model.name == "drenet"
    field = "backbone" if is_drenet else "name"
    architecture = model[field]
    known = ", ".join(BACKBONES)
    _check(architecture in BACKBONES, field, architecture, f"is none of {known}")
    network = BACKBONES[architecture]
    remat = model.get("remat", False)
    _check(not remat or network.can_remat, "remat", remat, f"is not for a {architecture}")
    options = {
        "axis_name": AXIS,
        "remat": remat,
        "platform": platform,
        "frozen_stages": config.train.frozen_stages,
    }
    if is_drenet:
        return _build_drenet(model, classes, options)
    dropout = model.dropout
    if network.has_hidden_layers:
        options["dropout"], dropout = dropout, 0.0
    backbone = network(architecture, model.width, DTYPES[model.dtype], **options)
    return classifier.Classifier(classes, backbone, model.image_size_px, dropout)


def _build_drenet(
    model: ml_collections.ConfigDict, classes: int, options: dict[str, Any]
) -> drenet.DRENet:
    for field, value, known in (
        ("context", model.context, drenet.CONTEXTS),
        ("batch_statistics", model.batch_statistics, drenet.BATCH_STATISTICS),
        ("proposals", selection(model), proposals.SELECTIONS),
    ):
        _check(value in known, field, value, f"is none of {', '.join(known)}")
    _check_positive(model, "crop_size_px", "head_features")
    _check(all(n >= 1 for n in model.hidden), "hidden", tuple(model.hidden), "must all be above 0")
    _check(0 < model.nms_iou <= 1, "nms_iou", model.nms_iou, "must be above 0 and at most 1")
    _check(
        BACKBONES[model.backbone].rounds_up or model.image_size_px % STRIDE_PX == 0,
        "image_size_px",
        model.image_size_px,
        f"must be a multiple of {STRIDE_PX} with model.backbone={model.backbone}",
    )
    levels, groups = _levels(model), _groups(model)
    for group, (_, _, iou) in zip(
        groups, proposals.group_anchors(levels, groups, model.image_size_px), strict=True
    ):
        _check(
            proposals.can_select(iou, model.nms_iou, group.train_proposals),
            "train_proposals",
            tuple(model.train_proposals),
            "may be more boxes than fit without overlap into an image of "
            f"{model.image_size_px} pixels",
        )
    n_passes = len(drenet.PASSES) - (model.context == "none")
    domains = n_passes if model.batch_statistics == "per_pass" else None
    return drenet.DRENet(
        classes=classes,
        backbone=BACKBONES[model.backbone](
            model.backbone, model.width, DTYPES[model.dtype], domains=domains, **options
        ),
        image_size_px=model.image_size_px,
        crop_size_px=model.crop_size_px,
        levels=levels,
        groups=groups,
        head_features=model.head_features,
        nms_iou=model.nms_iou,
        selection=selection(model),
        context=model.context,
        hidden=tuple(model.hidden),
        dropout=model.dropout,
    )


def selection(model: ml_collections.ConfigDict) -> str:
    """`model.proposals`; checkpoints of versions without the field have learned ones."""
    return str(model.get("proposals", "learned"))


def _levels(model: ml_collections.ConfigDict) -> tuple[proposals.Level, ...]:
    strides = tuple(model.anchor_strides_px)
    # Each level halves the one before.
    _check(
        bool(strides) and strides == tuple(STRIDE_PX * 2**i for i in range(len(strides))),
        "anchor_strides_px",
        strides,
        "must be 32, 64, 128, ...",
    )
    for field in ("anchor_sizes_px", "anchor_scales", "anchor_aspect_ratios", "anchor_groups"):
        _check(
            len(model[field]) == len(strides),
            field,
            tuple(model[field]),
            f"must have one entry for each of model.anchor_strides_px={strides}",
        )
    return tuple(
        proposals.Level(stride, size, tuple(scales), tuple(ratios))
        for stride, size, scales, ratios in zip(
            strides,
            model.anchor_sizes_px,
            model.anchor_scales,
            model.anchor_aspect_ratios,
            strict=True,
        )
    )


def _groups(model: ml_collections.ConfigDict) -> tuple[proposals.Group, ...]:
    of_level = list(model.anchor_groups)
    n = len(set(of_level))
    _check(
        of_level == sorted(of_level) and set(of_level) == set(range(n)),
        "anchor_groups",
        tuple(of_level),
        "must number the groups from 0, level by level",
    )
    for field in ("train_proposals", "top_k"):
        _check(
            len(model[field]) == n and all(count >= 1 for count in model[field]),
            field,
            tuple(model[field]),
            f"must have a number above 0 for each of the {n} groups of model.anchor_groups",
        )
    _check(
        all(k <= m for k, m in zip(model.top_k, model.train_proposals, strict=True)),
        "top_k",
        tuple(model.top_k),
        f"must not exceed model.train_proposals={tuple(model.train_proposals)}",
    )
    return tuple(
        proposals.Group(of_level.count(i), model.train_proposals[i], model.top_k[i])
        for i in range(n)
    )


def init_variables(model: Model, seed: int) -> dict[str, Any]:
    """`{"params": ..., "batch_stats": ...}`, drawn from `seed`."""
    images = jnp.zeros((1, model.image_size_px, model.image_size_px))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(seed))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def variable_shapes(model: Model) -> dict[str, Any]:
    """Shapes and types of what `init_variables` returns, without computing them."""
    return jax.eval_shape(lambda: init_variables(model, 0))


def _check_positive(model: ml_collections.ConfigDict, *fields: str) -> None:
    for field in fields:
        _check(model[field] >= 1, field, model[field], "must be 1 or more")


def _check(good: bool, field: str, value: object, rule: str) -> None:
    if not good:
        raise InputError(f"--config.model.{field}={value} {rule}.")
