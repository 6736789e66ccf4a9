"""Convolutions and pooling whose gradients or formulas depend on the platform.

Parameters, statistics and results are those of Flax's layers on every platform. What is chosen
where, and what it brings: docs/performance.md (CPU) and docs/accelerators.md (GPU, TPU).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from drenet_jax.models.custom_gradients import (
    convolve,
    depthwise_conv,
    max_pool,
    plain_depthwise_conv,
    plain_max_pool,
    plain_stem_conv,
    stem_conv,
)

kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def resolve_platform(platform: str | None) -> str:
    """The platform that a program is for: "cpu", "gpu" or "tpu".

    Args:
      platform: of the program, when it is compiled for a device that is not here; None: that of
        JAX's default backend.
    """
    return platform or jax.default_backend()


class Conv1x1(nn.Module):
    """A 1×1 convolution without bias, on CPU written as a matrix product.

    The same parameter (`kernel` [1, 1, C_in, C_out]) and the same result as `nn.Conv`. XLA's
    gradient of the product is about twice as fast on CPU; on GPU its compiler aborts on that of a
    strided one (openxla/xla#47381).
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    platform: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch -(-height//{self.stride}) -(-width//{self.stride}) {self.features}"]:
        kernel = self.param("kernel", kernel_init, (1, 1, x.shape[-1], self.features))
        if resolve_platform(self.platform) != "cpu":
            return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, (0, 0))
        x = x[:, :: self.stride, :: self.stride, :].astype(self.dtype)
        # Of two axes: XLA transposes what is summed over several of them in the gradient.
        y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0].astype(self.dtype))
        return y.reshape(*x.shape[:-1], -1)


def conv3x3(features: int, stride: int, dtype: DTypeLike, name: str) -> nn.Conv:
    """A 3×3 convolution without bias, padded by 1."""
    return nn.Conv(
        features,
        (3, 3),
        strides=stride,
        padding=((1, 1), (1, 1)),
        use_bias=False,
        kernel_init=kernel_init,
        dtype=dtype,
        name=name,
    )


class DepthwiseConv(nn.Module):
    """A convolution of each channel by itself, with SAME padding and without bias.

    The same parameter (`kernel` [k, k, 1, C]) and the same result as `nn.Conv` with
    `feature_group_count`.
    """

    kernel_size: int
    stride: int
    dtype: DTypeLike = jnp.float32
    platform: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch -(-height//{self.stride}) -(-width//{self.stride}) channels"]:
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[-1])
        kernel = self.param("kernel", kernel_init, shape)
        is_cpu = resolve_platform(self.platform) == "cpu"
        conv = depthwise_conv if is_cpu else plain_depthwise_conv
        return conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


class StemConv(nn.Module):
    """The 7×7 convolution of a ResNet's stem: stride 2, padded by 3, without bias.

    The same parameter (`kernel` [7, 7, C_in, C_out]) and the same result as `nn.Conv`.
    """

    features: int
    dtype: DTypeLike
    platform: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch (height+1)//2 (width+1)//2 {self.features}"]:
        kernel = self.param("kernel", kernel_init, (7, 7, x.shape[-1], self.features))
        conv = stem_conv if resolve_platform(self.platform) == "cpu" else plain_stem_conv
        return conv(x.astype(self.dtype), kernel.astype(self.dtype))


def max_pool_3x3(
    x: Float[Array, "batch height width channels"], platform: str | None = None
) -> Float[Array, "batch (height+1)//2 (width+1)//2 channels"]:
    """3×3 maxima at every second pixel, padded by 1; `platform`: see `resolve_platform`.

    Of equal values the first, by rows, gets the gradient, as in PyTorch.
    """
    return (plain_max_pool if resolve_platform(platform) == "tpu" else max_pool)(x)
