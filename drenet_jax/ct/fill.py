"""The blank around the lungs, filled with shifted copies of the lungs."""

from __future__ import annotations

import numpy as np

from drenet_jax.ct.arrays import GreySlice, LungMask


def fill_blank(
    image: GreySlice,
    lung_mask: LungMask,
    copies: int,
    seed: tuple[int, ...] | np.random.SeedSequence,
) -> GreySlice:
    """Covers the blank with shifted copies of the masked lungs (paper 2.2.1, Fig. 1).

    A copy is moved by up to half of the image up, down, left and right, without wrap-around. Later
    copies lie over earlier ones, and all of them lie under the lungs: inside the mask the image is
    untouched. What no copy covers is 0.

    Args:
      image: the lung crop.
      lung_mask: the lungs in it.
      copies: how many copies; 0 gives the masked crop.
      seed: what the shifts are drawn from; the same seed gives the same shifts.
    """
    assert image.shape == lung_mask.shape
    height, width = image.shape
    generator = np.random.default_rng(seed)
    shifts_y = generator.integers(-(height // 2), height // 2 + 1, size=copies)
    shifts_x = generator.integers(-(width // 2), width // 2 + 1, size=copies)

    # A blank margin as wide as the largest shift: every shifted look-up stays inside the array.
    margin_y, margin_x = height // 2, width // 2
    lungs = np.pad(np.where(lung_mask, image, 0), ((margin_y,) * 2, (margin_x,) * 2)).ravel()
    covers = np.pad(lung_mask, ((margin_y,) * 2, (margin_x,) * 2)).ravel()
    row = width + 2 * margin_x

    filled = np.where(lung_mask, image, 0).ravel()
    blank = np.flatnonzero(~lung_mask)
    blank_y, blank_x = np.divmod(blank, width)
    sources = (blank_y + margin_y) * row + blank_x + margin_x
    # From the last copy to the first, so that each pixel is written once, by the topmost copy.
    for shift_y, shift_x in zip(shifts_y[::-1], shifts_x[::-1], strict=True):
        shifted = sources - (shift_y * row + shift_x)
        covered = covers[shifted]
        filled[blank[covered]] = lungs[shifted[covered]]
        blank, sources = blank[~covered], sources[~covered]
    return filled.reshape(height, width)
