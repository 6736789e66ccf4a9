"""A model as StableHLO, by `jax.export`: for CPU, CUDA and TPU in one file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax import export

from drenet_jax.models.build import Model
from drenet_jax.models.slice_scorer import make_forward

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(model: Model, variables: Mapping[str, Any], *, heat_maps: bool) -> bytes:
    """The model's prediction with its weights, with a batch of any size.

    `jax.export.deserialize(content).call(images)` runs it; this package is not needed.

    Args:
      model: built for the platform "gpu": its formulas do for all.
      variables: `params` and `batch_stats`.
      heat_maps: whether to give Grad-CAM maps too.
    """
    forward = make_forward(model, heat_maps=heat_maps)

    def predict(images: jax.Array) -> dict[str, jax.Array]:
        return forward(variables, images)

    size_px = model.image_size_px
    shape = export.symbolic_shape(f"batch, {size_px}, {size_px}")
    exported = export.export(jax.jit(predict), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct(shape, "uint8")
    )
    return bytes(exported.serialize())
