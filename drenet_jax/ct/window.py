"""Hounsfield units to 8 bits."""

from __future__ import annotations

import cv2
import numpy as np

from drenet_jax.array_types import Real
from drenet_jax.ct.arrays import GreySlice


def window(hu: Real[np.ndarray, "height width"], level_hu: float, width_hu: float) -> GreySlice:
    """Maps a window of HU linearly to 0..255, rounded; what lies outside is clipped.

    Args:
      hu: the slice.
      level_hu: the HU that becomes middle grey.
      width_hu: the HU from black to white, above 0.
    """
    assert width_hu > 0
    low_hu = level_hu - width_hu / 2
    # convertScaleAbs scales, rounds and clips at 255 in one pass; it would fold what lies below 0.
    clipped = np.maximum(hu, low_hu, dtype=np.float32)
    return cv2.convertScaleAbs(clipped, alpha=255 / width_hu, beta=-low_hu * 255 / width_hu)
