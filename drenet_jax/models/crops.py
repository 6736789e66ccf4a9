"""Differentiable crops, by gathers or (TPU) by products, and the image weighted by boxes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from drenet_jax.models.layers import resolve_platform
from drenet_jax.models.model_outputs import normalise

# Boxes are y0, x0, y1, x1 in pixels of the image, half open.
Boxes = Float[Array, "batch boxes 4"]


def crop_and_resize(
    images: Float[Array, "batch height width channels"],
    boxes: Boxes,
    size: tuple[int, int],
    platform: str | None = None,
) -> Float[Array, "batch boxes {size[0]} {size[1]} channels"]:
    """Cuts boxes out of images and resizes them, bilinear, corners aligned.

    A box (y0, x0, y1, x1) is the half-open cut [y0:y1, x0:x1] in pixels of the image; its sides
    need not be whole numbers. Output row i is read at y0 + i (y1 − 1 − y0) / (h − 1), so that the
    first and the last row of the output are the first and the last row of the cut; columns alike.
    The image goes on as zeros outside its border, and a sample between the border and the outside
    is between the two. Equal to PyTorch's `interpolate(mode="bilinear", align_corners=True)` of the
    zero-padded cut. Differentiable in `images` and in `boxes`.

    Args:
      images: to be cropped.
      boxes: of each image.
      size: height and width of a crop, in pixels.
      platform: see `layers.resolve_platform`. A TPU gathers single pixels, whose 3 channels it pads
        to 128, at a thousand times the traffic of two products (docs/accelerators.md).
    """
    # Positions are float32 at least: bfloat16 cannot tell neighbouring pixels apart.
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    crop_one = _crop_by_products if resolve_platform(platform) == "tpu" else _crop_by_gathers
    return jax.vmap(jax.vmap(crop_one, in_axes=(None, 0, None)), in_axes=(0, 0, None))(
        images, boxes, size
    )


def crop_slices(
    images: Float[Array, "batch height width"],
    boxes: Boxes,
    size: tuple[int, int],
    dtype: DTypeLike,
    platform: str | None = None,
) -> Float[Array, "batch boxes {size[0]} {size[1]} 3"]:
    """The crops of normalised slices.

    Args:
      images: grey in 0..1.
      boxes: of each image.
      size: height and width of a crop, in pixels.
      dtype: of the normalised slices and of the crops.
      platform: see `layers.resolve_platform`. On TPU the grey channel is cropped and normalised
        afterwards: another layout of three channels would cost more than the crops.
    """
    if resolve_platform(platform) != "tpu":
        return crop_and_resize(normalise(images).astype(dtype), boxes, size, platform)
    images = images.astype(jnp.float32)
    grey = crop_and_resize(images[..., None], boxes, size, platform)[..., 0]
    # Outside its border a normalised image goes on as zeros, without the mean taken off.
    return normalise(grey, _inside(boxes, size, (images.shape[1], images.shape[2]))).astype(dtype)


def _inside(boxes: jax.Array, size: tuple[int, int], image_size: tuple[int, int]) -> jax.Array:
    """[B, K, h, w]: the share of each sample that lies in the image, 0..1."""

    def along(start: jax.Array, stop: jax.Array, n: int, length: int) -> jax.Array:
        samples = functools.partial(_samples, n=n, length=length)
        _, (low, high) = jax.vmap(jax.vmap(samples))(start, stop)
        return low + high

    y0, x0, y1, x1 = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    rows = along(y0, y1, size[0], image_size[0])
    columns = along(x0, x1, size[1], image_size[1])
    return rows[..., :, None] * columns[..., None, :]


def _crop_by_gathers(image: jax.Array, box: jax.Array, size: tuple[int, int]) -> jax.Array:
    y0, x0, y1, x1 = box
    (y_low, y_high), (wy_low, wy_high) = _samples(y0, y1, size[0], image.shape[0])
    (x_low, x_high), (wx_low, wx_high) = _samples(x0, x1, size[1], image.shape[1])
    dtype = image.dtype
    wx_low, wx_high = (w.astype(dtype)[None, :, None] for w in (wx_low, wx_high))
    wy_low, wy_high = (w.astype(dtype)[:, None, None] for w in (wy_low, wy_high))
    top = image[y_low[:, None], x_low] * wx_low + image[y_low[:, None], x_high] * wx_high
    bottom = image[y_high[:, None], x_low] * wx_low + image[y_high[:, None], x_high] * wx_high
    return top * wy_low + bottom * wy_high


def _crop_by_products(image: jax.Array, box: jax.Array, size: tuple[int, int]) -> jax.Array:
    y0, x0, y1, x1 = box
    of_rows = _sample_weights(y0, y1, size[0], image.shape[0]).astype(image.dtype)
    of_columns = _sample_weights(x0, x1, size[1], image.shape[1]).astype(image.dtype)
    # A TPU would round float32 to bfloat16 first.
    exact = jax.lax.Precision.HIGHEST
    rows = jnp.einsum("yh,hxc->yxc", of_rows, image, precision=exact)
    return jnp.einsum("zx,yxc->yzc", of_columns, rows, precision=exact)


def _sample_weights(start: jax.Array, stop: jax.Array, n: int, length: int) -> jax.Array:
    """[n, length]: by how much each pixel along one axis goes into each sample."""
    pixels, weights = _samples(start, stop, n, length)
    low, high = (
        jnp.where(jnp.arange(length) == pixel[:, None], weight[:, None], 0)
        for pixel, weight in zip(pixels, weights, strict=True)
    )
    return low + high


def _samples(
    start: jax.Array, stop: jax.Array, n: int, length: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The two pixels beside each sample along one axis and their weights, 0 outside the image."""
    # Whole pixels apart from fractions: what is left is as exact at the far side of the image.
    whole = jnp.floor(start)
    scale = (stop - 1 - start) / max(n - 1, 1)
    position = (start - whole) + scale * jnp.arange(n, dtype=scale.dtype)
    low = jnp.floor(position)
    weight_high = position - low
    low = whole + low
    pixels, weights = [], []
    for pixel, weight in ((low, 1 - weight_high), (low + 1, weight_high)):
        inside = (pixel >= 0) & (pixel <= length - 1)
        pixels.append(jnp.clip(pixel, 0, length - 1).astype(jnp.int32))
        weights.append(jnp.where(inside, weight, 0))
    return pixels, weights


def box_attention(
    boxes: Boxes, confidences: Float[Array, "batch boxes"], height: int, width: int
) -> Float[Array, "batch {height} {width}"]:
    """How much each pixel of an image is looked at (paper 2.2.2).

    Args:
      boxes: of each image.
      confidences: the weight of each box, 0 or more.
      height: of the image, in pixels.
      width: of the image, in pixels.

    Returns:
      At each pixel the largest confidence among the boxes that hold it, 0
      outside all boxes. The gradient flows into the confidence that was the largest.
    """
    rows = jnp.arange(height, dtype=boxes.dtype)
    columns = jnp.arange(width, dtype=boxes.dtype)
    y0, x0, y1, x1 = jnp.moveaxis(boxes, -1, 0)
    in_rows = (rows >= y0[..., None]) & (rows < y1[..., None])
    in_columns = (columns >= x0[..., None]) & (columns < x1[..., None])
    inside = in_rows[..., :, None] & in_columns[..., None, :]
    return jnp.max(jnp.where(inside, confidences[..., None, None], 0), axis=1)
