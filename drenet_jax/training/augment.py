"""Augmentation on the device, each slice by its own key; `config.augment` and two of `config.data`.

In this order, each step where it is switched on:

1. mirroring, left and right;
2. one affine resampling for scale, aspect, rotation and shift together;
3. Gaussian blur;
4. brightness, contrast, gamma;
5. noise;
6. cutout;
7. mixup, of two augmented slices and their labels (`mixup`).

Grey values are in 0..1 and clipped to it after each step. Boxes are cut from augmented slices, so
nothing else has to follow a transformation. There is no elastic deformation: it needs gathers of
single pixels, which TPUs are slow at, and rotation, scale and aspect cover most of what breathing
and positioning change in an axial slice.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Key

Image = Float[Array, "height width"]
Images = Float[Array, "batch height width"]
Keys = Key[Array, " batch"]
Scalar = Float[Array, ""]
Rows = Float[Array, "rows length"]
Samples = Float[Array, "rows samples"]

# Standard deviations after which a Gaussian ends, as in scipy.ndimage.
_TRUNCATE = 4.0
# `jax.random.split` of a slice's key gives those that `fold_in` makes of 0 and 1.
_GEOMETRY, _BLUR, _CONTRAST, _GAMMA, _NOISE, _CUTOUT, _MIXUP = range(2, 9)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The fields of `config.augment` (`configs/drenet.py` has units and reasons), and

    Attributes:
      flip: whether to mirror with probability 1/2.
      brightness: b of a factor drawn evenly from 1 − b to 1 + b.
      is_black_outside: what is moved into the image, and a cutout: black, where the surroundings of
        the lungs are black; else the image mirrored at its border, and its mean grey value.
    """

    flip: bool
    brightness: float
    is_black_outside: bool
    rotation_deg: float
    scale: tuple[float, float]
    aspect: float
    shift: float
    contrast: tuple[float, float]
    gamma: tuple[float, float]
    noise: float
    blur_px: float
    cutout: float
    mixup: float

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> Augmentation:
        fields: dict[str, Any] = {
            # A checkpoint's config has lists.
            name: tuple(value) if isinstance(value, list) else value
            for name, value in config.augment.to_dict().items()
        }
        return cls(
            flip=config.data.flip,
            brightness=config.data.brightness,
            is_black_outside=config.data.fill == "never",
            **fields,
        )

    @property
    def moves(self) -> bool:
        """Whether images are resampled."""
        still = (0, (1, 1), 1, 0)
        return (self.rotation_deg, self.scale, self.aspect, self.shift) != still


def augment(images: Images, keys: Keys, settings: Augmentation) -> Images:
    """Augments each slice by its own key (all but mixup).

    Args:
      images: in 0..1, as the result is.
      keys: PRNG keys.
      settings: what to do.
    """
    return jax.vmap(functools.partial(_augment, settings=settings))(images, keys)


def _augment(image: Image, key: Key[Array, ""], settings: Augmentation) -> Image:
    flip_key, brightness_key = jax.random.split(key)
    if settings.flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    if settings.moves:
        matrix = random_affine(jax.random.fold_in(key, _GEOMETRY), settings, image.shape)
        image = warp(image, matrix, settings.is_black_outside)
    if settings.blur_px:
        sigma_px = jax.random.uniform(jax.random.fold_in(key, _BLUR), maxval=settings.blur_px)
        image = gaussian_blur(image, sigma_px, settings.blur_px)
    factor = jax.random.uniform(
        brightness_key, minval=1 - settings.brightness, maxval=1 + settings.brightness
    )
    image = jnp.clip(image * factor, 0, 1)
    if settings.contrast != (1, 1):
        factor = _log_uniform(jax.random.fold_in(key, _CONTRAST), *settings.contrast)
        image = adjust_contrast(image, factor)
    if settings.gamma != (1, 1):
        image = image ** _log_uniform(jax.random.fold_in(key, _GAMMA), *settings.gamma)
    if settings.noise:
        image = add_noise(image, jax.random.fold_in(key, _NOISE), settings.noise)
    if settings.cutout:
        image = cut_out(
            image,
            jax.random.fold_in(key, _CUTOUT),
            settings.cutout,
            jnp.zeros(()) if settings.is_black_outside else image.mean(),
        )
    return image


