"""Hand-written gradients of batch norm, max-pooling, and the stem's and depthwise convolutions.

Values are those of the plain operations; gradients keep less and read memory less often than XLA's
own. Measurements, and where each is used: docs/performance.md (CPU) and docs/accelerators.md.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# What a forward pass keeps for the backward pass.
Residuals = tuple[Any, ...]

Images = Float[Array, "_ _ _ _"]
Kernel = Float[Array, "_ _ _ _"]
DepthwiseKernel = Float[Array, "_ _ 1 channels"]
Maps = Float[Array, "*batch channels"]
Vector = Float[Array, " channels"]


def add_and_relu(y: Maps, shortcut: Maps | None, relu: bool) -> Maps:
    y = y if shortcut is None else y + shortcut
    return nn.relu(y) if relu else y


@jax.custom_vjp
def normalize(x: Maps, mean: Vector, factor: Vector, bias: Vector) -> Maps:
    """(x − mean) · factor + bias. Its gradient keeps x only; XLA would keep x − mean too."""
    return (x - mean) * factor + bias


def _normalize_forward(
    x: Maps, mean: Vector, factor: Vector, bias: Vector
) -> tuple[Maps, Residuals]:
    return normalize(x, mean, factor, bias), (x, mean, factor)


def _normalize_backward(kept: Residuals, g: Maps) -> tuple[Maps, Vector, Vector, Vector]:
    x, mean, factor = kept
    axes = tuple(range(x.ndim - 1))
    d_bias = g.sum(axes)
    return g * factor, -factor * d_bias, (g * x).sum(axes) - mean * d_bias, d_bias


normalize.defvjp(_normalize_forward, _normalize_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def normalize_shortcut_relu(
    x: Maps,
    mean: Vector,
    factor: Vector,
    bias: Vector,
    shortcut: Maps | None,
    relu: bool,
    dtype: DTypeLike,
) -> Maps:
    """(x − mean) · factor + bias, plus a shortcut, with a ReLU, computed in float32.

    Its gradient keeps what the layers before and behind keep anyway, and makes three sweeps over
    it at the most, where XLA's own makes five (docs/accelerators.md).
    """
    wide = widen(x)
    y = (wide - mean) * factor.astype(wide.dtype) + bias.astype(wide.dtype)
    y = add_and_relu(y, None if shortcut is None else widen(shortcut), relu).astype(dtype)
    # Without the barrier XLA would keep y in float32 too, for the next block's shortcut.
    return y if shortcut is None else lax.optimization_barrier(y)


def _normalize_shortcut_relu_forward(
    x: Maps,
    mean: Vector,
    factor: Vector,
    bias: Vector,
    shortcut: Maps | None,
    relu: bool,
    dtype: DTypeLike,
) -> tuple[Maps, Residuals]:
    y = normalize_shortcut_relu(x, mean, factor, bias, shortcut, relu, dtype)
    # Without a shortcut, where the ReLU was active is found from x: one array less is read.
    return y, (x, mean, factor, bias, None if shortcut is None else y)


def _normalize_shortcut_relu_backward(
    relu: bool, dtype: DTypeLike, kept: Residuals, dy: Maps
) -> tuple[Array | None, ...]:
    del dtype
    x, mean, factor, bias, y = kept
    wide, dy = widen(x), widen(dy)
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
        g = widen(d_shortcut)
    return (g * factor).astype(x.dtype), -factor * d_bias, d_factor, d_bias, d_shortcut


normalize_shortcut_relu.defvjp(_normalize_shortcut_relu_forward, _normalize_shortcut_relu_backward)


def widen(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """In float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def convolve(x: Images, kernel: Kernel, stride: int, padding: tuple[int, int]) -> Images:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (padding, padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def plain_stem_conv(x: Images, kernel: Kernel) -> Images:
    return convolve(x, kernel, 2, (3, 3))


stem_conv = jax.custom_vjp(plain_stem_conv)


def _stem_conv_forward(x: Images, kernel: Kernel) -> tuple[Images, Residuals]:
    return plain_stem_conv(x, kernel), (x, kernel)


def _stem_conv_backward(kept: Residuals, g: Images) -> tuple[Images, Kernel]:
    x, kernel = kept
    (d_kernel,) = jax.vjp(lambda kernel: plain_stem_conv(x, kernel), kernel)[1](g)
    # Row 2m + a of the image is seen by row m + t of the result through the kernel's row
    # a + 3 − 2t, so one 4×4 convolution finds the four pixels (a, b) of each cell together. XLA
    # would spread g out with zeros between and multiply them all.
    t = jnp.arange(-1, 3)[:, None]
    rows = jnp.arange(2) + 3 - 2 * t
    beyond = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))  # its row 7 is zero
    rows = jnp.where(rows < 7, rows, 7)
    parts = beyond[rows][:, :, rows].transpose(0, 2, 5, 1, 3, 4)
    cells = convolve(g, parts.reshape(4, 4, kernel.shape[3], -1), 1, (1, 2))
    b, h, w, _ = cells.shape
    dx = cells.reshape(b, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)
    return dx[:, : x.shape[1], : x.shape[2]], d_kernel


