"""Batch norm with PyTorch's numerics, joined with the shortcut and the ReLU that follow it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from drenet_jax.models.custom_gradients import (
    add_and_relu,
    normalize,
    normalize_shortcut_relu,
    widen,
)
from drenet_jax.models.layers import resolve_platform


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, with what follows it in a ResNet.

    Parameters and statistics have the names of Flax's. With several domains (domain-specific batch
    norm: the passes of a DRENet) each has running statistics, and all share scale and bias.

    Attributes:
      use_running_average: whether statistics are the running ones and not those of the batch.
      dtype: of the result; None: that of the input.
      axis_name: the pmap axis over which a batch's statistics are averaged.
      platform: see `resolve_platform`.
      domains: how many; running statistics are [domains, C]. None: a single one, [C].
      domain: that of the input.
      momentum: the share of the old running value in the new one; 0.9 is PyTorch's 0.1.
      epsilon: added to the variance.
    """

    use_running_average: bool
    dtype: DTypeLike | None = None
    axis_name: str | None = None
    platform: str | None = None
    domains: int | None = None
    domain: int = 0
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*batch channels"],
        shortcut: Float[Array, "*batch channels"] | None = None,
        *,
        relu: bool = False,
    ) -> Float[Array, "*batch channels"]:
        """Normalises, adds a shortcut and applies a ReLU.

        Raises:
          ValueError: the running statistics that were given have another shape.
        """
        channels = x.shape[-1:]
        shape = channels if self.domains is None else (self.domains, *channels)
        index = () if self.domains is None else (self.domain,)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        # Flax compares shapes of parameters only, and [C] indexed by the domain would broadcast.
        for running in (running_mean, running_var):
            if running.value.shape != shape:
                raise ValueError(
                    f"running statistics have shape {running.value.shape}, not {shape}"
                )
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        wide, dtype = widen(x), jnp.dtype(self.dtype or x.dtype)
        if self.use_running_average:
            mean, var = running_mean.value[index], running_var.value[index]
            y = (wide - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias
            return add_and_relu(y.astype(dtype), shortcut, relu)
        axes = tuple(range(x.ndim - 1))
        moments = wide.mean(axes), jnp.square(wide).mean(axes)
        if self.axis_name is not None and not self.is_initializing():
            moments = lax.pmean(moments, self.axis_name)
        mean, mean_of_squares = moments
        var = jnp.maximum(0, mean_of_squares - jnp.square(mean))
        if not self.is_initializing():
            for running, value in ((running_mean, mean), (running_var, var)):
                new = self.momentum * running.value[index] + (1 - self.momentum) * value
                running.value = jnp.asarray(running.value).at[index].set(new)
        factor = lax.rsqrt(var + self.epsilon) * scale
        if resolve_platform(self.platform) == "cpu":
            y = normalize(wide, mean, factor.astype(wide.dtype), bias.astype(wide.dtype))
            return add_and_relu(y.astype(dtype), shortcut, relu)
        return normalize_shortcut_relu(x, mean, factor, bias, shortcut, relu, dtype)


def single_domain_shapes(statistics: Any) -> Any:
    """The shapes of running statistics, as they are without domains: [C] each."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[-1:], x.dtype), statistics)


def fit_domains(statistics: Any, like: Any) -> Any:
    """Running statistics for the domains of `like`, a tree of the same structure.

    A domain that is missing starts from the first.
    """

    def fit(array: np.ndarray, wanted: Any) -> np.ndarray:
        by_domain = array.reshape(-1, array.shape[-1])
        n = 1 if len(wanted.shape) == 1 else wanted.shape[0]
        missing = np.repeat(by_domain[:1], max(n - len(by_domain), 0), axis=0)
        return np.concatenate([by_domain[:n], missing]).reshape(wanted.shape)

    return jax.tree.map(fit, statistics, like)