def mixup(
    images: Images, targets: Float[Array, "batch classes"], keys: Keys, alpha: float
) -> tuple[Images, Float[Array, "batch classes"]]:
    """Mixes each slice with its neighbour: slices 0 and 1, 2 and 3, ... (Zhang et al., ICLR 2018).

    Neighbours in a batch are on the same device, so that results do not depend on the number of
    devices or micro-batches. A slice keeps the larger share, max(λ, 1 − λ) with λ ~ Beta(α, α).

    Args:
      images: of an even number.
      targets: share of each class.
      keys: PRNG keys, as for `augment`.
      alpha: α.
    """
    if not alpha:
        return images, targets

    def own_share(key: Key[Array, ""]) -> Scalar:
        share = jax.random.beta(jax.random.fold_in(key, _MIXUP), alpha, alpha)
        return jnp.maximum(share, 1 - share)

    share = jax.vmap(own_share)(keys)
    partner = jnp.arange(len(images)) ^ 1

    def mixed(x: Array) -> Array:
        own = share.reshape(-1, *[1] * (x.ndim - 1))
        return own * x + (1 - own) * x[partner]

    return mixed(images), mixed(targets)


def random_affine(
    key: Key[Array, ""], settings: Augmentation, size: tuple[int, ...]
) -> Float[Array, "2 3"]:
    """A matrix from pixels of the result to pixels of the image, for `warp`.

    The content is scaled and stretched, then rotated about the centre (from the rows' axis towards
    the columns'), then shifted.

    Args:
      key: PRNG key.
      settings: `rotation_deg`, `scale`, `aspect` and `shift`.
      size: height and width.
    """
    keys = jax.random.split(key, 4)
    angle = jnp.deg2rad(settings.rotation_deg) * jax.random.uniform(keys[0], minval=-1.0)
    scale = _log_uniform(keys[1], *settings.scale)
    stretch = jnp.sqrt(_log_uniform(keys[2], 1 / settings.aspect, settings.aspect))
    sides = jnp.asarray(size, jnp.float32)
    shift = settings.shift * sides * jax.random.uniform(keys[3], (2,), minval=-1.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    factors = scale * jnp.stack([stretch, 1 / stretch])
    # The inverse of the scale and the rotation after it.
    linear = jnp.array([[cos, sin], [-sin, cos]]) / factors[:, None]
    centre = (sides - 1) / 2
    # Sums of two products; as a matrix product a TPU would round them to bfloat16.
    offset = centre - jnp.sum(linear * (centre + shift), axis=1)
    return jnp.concatenate([linear, offset[:, None]], axis=1)


def warp(image: Image, matrix: Float[Array, "2 3"], is_black_outside: bool) -> Image:
    """Resamples an image, linear, in two passes: along the rows, then along the columns.

    The pixel (y, x) of the result is read at matrix @ (y, x, 1), as by
    `scipy.ndimage.affine_transform`. The passes (Catmull and Smith 1980) interpolate along a
    slightly tilted line where a bilinear interpolation would along a row: without a rotation both
    are equal.

    Args:
      image: to be resampled.
      matrix: from pixels (y, x) of the result to those of the image; matrix[0, 0] is not 0, and
        rotations should be below 45 degrees.
      is_black_outside: the image goes on as zeros; else each pass mirrors it at its border, once.
    """
    (y_by_y, y_by_x, y_offset), (x_by_y, x_by_x, x_offset) = matrix
    rows = jnp.arange(image.shape[0], dtype=jnp.float32)[:, None]
    columns = jnp.arange(image.shape[1], dtype=jnp.float32)
    # The second pass reads this row of the image for this row of the result.
    result_row = (rows - y_by_x * columns - y_offset) / y_by_y
    at_columns = x_by_y * result_row + x_by_x * columns + x_offset
    at_rows = y_by_y * rows + y_by_x * columns + y_offset
    resample = functools.partial(_resample_rows, is_black_outside=is_black_outside)
    return _once(resample(_once(resample(image, at_columns)).T, at_rows.T).T)


def _resample_rows(image: Rows, positions: Samples, is_black_outside: bool) -> Samples:
    """Each row at positions of its own, linear."""
    last = image.shape[1] - 1
    if not is_black_outside:
        positions = jnp.clip(last - jnp.abs(last - jnp.abs(positions)), 0, last)
    return jax.lax.platform_dependent(image, positions, tpu=_by_products, default=_by_gathers)


def _by_gathers(image: Rows, positions: Samples) -> Samples:
    # A zero before the row, and two behind it.
    positions = jnp.clip(positions, -1, image.shape[1]) + 1
    image = jnp.pad(image, ((0, 0), (1, 2)))
    low = jnp.floor(positions).astype(jnp.int32)
    share = positions - low
    read = functools.partial(jnp.take_along_axis, image, axis=1, mode="promise_in_bounds")
    return read(low) * (1 - share) + read(low + 1) * share


def _by_products(image: Rows, positions: Samples) -> Samples:
    """The same on a TPU, which is slow at gathers of single pixels (docs/accelerators.md)."""
    # XLA makes the weights where it sums them, and keeps none.
    distance = jnp.abs(positions[..., None] - jnp.arange(image.shape[1]))
    return jnp.sum(jax.nn.relu(1 - distance) * image[:, None, :], axis=-1)


def gaussian_blur(image: Image, sigma_px: Scalar | float, max_sigma_px: float) -> Image:
    """As `scipy.ndimage.gaussian_filter` with its defaults: mirrored border, 4 deviations.

    Args:
      image: to be blurred.
      sigma_px: the standard deviation, from 0 to `max_sigma_px`.
      max_sigma_px: it decides how many pixels are summed.
    """
    radius = int(_TRUNCATE * max_sigma_px + 0.5)
    distance = jnp.abs(jnp.arange(-radius, radius + 1))
    weights = jnp.exp(-0.5 * (distance / jnp.maximum(sigma_px, 1e-3)) ** 2)
    weights = jnp.where(distance <= jnp.floor(_TRUNCATE * sigma_px + 0.5), weights, 0)
    weights = weights / weights.sum()

    def along_rows(image: Image) -> Image:
        n = image.shape[0]
        padded = _once(jnp.pad(image, ((radius, radius), (0, 0)), mode="symmetric"))
        terms = (weights[i] * padded[i : i + n] for i in range(2 * radius + 1))
        return functools.reduce(jnp.add, terms)

    return _once(jnp.clip(along_rows(along_rows(image).T).T, 0, 1))


def adjust_contrast(image: Image, factor: Scalar | float) -> Image:
    """Distances from the mean grey value times `factor`, clipped to 0..1."""
    image = _once(image)
    mean = image.mean()
    return jnp.clip(mean + factor * (image - mean), 0, 1)


def add_noise(image: Image, key: Key[Array, ""], largest: float) -> Image:
    """Gaussian noise of a standard deviation drawn evenly from 0 to `largest`, clipped to 0..1."""
    deviation_key, noise_key = jax.random.split(key)
    deviation = jax.random.uniform(deviation_key, maxval=largest)
    return jnp.clip(image + deviation * jax.random.normal(noise_key, image.shape), 0, 1)


def cut_out(image: Image, key: Key[Array, ""], share: float, value: Scalar) -> Image:
    """Sets a square to a grey value (DeVries and Taylor 2017).

    Args:
      image: of which a square is lost; its centre is anywhere in the image.
      key: PRNG key.
      share: side of the square over that of the image.
      value: grey.
    """
    sides = jnp.asarray(image.shape, jnp.float32)
    centre = jax.random.uniform(key, (2,)) * sides
    near = [
        jnp.abs(jnp.arange(n) + 0.5 - centre[axis]) <= share * n / 2
        for axis, n in enumerate(image.shape)
    ]
    return jnp.where(near[0][:, None] & near[1], value, image)


def _once(image: Image) -> Image:
    """Keeps XLA from computing an image anew for each use of it."""
    return jax.lax.optimization_barrier(image)


def _log_uniform(key: Key[Array, ""], low: float, high: float) -> Scalar:
    """As often below the geometric mean of the bounds as above it."""
    return jnp.exp(jax.random.uniform(key, minval=jnp.log(low), maxval=jnp.log(high)))
