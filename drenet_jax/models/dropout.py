"""Dropout by a key of each image, the same whatever batch or device the image is on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(
    features: Float[Array, "batch ..."], keys: Key[Array, " batch"], stream: int, rate: float
) -> Float[Array, "batch ..."]:
    """Drops features of each image by the image's own key, and scales up the others.

    Args:
      features: of each image.
      keys: a PRNG key for each image.
      stream: tells apart the places in a network that share the keys.
      rate: the share that is dropped, from 0 to below 1.
    """

    def one_image(x: jax.Array, key: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(jax.random.fold_in(key, stream), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), 0)

    return jax.vmap(one_image)(features, keys)
