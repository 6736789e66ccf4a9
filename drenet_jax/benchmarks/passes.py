"""The ResNet passes that the method needs, without the method: what our speeds are measured by."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from drenet_jax.models.build import DTYPES
from drenet_jax.models.resnet import ResNet


class Passes(nn.Module):
    """One backbone over several stacks of images, each with a pass of its own.

    Attributes:
      backbone, width, dtype, remat: as those of `DRENet`.
    """

    backbone: str
    width: int
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, stacks: list[jax.Array], train: bool) -> list[jax.Array]:
        """[n, S, S, 3] each -> pooled features [n, C] each."""
        network = ResNet(self.backbone, self.width, self.dtype, None, self.remat, name="backbone")
        return [network(stack, train)[1] for stack in stacks]


def stacks_of(config: ml_collections.ConfigDict, batch: int, *, train: bool) -> list[jax.Array]:
    """The images that a batch of slices costs the backbone, random.

    Every pass has its own, or the compiler would merge two passes into one.

    Args:
      config: of a DRENet.
      batch: slices.
      train: with M crops of each group; else with K.
    """
    model = config.model
    crops = sum(model.train_proposals if train else model.top_k)
    shapes = [(batch, model.image_size_px)] * (1 if model.context == "none" else 2)
    shapes.append((batch * crops, model.crop_size_px))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.normal(key, (n, size, size, 3), DTYPES[model.dtype])
        for key, (n, size) in zip(keys, shapes, strict=True)
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

    def forward(params, batch_stats, stacks):
        return network.apply({"params": params, "batch_stats": batch_stats}, stacks, False)

    def loss(params, batch_stats, stacks):
        pooled, updates = network.apply(
            {"params": params, "batch_stats": batch_stats}, stacks, True, mutable=["batch_stats"]
        )
        return sum(jnp.mean(jnp.square(one)) for one in pooled), updates

    arguments = variables["params"], variables["batch_stats"], stacks
    function = (jax.grad(loss, has_aux=True) if backward else loss) if train else forward
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))