stem_conv.defvjp(_stem_conv_forward, _stem_conv_backward)


def plain_max_pool(x: Images) -> Images:
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


max_pool = jax.custom_vjp(plain_max_pool)


def _max_pool_forward(x: Images) -> tuple[Images, Images]:
    return plain_max_pool(x), x


def _max_pool_backward(x: Images, g: Images) -> tuple[Images]:
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


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def plain_depthwise_conv(x: Images, kernel: DepthwiseKernel, stride: int) -> Images:
    """A convolution of each channel by itself, with SAME padding."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=kernel.shape[3],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: Images, kernel: DepthwiseKernel, stride: int) -> Images:
    """The same as a sum of shifted products: XLA's convolution is many times slower on CPU."""
    return functools.reduce(
        jnp.add, (seen * kernel[i, j, 0] for i, j, seen in _seen_by(x, len(kernel), stride))
    )


def _seen_by(x: Images, kernel_size: int, stride: int) -> Iterator[tuple[int, int, Images]]:
    """For each cell (i, j) of a depthwise kernel, the pixels that it is multiplied with."""
    k = kernel_size
    padding = lax.padtype_to_pads(x.shape[1:3], (k, k), (stride, stride), "SAME")
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (stride * (-(-n // stride) - 1) + 1 for n in x.shape[1:3])
    for i, j in itertools.product(range(k), repeat=2):
        yield i, j, padded[:, i : i + height : stride, j : j + width : stride]


def _depthwise_conv_forward(
    x: Images, kernel: DepthwiseKernel, stride: int
) -> tuple[Images, Residuals]:
    return depthwise_conv(x, kernel, stride), (x, kernel)


def _depthwise_conv_backward(
    stride: int, kept: Residuals, g: Images
) -> tuple[Images, DepthwiseKernel]:
    x, kernel = kept
    k, s = len(kernel), stride
    # All sums in one reduction, and that of columns apart: XLA's sums over all but the last axis
    # read the maps once for each, in steps of a whole row.
    products = [widen(seen) * widen(g) for _, _, seen in _seen_by(x, k, s)]
    zeros = [jnp.zeros((), product.dtype) for product in products]
    sums = lax.reduce(products, zeros, _add_each, (0, 1))
    d_kernel = jnp.stack([columns.sum(0) for columns in sums]).reshape(kernel.shape)
    # Row s·m + a of the padded image is seen by row m − t of the result through the kernel's row
    # a + s·t.
    padding = lax.padtype_to_pads(x.shape[1:3], (k, k), (s, s), "SAME")
    (top, _), (left, _) = padding
    rows, columns = (
        -(-(n + sum(pads)) // s) for n, pads in zip(x.shape[1:3], padding, strict=True)
    )
    t_max = (k - 1) // s
    around = [(t_max, n - m) for n, m in zip((rows, columns), g.shape[1:3], strict=True)]
    padded = jnp.pad(g, ((0, 0), *around, (0, 0)))

    def phase(a: int, b: int) -> Images:
        """The gradient of every s-th pixel of the padded image, from (a, b) on."""
        return functools.reduce(
            jnp.add,
            (
                padded[:, t_max - t :, t_max - u :][:, :rows, :columns]
                * kernel[a + s * t, b + s * u, 0]
                for t in range((k - 1 - a) // s + 1)
                for u in range((k - 1 - b) // s + 1)
            ),
        )

    phases = jnp.stack([jnp.stack([phase(a, b) for b in range(s)], axis=3) for a in range(s)], 2)
    dx = phases.reshape(len(x), s * rows, s * columns, -1)
    dx = dx[:, top : top + x.shape[1], left : left + x.shape[2]]
    return dx, d_kernel.astype(kernel.dtype)


def _add_each(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


depthwise_conv.defvjp(_depthwise_conv_forward, _depthwise_conv_backward)
