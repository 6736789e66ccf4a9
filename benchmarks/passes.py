"""The ResNet passes that the method needs, without the method: what our speeds are measured by."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from drenet_jax.models.backbones.resnet import ResNet
from drenet_jax.models.build import DTYPES


class Passes(nn.Module):
    """One backbone over several stacks of images, each with a pass of its own.

    Attributes:
      backbone, width, dtype, remat, axis_name, platform: as those of `DRENet`.
    """

    backbone: str
    width: int
    dtype: jnp.dtype
    remat: bool
    axis_name: str | None = None
    platform: str | None = None

    @nn.compact
    def __call__(self, stacks: list[jax.Array], train: bool) -> list[jax.Array]:
        """[n, S, S, 3] each -> pooled features [n, C] each."""
        network = ResNet(
            self.backbone,
            self.width,
            self.dtype,
            self.axis_name,
            self.remat,
            self.platform,
            name="backbone",
        )
        return [network(stack, train)[1] for stack in stacks]

    def forward(self, params: dict, batch_stats: dict, stacks: list[jax.Array]) -> list[jax.Array]:
        """The passes of a prediction."""
        return self.apply({"params": params, "batch_stats": batch_stats}, stacks, False)

    def loss(
        self, params: dict, batch_stats: dict, stacks: list[jax.Array]
    ) -> tuple[jax.Array, dict]:
        """The passes of a training step, forward only: a loss, and new batch statistics."""
        pooled, updates = self.apply(
            {"params": params, "batch_stats": batch_stats}, stacks, True, mutable=["batch_stats"]
        )
        return sum(jnp.mean(jnp.square(features)) for features in pooled), updates

    def gradient(
        self, params: dict, batch_stats: dict, stacks: list[jax.Array]
    ) -> tuple[dict, dict]:
        """The passes of a training step, forward and backward by the parameters."""
        return jax.grad(self.loss, has_aux=True)(params, batch_stats, stacks)


def stack_shapes(
    config: ml_collections.ConfigDict, batch: int, *, train: bool
) -> list[jax.ShapeDtypeStruct]:
    """Shapes of the images that a batch of slices costs the backbone.

    Args:
      config: of a DRENet.
      batch: slices.
      train: with M crops of each group; else with K.
    """
    model = config.model
    crops = sum(model.train_proposals if train else model.top_k)
    shapes = [(batch, model.image_size_px)] * (1 if model.context == "none" else 2)
    shapes.append((batch * crops, model.crop_size_px))
    return [jax.ShapeDtypeStruct((n, size, size, 3), DTYPES[model.dtype]) for n, size in shapes]


def stacks_of(config: ml_collections.ConfigDict, batch: int, *, train: bool) -> list[jax.Array]:
    """Random images of `stack_shapes`; every pass has its own, or the compiler would merge two."""
    shapes = stack_shapes(config, batch, train=train)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.normal(key, stack.shape, stack.dtype)
        for key, stack in zip(keys, shapes, strict=True)
    ]


def bare_passes(
    config: ml_collections.ConfigDict,
    stacks: list[jax.Array],
    *,
    train: bool,
    backward: bool = True,
) -> Callable[[], object]:
    """The passes over `stacks`, compiled, as work that waits for its result.

    Args:
      config: of a DRENet.
      stacks: see `stacks_of`.
      train: with batch statistics.
      backward: while training, backward by the parameters too.
    """
    model = config.model
    network = Passes(model.backbone, model.width, DTYPES[model.dtype], model.get("remat", False))
    variables = jax.jit(lambda key: network.init(key, [stacks[-1][:1]], False))(jax.random.key(1))
    arguments = variables["params"], variables["batch_stats"], stacks
    function = (network.gradient if backward else network.loss) if train else network.forward
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))
