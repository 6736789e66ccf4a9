"""What a scanner adds: where its pixels lie, blur, sharpening and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from drenet_jax.phantoms.anatomy import Chest, Scalars, Tubes


@dataclass(frozen=True)
class Site:
    """What a scanner and its protocol add. A site never changes the body or the disease.

    Attributes:
      slice_spacing_mm: distance and thickness of the slices.
      kernel_sigma_mm: blur of the reconstruction kernel.
      sharpening: how much of the difference to a blurred copy is added back (0: none).
      noise_hu: standard deviation of the noise in an average chest.
      noise_grain_mm: correlation length of the noise.
      shift_hu: calibration error.
    """

    slice_spacing_mm: float
    kernel_sigma_mm: float
    sharpening: float
    noise_hu: float
    noise_grain_mm: float
    shift_hu: float


SITES = {
    # A standard dose with a soft-tissue kernel.
    "A": Site(
        slice_spacing_mm=6.5,
        kernel_sigma_mm=0.75,
        sharpening=0.0,
        noise_hu=16.0,
        noise_grain_mm=0.9,
        shift_hu=0.0,
    ),
    # A low dose with an edge-enhancing lung kernel and thinner slices: grainy, crisp, a little off.
    "B": Site(
        slice_spacing_mm=5.0,
        kernel_sigma_mm=0.6,
        sharpening=0.9,
        noise_hu=34.0,
        noise_grain_mm=0.55,
        shift_hu=14.0,
    ),
}


class Frame:
    """Where the scanner's pixels lie in the body."""

    def __init__(self, chest: Chest, size_px: int, site: Site):
        self.site = site
        self.size_px = size_px
        self.px_mm = round(chest.fov_mm / size_px, 6)
        spacing = site.slice_spacing_mm
        n = int((chest.z_high_mm - chest.z_low_mm) / spacing)
        self.z_mm = chest.z_low_mm + spacing * (np.arange(n) + 0.5)
        self._chest = chest
        line = ((np.arange(size_px) - (size_px - 1) / 2) * self.px_mm).astype(np.float32)
        self.scan_x, self.scan_y = np.meshgrid(line, line)
        cos, sin = math.cos(chest.roll_rad), math.sin(chest.roll_rad)
        dx, dy = self.scan_x - chest.offset_mm[0], self.scan_y - chest.offset_mm[1]
        self._x, self.y = cos * dx + sin * dy, cos * dy - sin * dx

    def _lean(self, z: Scalars) -> Scalars:
        return self._chest.lean_mm * (z / self._chest.height_mm - 0.5)

    def x(self, z: Scalars) -> np.ndarray:
        """Body x of the pixels of the slice at z, float32 [H, W]."""
        return self._x - self._lean(z)

    def voxels(self, points: np.ndarray) -> np.ndarray:
        """[m, 3] body points -> flat voxel numbers [m], -1 outside the scan."""
        chest, half = self._chest, (self.size_px - 1) / 2
        x, y, z = points.T
        x = x + self._lean(z)
        cos, sin = math.cos(chest.roll_rad), math.sin(chest.roll_rad)
        column = np.rint((cos * x - sin * y + chest.offset_mm[0]) / self.px_mm + half)
        row = np.rint((sin * x + cos * y + chest.offset_mm[1]) / self.px_mm + half)
        plane = np.rint((z - self.z_mm[0]) / self.site.slice_spacing_mm)
        inside = (
            (np.minimum(np.minimum(row, column), plane) >= 0)
            & (np.maximum(row, column) < self.size_px)
            & (plane < len(self.z_mm))
        )
        flat = (plane * self.size_px + row) * self.size_px + column
        return np.where(inside, flat, -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class TubeShares:
    """The share of every voxel that tubes fill, 0 to 1: float32 [n, H, W], or [H, W] of a slice."""

    vessels: np.ndarray
    bronchi: np.ndarray
    trachea: np.ndarray

    def of_slice(self, index: int) -> TubeShares:
        return TubeShares(self.vessels[index], self.bronchi[index], self.trachea[index])


def rasterise_tubes(chest: Chest, frame: Frame) -> TubeShares:
    """Fills tubes with points that each carry a piece of volume, and adds these up by voxel: thin
    vessels that run through a thick slice come out faint, as from a scanner."""
    shape = (len(frame.z_mm), frame.size_px, frame.size_px)
    voxel_mm3 = frame.px_mm**2 * frame.site.slice_spacing_mm

    def share(tubes: list[Tubes]) -> np.ndarray:
        filled = [_fill_tubes(tube, frame.px_mm, voxel_mm3 / 12.0) for tube in tubes]
        voxel = frame.voxels(np.concatenate([points for points, _ in filled]))
        volume = np.concatenate([volume for _, volume in filled])
        inside = voxel >= 0
        sums = np.bincount(voxel[inside], volume[inside], minlength=math.prod(shape))
        # A little more than full, so that the unevenness of the points does not show.
        return np.minimum(sums.astype(np.float32).reshape(shape) * (1.15 / voxel_mm3), 1.0)

    return TubeShares(share(chest.vessels), share(chest.bronchi), share(chest.trachea))


def _fill_tubes(tubes: Tubes, px_mm: float, point_mm3: float) -> tuple[np.ndarray, np.ndarray]:
    """Points [k, 3] spread evenly through tubes and the volume [k] of each, in mm³."""
    chord = tubes.end - tubes.start
    length = np.linalg.norm(chord, axis=1) + 1e-6
    area = math.pi * tubes.radius_mm**2
    per_mm = max(area / point_mm3, 2.0 / px_mm)
    count = math.ceil(float(length.mean()) * per_mm)
    # A low-discrepancy sequence in (along, radius, angle): far more even than random points.
    k = np.arange(count)
    along = (k + 0.5) / count
    reach = tubes.radius_mm * np.sqrt((k * 0.7548776662466927) % 1.0)
    angle = 2.0 * np.pi * ((k * 0.5698402909980532) % 1.0)
    axis = chord / length[:, None]
    helper = np.where(np.abs(axis[:, 2:]) < 0.8, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    across = np.cross(axis, helper)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    upward = np.cross(axis, across)
    s = along[:, None]
    curve = [(1 - s) ** 2, 2 * s * (1 - s), s**2]
    points = sum(
        weight[None] * place[:, None]
        for weight, place in zip(curve, (tubes.start, tubes.bend, tubes.end), strict=True)
    )
    points = points + (reach * np.cos(angle))[None, :, None] * across[:, None]
    points += (reach * np.sin(angle))[None, :, None] * upward[:, None]
    volume = np.repeat(length * area / count, count)
    return points.reshape(-1, 3), volume


def scan(hu: np.ndarray, frame: Frame, noise_factor: float, rng: np.random.Generator) -> np.ndarray:
    """The picture that a site's scanner makes of a slice, float32 HU [H, W]."""
    site = frame.site
    image: np.ndarray = cv2.GaussianBlur(hu, (0, 0), max(0.35, site.kernel_sigma_mm / frame.px_mm))
    if site.sharpening:
        wide = cv2.GaussianBlur(image, (0, 0), 1.6 / frame.px_mm)
        image += site.sharpening * (image - wide)
    white = rng.standard_normal(hu.shape, dtype=np.float32)
    noise: np.ndarray = cv2.GaussianBlur(white, (0, 0), max(0.3, site.noise_grain_mm / frame.px_mm))
    noise *= site.noise_hu * noise_factor / float(noise.std())
    return image + noise + site.shift_hu
