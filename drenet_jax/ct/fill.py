"""The blank around the lungs, filled with shifted copies of the lungs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from drenet_jax.array_types import Int16, Integer
from drenet_jax.ct.arrays import GreySlice, LungMask

# The copies are numbered from 1; 0 is the lungs themselves, and the number after the last the rest.
MOST_COPIES = np.iinfo(np.uint16).max - 1


class Fill(NamedTuple):
    """Which copy of the lungs lies where in the blank: small to store, and no image is needed.

    Attributes:
      copy_map: the number of the copy that each pixel shows, from 1 to N; 0 in the lungs, N + 1
        where no copy lies. Of `map_dtype`.
      shifts_px: down and to the right, of each number in the map; 0 for the first and the last.
    """

    copy_map: Integer[np.ndarray, "height width"]
    shifts_px: Int16[np.ndarray, "copies+2 2"]


def map_dtype(copies: int) -> np.dtype:
    """The type of the map of so many copies."""
    return np.dtype(np.min_scalar_type(copies + 1))


def draw_fill(
    lung_mask: LungMask, copies: int, seed: tuple[int, ...] | np.random.SeedSequence
) -> Fill:
    """Draws the shifts of the copies and lays them over each other (paper 2.2.1, Fig. 1).

    A copy is moved by up to half of the image up, down, left and right, without wrap-around. Later
    copies lie over earlier ones, and all of them lie under the lungs.

    Args:
      lung_mask: the lungs in the crop.
      copies: how many copies.
      seed: what the shifts are drawn from; the same seed gives the same shifts.
    """
    height, width = lung_mask.shape
    generator = np.random.default_rng(seed)
    shifts_px = np.zeros((copies + 2, 2), np.int16)
    shifts_px[1:-1, 0] = generator.integers(-(height // 2), height // 2 + 1, size=copies)
    shifts_px[1:-1, 1] = generator.integers(-(width // 2), width // 2 + 1, size=copies)

    # A blank margin as wide as the largest shift: every shifted look-up stays inside the array.
    margin_y, margin_x = height // 2, width // 2
    covers = np.pad(lung_mask, ((margin_y,) * 2, (margin_x,) * 2)).ravel()
    row = width + 2 * margin_x

    copy_map = np.zeros(lung_mask.size, map_dtype(copies))
    blank = np.flatnonzero(~lung_mask)
    blank_y, blank_x = np.divmod(blank, width)
    sources = (blank_y + margin_y) * row + blank_x + margin_x
    # From the last copy to the first, so that each pixel is written once, by the topmost copy.
    for copy in range(copies, 0, -1):
        shift_y, shift_x = shifts_px[copy].tolist()
        covered = covers[sources - (shift_y * row + shift_x)]
        copy_map[blank[covered]] = copy
        blank, sources = blank[~covered], sources[~covered]
    copy_map[blank] = copies + 1
    return Fill(copy_map.reshape(height, width), shifts_px)


def apply_fill(image: GreySlice, fill: Fill) -> GreySlice:
    """The lung crop with its blank filled: what no copy covers is 0, the lungs are untouched."""
    copy_map = fill.copy_map.ravel()
    offsets = fill.shifts_px.astype(np.int32) @ np.array([image.shape[1], 1], np.int32)
    # `take` with a mode is three times as fast as an index; nothing is out of range.
    sources = np.arange(image.size, dtype=np.int32) - offsets.take(copy_map, mode="clip")
    filled = image.ravel().take(sources, mode="clip")
    filled[copy_map == len(offsets) - 1] = 0
    return filled.reshape(image.shape)


def fill_blank(
    image: GreySlice,
    lung_mask: LungMask,
    copies: int,
    seed: tuple[int, ...] | np.random.SeedSequence,
) -> GreySlice:
    """Covers the blank with shifted copies of the masked lungs; see `draw_fill`.

    Args:
      image: the lung crop.
      lung_mask: the lungs in it.
      copies: how many copies; 0 gives the masked crop.
      seed: what the shifts are drawn from.
    """
    assert image.shape == lung_mask.shape
    return apply_fill(image, draw_fill(lung_mask, copies, seed))
