"""Layers whose gradients, or whose formulas, are chosen by the platform that they are compiled for.

Parameters, statistics and results are those of Flax's layers on every platform. What is chosen
where, and what it brings: docs/performance.md (CPU) and docs/accelerators.md (GPU, TPU).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Flax's momentum is the share of the old value: 0.9 here is PyTorch's 0.1.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def resolve_platform(platform: str | None) -> str:
    """The platform that a program is for: "cpu", "gpu" or "tpu".

    Args:
      platform: of the program, when it is compiled for a device that is not here; None: that of
        JAX's default backend.
    """
    return platform or jax.default_backend()


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
            return _followed(super().__call__(x), shortcut, relu)
        channels = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, self.param_dtype)
        bias = self.param("bias", self.bias_init, channels, self.param_dtype)
        wide = _wide(x)
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
            y = _scaled(wide, batch_mean, factor.astype(wide.dtype), bias.astype(wide.dtype))
            return _followed(y.astype(dtype), shortcut, relu)
        return _scaled_and_followed(x, batch_mean, factor, bias, shortcut, relu, dtype)


def _followed(y: jax.Array, shortcut: jax.Array | None, relu: bool) -> jax.Array:
    y = y if shortcut is None else y + shortcut
    return nn.relu(y) if relu else y


@jax.custom_vjp
def _scaled(x: jax.Array, mean: jax.Array, factor: jax.Array, bias: jax.Array) -> jax.Array:
    """(x − mean) · factor + bias. Its gradient keeps x only; XLA would keep x − mean too."""
    return (x - mean) * factor + bias


def _scaled_forward(x, mean, factor, bias):
    return _scaled(x, mean, factor, bias), (x, mean, factor)


def _scaled_backward(kept, g):
    x, mean, factor = kept
    axes = tuple(range(x.ndim - 1))
    d_bias = g.sum(axes)
    return g * factor, -factor * d_bias, (g * x).sum(axes) - mean * d_bias, d_bias


_scaled.defvjp(_scaled_forward, _scaled_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _scaled_and_followed(x, mean, factor, bias, shortcut, relu, dtype):
    """(x − mean) · factor + bias, plus a shortcut, with a ReLU, computed in float32.

    Its gradient keeps what the layers before and behind keep anyway, and makes three sweeps over
    it at the most, where XLA's own makes five (docs/accelerators.md).
    """
    wide = _wide(x)
    y = (wide - mean) * factor.astype(wide.dtype) + bias.astype(wide.dtype)
    y = _followed(y, None if shortcut is None else _wide(shortcut), relu).astype(dtype)
    # Without the barrier XLA would keep y in float32 too, for the next block's shortcut.
    return y if shortcut is None else lax.optimization_barrier(y)


def _scaled_and_followed_forward(x, mean, factor, bias, shortcut, relu, dtype):
    y = _scaled_and_followed(x, mean, factor, bias, shortcut, relu, dtype)
    # Without a shortcut, where the ReLU was active is found from x: one array less is read.
    return y, (x, mean, factor, bias, None if shortcut is None else y)


def _scaled_and_followed_backward(relu, dtype, kept, dy):
    del dtype
    x, mean, factor, bias, y = kept
    wide, dy = _wide(x), _wide(dy)
    centred = wide - mean

    def before_relu(is_active: jax.Array) -> jax.Array:
        return jnp.where(is_active if y is None else y > 0, dy, 0) if relu else dy

    # In another form for each use: XLA would write what it finds twice to memory, which costs more
    # than to compute it again.
    g = before_relu(wide * factor > mean * factor - bias)
    axes = tuple(range(x.ndim - 1))
    d_bias, d_factor = g.sum(axes), (g * centred).sum(axes)
    if y is None:
        d_shortcut, g = None, before_relu(centred * factor > -bias)
    else:
        d_shortcut = lax.optimization_barrier(g.astype(y.dtype))
        g = _wide(d_shortcut)
    return (g * factor).astype(x.dtype), -factor * d_bias, d_factor, d_bias, d_shortcut


_scaled_and_followed.defvjp(_scaled_and_followed_forward, _scaled_and_followed_backward)


def _wide(x: jax.Array) -> jax.Array:
    """In float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Conv1x1(nn.Module):
    """A 1×1 convolution without bias, on CPU written as a matrix product.

    The same parameter (`kernel` [1, 1, C_in, C_out]) and the same result as `nn.Conv`. XLA's
    gradient of the product is about twice as fast on CPU; on GPU its compiler aborts on that of a
    strided one (openxla/xla#47381).
    """

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    platform: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", kernel_init, (1, 1, x.shape[-1], self.features))
        if resolve_platform(self.platform) != "cpu":
            return _convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, (0, 0))
        x = x[:, :: self.stride, :: self.stride, :].astype(self.dtype)
        # Of two axes: XLA transposes what is summed over several of them in the gradient.
        y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0].astype(self.dtype))
        return y.reshape(*x.shape[:-1], -1)


