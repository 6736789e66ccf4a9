"""Augmentation on the device, each slice by its own key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def augment(
    images: Float[Array, "batch height width"],
    keys: Key[Array, " batch"],
    *,
    flip: bool,
    brightness: float,
) -> Float[Array, "batch height width"]:
    """Mirrors left and right with probability 1/2, and scales the brightness.

    Args:
      images: in 0..1, as the result is.
      keys: PRNG keys.
      flip: whether to mirror.
      brightness: b of a factor drawn evenly from 1 − b to 1 + b (the authors' code: 0.126).
    """

    def augment_image(
        image: Float[Array, "height width"], key: Key[Array, ""]
    ) -> Float[Array, "height width"]:
        flip_key, brightness_key = jax.random.split(key)
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        factor = jax.random.uniform(brightness_key, minval=1 - brightness, maxval=1 + brightness)
        return jnp.clip(image * factor, 0, 1)

    return jax.vmap(augment_image)(images, keys)
