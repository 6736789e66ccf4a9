"""Dropout by a key of each image, the same whatever batch or device the image is on."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dropout(features: jax.Array, keys: jax.Array, stream: int, rate: float) -> jax.Array:
    """Drops features of each image by the image's own key, and scales up the others.

    Args:
      features: [B, ...].
      keys: [B] PRNG keys, one for each image.
      stream: tells apart the places in a network that share the keys.
      rate: the share that is dropped, from 0 to below 1.

    Returns:
      [B, ...], of the features' type.
    """

    def one_image(x: jax.Array, key: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(jax.random.fold_in(key, stream), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), 0)

    return jax.vmap(one_image)(features, keys)
