"""Lungs of a whole CT volume by region growing in scikit-image, which shares no step with the
library: three dimensions, no body, one threshold, airways grown from a seed in the trachea."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage import measure, morphology, segmentation

_AIR_BELOW_HU = -400.0
# A growing airway that becomes larger than this has broken through into the lung.
_MOST_AIRWAY_ML = 90.0


def grow_lungs(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The lungs: what air inside the body encloses, without the airways.

    Dense disease at the chest wall, where no air is around it, stays out.

    Args:
      volume_hu: [n, H, W] from the feet to the head, with the trachea in the uppermost slices.
      spacing_mm: distance of voxels along (slices, rows, columns).

    Returns:
      bool [n, H, W].
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    px_mm = spacing_mm[1]
    air = np.stack(
        [
            segmentation.clear_border(measure.label(one, connectivity=1)) > 0
            for one in volume_hu < _AIR_BELOW_HU
        ]
    )
    airways = _airways(volume_hu, air, px_mm, voxel_ml)
    lungs = air & ~ndimage.binary_dilation(airways, np.ones((1, 3, 3), bool), iterations=2)
    # Parts from the lung what touches it by a voxel: gas in the gut, the oesophagus.
    lungs = ndimage.binary_opening(lungs, np.ones((1, 3, 3), bool))
    labels = measure.label(lungs, connectivity=1)
    volumes = np.bincount(labels.ravel())
    volumes[0] = 0
    lungs = (volumes >= 0.2 * volumes.max())[labels] & lungs
    return np.stack([_closed(one, px_mm) for one in lungs])


def _airways(volume_hu: np.ndarray, air: np.ndarray, px_mm: float, voxel_ml: float) -> np.ndarray:
    """Trachea and large bronchi, grown at the highest threshold that does not break through."""
    seed = _seed(air, px_mm)
    if seed is None:
        return np.zeros_like(air)
    smooth = ndimage.gaussian_filter(volume_hu.astype(np.float32), (0, 0.7, 0.7))
    for below_hu in range(-860, -1000, -10):
        grown = segmentation.flood(air & (smooth < below_hu), seed, connectivity=1)
        if grown[seed] and air[seed] and grown.sum() * voxel_ml < _MOST_AIRWAY_ML:
            return grown & air
    return np.zeros_like(air)


def _seed(air: np.ndarray, px_mm: float) -> tuple[int, int, int] | None:
    """The middle of the trachea: in the upper slices, round, and nearest to the middle column."""
    n, _, width = air.shape
    for index in range(n - 1, n // 2, -1):
        regions = [
            region
            for region in measure.regionprops(measure.label(air[index]))
            if 60 < region.area * px_mm**2 < 700
            and region.eccentricity < 0.9
            and abs(region.centroid[1] - width / 2) < 0.1 * width
        ]
        if regions:
            middle = min(regions, key=lambda region: abs(region.centroid[1] - width / 2))
            return (index, *(round(at) for at in middle.centroid))
    return None


def _closed(lungs: np.ndarray, px_mm: float) -> np.ndarray:
    """One slice with its vessels and small lesions, but without a dome in the lung's middle."""
    framed = np.pad(lungs, 20)
    framed = morphology.isotropic_closing(framed, 7 / px_mm)
    largest_px = round(900 / px_mm**2)
    return morphology.remove_small_holes(framed, max_size=largest_px)[20:-20, 20:-20]
