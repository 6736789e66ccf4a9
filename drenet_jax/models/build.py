"""From a configuration to a network and its first parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections

from drenet_jax.errors import InputError
from drenet_jax.models import proposals, resnet
from drenet_jax.models.drenet import DRENet
from drenet_jax.parallel import AXIS

MODELS = ("drenet",)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build_model(config: ml_collections.ConfigDict, classes: int) -> DRENet:
    """The network that `config.model` describes.

    Raises:
      InputError: a field of `config.model` names what does not exist or does not fit together.
    """
    model = config.model
    _check(model.name in MODELS, "name", model.name, f"is none of {', '.join(MODELS)}")
    _check(
        model.backbone in resnet.ARCHITECTURES,
        "backbone",
        model.backbone,
        f"is none of {', '.join(resnet.ARCHITECTURES)}",
    )
    _check(model.dtype in DTYPES, "dtype", model.dtype, f"is none of {', '.join(DTYPES)}")
    _check(
        1 <= model.top_k <= model.train_proposals,
        "top_k",
        model.top_k,
        f"must be from 1 to model.train_proposals={model.train_proposals}",
    )
    for field in ("width", "image_size_px", "crop_size_px", "head_features"):
        _check(model[field] >= 1, field, model[field], "must be 1 or more")
    _check(all(n >= 1 for n in model.hidden), "hidden", tuple(model.hidden), "must all be above 0")
    _check(0 < model.nms_iou <= 1, "nms_iou", model.nms_iou, "must be above 0 and at most 1")
    _check(0 <= model.dropout < 1, "dropout", model.dropout, "must be from 0 to below 1")
    _check(
        len(model.anchor_sizes_px) == len(model.anchor_strides_px),
        "anchor_sizes_px",
        tuple(model.anchor_sizes_px),
        f"must have one size for each of model.anchor_strides_px={tuple(model.anchor_strides_px)}",
    )
    levels = tuple(
        proposals.Level(stride, size, tuple(model.anchor_scales), tuple(model.anchor_aspect_ratios))
        for stride, size in zip(model.anchor_strides_px, model.anchor_sizes_px, strict=True)
    )
    # The feature map has stride 32, and each level halves the one before.
    _check(
        [level.stride_px for level in levels] == [32 * 2**i for i in range(len(levels))],
        "anchor_strides_px",
        tuple(model.anchor_strides_px),
        "must be 32, 64, 128, ...",
    )
    iou = proposals.pairwise_iou(proposals.anchor_boxes(levels, model.image_size_px))
    _check(
        proposals.can_select(iou, model.nms_iou, model.train_proposals),
        "train_proposals",
        model.train_proposals,
        f"may be more boxes than fit without overlap into an image of {model.image_size_px} pixels",
    )
    return DRENet(
        classes=classes,
        backbone=model.backbone,
        width=model.width,
        image_size_px=model.image_size_px,
        crop_size_px=model.crop_size_px,
        levels=levels,
        head_features=model.head_features,
        nms_iou=model.nms_iou,
        train_proposals=model.train_proposals,
        top_k=model.top_k,
        hidden=tuple(model.hidden),
        dropout=model.dropout,
        dtype=DTYPES[model.dtype],
        axis_name=AXIS,
    )


def init_variables(model: DRENet, seed: int) -> dict:
    """`{"params": ..., "batch_stats": ...}`, drawn from `seed`."""
    images = jnp.zeros((1, model.image_size_px, model.image_size_px))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(seed))
    return dict(variables)


def variable_shapes(model: DRENet) -> dict:
    """Shapes and types of what `init_variables` returns, without computing them."""
    return jax.eval_shape(lambda: init_variables(model, 0))


def _check(good: bool, field: str, value, rule: str) -> None:
    if not good:
        raise InputError(f"--config.model.{field}={value} {rule}.")