def conv3x3(features: int, stride: int, dtype: jnp.dtype, name: str) -> nn.Conv:
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


class StemConv(nn.Module):
    """The 7×7 convolution of a ResNet's stem: stride 2, padded by 3, without bias.

    The same parameter (`kernel` [7, 7, C_in, C_out]) and the same result as `nn.Conv`.
    """

    features: int
    dtype: jnp.dtype
    platform: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", kernel_init, (7, 7, x.shape[-1], self.features))
        convolve = _stem if resolve_platform(self.platform) == "cpu" else _plain_stem
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype))


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _plain_stem(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolve(x, kernel, 2, (3, 3))


_stem = jax.custom_vjp(_plain_stem)


def _stem_forward(x, kernel):
    return _plain_stem(x, kernel), (x, kernel)


def _stem_backward(kept, g):
    x, kernel = kept
    (d_kernel,) = jax.vjp(lambda kernel: _plain_stem(x, kernel), kernel)[1](g)
    # Row 2m + a of the image is seen by row m + t of the result through the kernel's row
    # a + 3 − 2t, so one 4×4 convolution finds the four pixels (a, b) of each cell together. XLA
    # would spread g out with zeros between and multiply them all.
    t = jnp.arange(-1, 3)[:, None]
    rows = jnp.arange(2) + 3 - 2 * t
    beyond = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))  # its row 7 is zero
    rows = jnp.where(rows < 7, rows, 7)
    parts = beyond[rows][:, :, rows].transpose(0, 2, 5, 1, 3, 4)
    cells = _convolve(g, parts.reshape(4, 4, kernel.shape[3], -1), 1, (1, 2))
    b, h, w, _ = cells.shape
    dx = cells.reshape(b, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)
    return dx[:, : x.shape[1], : x.shape[2]], d_kernel


_stem.defvjp(_stem_forward, _stem_backward)


def max_pool_3x3(x: jax.Array, platform: str | None = None) -> jax.Array:
    """3×3 maxima at every second pixel, padded by 1: [B, H, W, C] -> [B, ⌈H/2⌉, ⌈W/2⌉, C].

    Of equal values the first, by rows, gets the gradient, as in PyTorch.

    Args:
      x: [B, H, W, C].
      platform: see `resolve_platform`.
    """
    return (_plain_max_pool if resolve_platform(platform) == "tpu" else _max_pool)(x)


def _plain_max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


_max_pool = jax.custom_vjp(_plain_max_pool)


def _max_pool_forward(x):
    return _plain_max_pool(x), x


def _max_pool_backward(x, g):
    b, h, w, c = g.shape
    padded = lax.pad(
        x,
        jnp.array(-jnp.inf, x.dtype),
        ((0, 0, 0), (1, 2 * h - x.shape[1], 0), (1, 2 * w - x.shape[2], 0), (0, 0, 0)),
    )
    # Which of its nine pixels a maximum came from. Found anew rather than by comparison with the
    # maxima: where the compiler computes x twice, the last bit may differ.
    best, place = None, jnp.zeros(g.shape, jnp.int8)
    for i in range(3):
        for j in range(3):
            seen = padded[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2]
            if best is None:
                best = seen
                continue
            place = jnp.where(seen > best, jnp.int8(3 * i + j), place)
            best = jnp.maximum(best, seen)

    def of(i: int, j: int, below: int, right: int) -> jax.Array:
        """What the maximum, or that below or right of it, gives to its pixel (i, j)."""
        given = jnp.where(place == 3 * i + j, g, 0)
        return jnp.pad(given[:, below:, right:], ((0, 0), (0, below), (0, right), (0, 0)))

    # A pixel in an even row is seen by one row of maxima, in an odd row by two; columns alike.
    even = jnp.stack([of(1, 1, 0, 0), of(1, 2, 0, 0) + of(1, 0, 0, 1)], axis=3)
    odd = jnp.stack(
        [
            of(2, 1, 0, 0) + of(0, 1, 1, 0),
            of(2, 2, 0, 0) + of(2, 0, 0, 1) + of(0, 2, 1, 0) + of(0, 0, 1, 1),
        ],
        axis=3,
    )
    dx = jnp.stack([even, odd], axis=2).reshape(b, 2 * h, 2 * w, c)
    return (dx[:, : x.shape[1], : x.shape[2]],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
