"""From the sampled slices of a person to lung crops, with NumPy and OpenCV only.

`preprocess` reads the slices from files; the exporting reference is given them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from drenet_jax.array_types import Float, Real
from drenet_jax.ct import chest_checks, hu_checks
from drenet_jax.ct.arrays import GreySlice, HuSlice, LungMask
from drenet_jax.ct.orientation import Box
from drenet_jax.ct.prepared_series import SampledSlice
from drenet_jax.ct.settings import CtSettings
from drenet_jax.ct.window import window

# A person's largest lung area over the picture's is 0.2 to 0.6; 0.04 in the widest field of view.
_LEAST_LUNG_SHARE = 0.04


def judge(images: Sequence[HuSlice | GreySlice], masks: Sequence[LungMask]) -> chest_checks.Verdict:
    """Checks what the sampled slices show: the values in the lungs, and which way the chest lies.

    Args:
      images: in HU (float32), or in a window that shows the lungs dark (uint8).
      masks: the lungs that were found in each.
    """
    if images and images[0].dtype == np.uint8:
        why = hu_checks.reason_not_windowed(images, masks)
    else:
        why = hu_checks.reason_not_lung_hu(images, masks)
    return chest_checks.Verdict(why) if why else chest_checks.judge(images, masks)


def windowed(image: HuSlice | GreySlice, settings: CtSettings) -> GreySlice:
    """A slice in the window of the settings; one of 8 bits is in a window already."""
    if image.dtype == np.uint8:
        return image
    return window(image, settings.window_level_hu, settings.window_width_hu)


def crop_to_lungs(
    slices: Sequence[SampledSlice], settings: CtSettings, *, min_area_share: float
) -> tuple[SampledSlice, ...]:
    """The slices with the boxes of their lungs and, where they are kept, the crops to them.

    Args:
      slices: of one person, with their masks.
      settings: of the crops.
      min_area_share: a slice is kept if its lung area is at least this share of the largest.
    """
    # In a chest some slice is full of lung; what is found elsewhere is gas in gut or sinuses.
    is_chest = any(slice_.source_mask.mean() > _LEAST_LUNG_SHARE for slice_ in slices)
    areas = [int(slice_.source_mask.sum()) if is_chest else 0 for slice_ in slices]
    largest = max(areas, default=0)
    cropped = []
    for slice_, area in zip(slices, areas, strict=True):
        if area == 0:
            no_lungs = np.zeros_like(slice_.source_mask)
            slice_ = dataclasses.replace(
                slice_, source_mask=no_lungs, why_excluded="no lungs found", hu=None
            )
        elif area < min_area_share * largest:
            why = (
                f"small lung area: {area / largest:.1%} of the person's largest, "
                f"below {min_area_share:.0%}"
            )
            slice_ = dataclasses.replace(slice_, why_excluded=why, hu=None)
        cropped.append(_crop(slice_, settings.image_size_px))
    return tuple(cropped)


def _crop(slice_: SampledSlice, size_px: int) -> SampledSlice:
    """The slice with the box of its lungs and, if it is kept, the crop to it."""
    source, mask = slice_.source, slice_.source_mask
    if not mask.any():
        return slice_
    x0, y0, width, height = cv2.boundingRect(mask.view(np.uint8))
    y1, x1 = y0 + height, x0 + width
    slice_ = dataclasses.replace(slice_, source_box=(y0, x0, y1, x1))
    if not slice_.kept:
        return slice_
    shrinks = height >= size_px and width >= size_px
    image = cv2.resize(
        source[y0:y1, x0:x1],
        (size_px, size_px),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    lung_mask = cv2.resize(mask[y0:y1, x0:x1] * np.uint8(255), (size_px, size_px)) >= 128
    return dataclasses.replace(slice_, image=image, lung_mask=lung_mask)


def to_source(
    boxes: Real[np.ndarray, "boxes 4"], source_box: Box, image_size_px: int
) -> Float[np.ndarray, "boxes 4"]:
    """Boxes (y0, x0, y1, x1) of a crop, clipped to it, in pixels of the upright slice.

    Args:
      boxes: in pixels of the crop.
      source_box: the lungs' box, to which the slice was cropped.
      image_size_px: of the crop.
    """
    y0, x0, y1, x1 = source_box
    scale = np.array([y1 - y0, x1 - x0] * 2) / image_size_px
    return np.clip(boxes, 0, image_size_px) * scale + np.array([y0, x0] * 2)
