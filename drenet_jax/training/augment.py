"""Augmentation on the device, each slice by its own key."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def augment(images: jax.Array, keys: jax.Array, *, flip: bool, brightness: float) -> jax.Array:
    """Mirrors left and right with probability 1/2, and scales the brightness.

    Args:
      images: [B, S, S] in 0..1.
      keys: [B] PRNG keys.
      flip: whether to mirror.
      brightness: b of a factor drawn evenly from 1 − b to 1 + b (the authors' code: 0.126).

    Returns:
      [B, S, S] in 0..1.
    """

    def one_image(image: jax.Array, key: jax.Array) -> jax.Array:
        flip_key, brightness_key = jax.random.split(key)
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        factor = jax.random.uniform(brightness_key, minval=1 - brightness, maxval=1 + brightness)
        return jnp.clip(image * factor, 0, 1)

    return jax.vmap(one_image)(images, keys)
