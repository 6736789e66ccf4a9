"""Batch norm with PyTorch's numerics, joined with the shortcut and the ReLU that follow it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from drenet_jax.models.custom_gradients import (
    add_and_relu,
    normalize,
    normalize_shortcut_relu,
    widen,
)
from drenet_jax.models.layers import resolve_platform

# Flax's momentum is the share of the old value: 0.9 here is PyTorch's 0.1.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5


@functools.lru_cache
def batch_norm(
    train: bool, dtype: jnp.dtype, axis_name: str | None, platform: str | None
) -> Callable[..., nn.Module]:
    """Makes batch norms with PyTorch's numerics; the same maker for the same arguments.

    Args:
      train: whether statistics are those of the batch.
      dtype: of the result.
      axis_name: the pmap axis over which a batch's statistics are averaged.
      platform: see `resolve_platform`.
    """
    return functools.partial(
        BatchNorm,
        use_running_average=not train,
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        dtype=dtype,
        axis_name=axis_name,
        platform=platform,
    )


class BatchNorm(nn.BatchNorm):
    """Flax's batch norm over all axes but the last, with what follows it in a ResNet.

    Attributes:
      platform: see `resolve_platform`.
    """

    platform: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, shortcut: jax.Array | None = None, *, relu: bool = False
    ) -> jax.Array:
        """Normalises, adds a shortcut and applies a ReLU.

        Args:
          x: [..., C].
          shortcut: [..., C], added to the normalised x; None: nothing is added.
          relu: whether a ReLU follows.

        Returns:
          [..., C], of type `dtype`; x's, if that is None.
        """
        if self.use_running_average:
            return add_and_relu(super().__call__(x), shortcut, relu)
        channels = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, self.param_dtype)
        bias = self.param("bias", self.bias_init, channels, self.param_dtype)
        wide = widen(x)
        axes = tuple(range(x.ndim - 1))
        moments = wide.mean(axes), jnp.square(wide).mean(axes)
        if self.axis_name is not None and not self.is_initializing():
            moments = lax.pmean(moments, self.axis_name)
        batch_mean, mean_of_squares = moments
        batch_var = jnp.maximum(0, mean_of_squares - jnp.square(batch_mean))
        if not self.is_initializing():
            rest = 1 - self.momentum
            mean.value = self.momentum * mean.value + rest * batch_mean
            var.value = self.momentum * var.value + rest * batch_var
        factor = lax.rsqrt(batch_var + self.epsilon) * scale
        dtype = jnp.dtype(self.dtype or x.dtype)
        if resolve_platform(self.platform) == "cpu":
            y = normalize(wide, batch_mean, factor.astype(wide.dtype), bias.astype(wide.dtype))
            return add_and_relu(y.astype(dtype), shortcut, relu)
        return normalize_shortcut_relu(x, batch_mean, factor, bias, shortcut, relu, dtype)
