"""The lungs in an axial slice, and in slices that follow each other."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from drenet_jax.array_types import Float
from drenet_jax.ct.arrays import GreySlice, LungMask
from drenet_jax.ct.lungs.thresholding import GRID_PX, disc, middle_column, segment
from drenet_jax.ct.lungs.windowed import find_in_picture

# HU between ground-glass opacity and fat, and between lung and the gas in trachea and gut.
_AIR_BELOW_HU = -320.0
_GAS_BELOW_HU = -960.0

# A slice is evidence for its neighbours if its lungs are this large, relative to the largest.
_LEAST_WITNESS_SHARE = 0.25

# The smallest top of a dome that is cut out, in pixels of the grid: about 3 cm across.
_LEAST_DOME = 300


def find_lungs(image: Float[np.ndarray, "height width"] | GreySlice) -> LungMask:
    """Finds the lungs: air inside the body, closed over vessels and disease (paper 2.2.1).

    Trachea and gas in the gut are left out. A picture of 8 bits has an unknown window, so its
    thresholds are taken from the picture, and what does not look like two lungs in a chest is
    refused; the body may be cut by the picture's edges.

    Args:
      image: in HU (float), or in a window that shows the lungs dark (uint8).

    Returns:
      The mask of both lungs; all False if none are found.
    """
    return _to_size(_on_grid(to_grid(image, GRID_PX)), image.shape)


def find_lungs_in_series(
    images: Sequence[Float[np.ndarray, "height width"] | GreySlice],
    *,
    from_feet: bool,
) -> list[LungMask]:
    """Finds the lungs in slices that follow each other, each with the help of the others.

    Lungs that are white with disease are given back: what both neighbours hold is lung. Of slices
    known to run from the feet to the head, a gap at the chest wall is lung, too, if there is lung
    below it, or if it lies at the back, where the other lung has its like, with lung above it. A
    dome of the diaphragm that stands free in a lung is cut out: it has no lung below it.

    Args:
      images: as for `find_lungs`, all of one size, in order.
      from_feet: whether they are known to run from the feet to the head.

    Returns:
      The mask of each image.
    """
    small = [to_grid(image, GRID_PX) for image in images]
    masks = [_on_grid(image) for image in small]
    areas = [np.count_nonzero(mask) for mask in masks]
    # Small areas may be gas in the gut.
    is_witness = [area > _LEAST_WITNESS_SHARE * max(areas) for area in areas]
    completed = []
    below = np.zeros_like(masks[0]) if masks else np.zeros((0, 0), np.uint8)
    for i, mask in enumerate(masks):
        lungs = mask
        if 0 < i < len(masks) - 1:
            lungs = lungs | _opened(masks[i - 1] & masks[i + 1] & ~mask, 2)
        if from_feet:
            lungs = lungs & ~_domes(small[i], lungs, below)
            lungs = lungs | _at_the_wall(_opened(below & _hulls(lungs) & ~lungs, 2), lungs)
            if is_witness[i]:
                above = [masks[j] for j in range(i + 1, min(i + 4, len(masks))) if is_witness[j]]
                lungs = lungs | _at_the_back(lungs, above)
                below = below | lungs
        completed.append(lungs)
    return [_to_size(mask, image.shape) for mask, image in zip(completed, images, strict=True)]


def to_grid(image: np.ndarray, longer_px: int) -> np.ndarray:
    """A slice with so many pixels on its longer side."""
    height, width = image.shape
    scale = longer_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _on_grid(small: np.ndarray) -> np.ndarray:
    """bool [h, w]: the lungs of one slice on the grid."""
    if small.dtype == np.uint8:
        return find_in_picture(small).view(bool)
    return _to_the_walls(segment(small, _AIR_BELOW_HU, _GAS_BELOW_HU)[0]).view(bool)


def _domes(small: np.ndarray, lungs: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Tissue with lung all around it and none below it: the tops of the diaphragm's domes."""
    domes = np.zeros_like(lungs)
    if below.any():
        # Disease just above the diaphragm is mostly smaller.
        for piece in _pieces(_opened(lungs & (small >= _AIR_BELOW_HU), 4), _LEAST_DOME):
            stands_free = not (cv2.dilate(piece.view(np.uint8), disc(2)) > lungs).any()
            if stands_free and np.mean(below[piece]) < 0.1:
                domes |= piece
    return domes


def _at_the_back(lungs: np.ndarray, above: Sequence[np.ndarray]) -> np.ndarray:
    """What a slice above has and the other lung has, with no lung behind it: a white lower lobe.

    The domes of the diaphragm take the lung's place likewise, but have lung behind them, or lie in
    the front half of the chest.
    """
    room = np.zeros_like(lungs)
    if not above:
        return room
    ever = np.logical_or.reduce(above)
    x, y, width, height = cv2.boundingRect((ever | lungs).view(np.uint8))
    half = slice(y + height // 2, y + height), slice(x, x + width)
    here = lungs[half]
    behind = np.maximum.accumulate(here[::-1].view(np.uint8), axis=0)[::-1].view(bool)
    room[half] = ever[half] & ~behind
    mirrored = np.zeros_like(lungs)
    mirrored[half] = here[:, ::-1]
    added = np.zeros_like(lungs)
    for piece in _pieces(_opened(room & mirrored, 4), 0.02 * np.count_nonzero(lungs)):
        # The lungs are mirror images of each other to some pixels only.
        added |= room & cv2.dilate(piece.view(np.uint8), disc(5)).view(bool)
    return added


def _pieces(mask: np.ndarray, least: float) -> list[np.ndarray]:
    """The pieces of a mask with an area of at least so many pixels."""
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [
        cv2.drawContours(np.zeros(mask.shape, np.uint8), [contour], -1, 1, cv2.FILLED).view(bool)
        & mask
        for contour in contours
        if cv2.contourArea(contour) >= least
    ]


def _to_size(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask * np.uint8(255), shape[::-1]) >= 128


def _opened(mask: np.ndarray, radius: int) -> np.ndarray:
    return cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_OPEN, disc(radius)).view(bool)


def _at_the_wall(missing: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """The pieces of `missing` that have no lung between them and the chest wall."""
    if not missing.any():
        return missing
    outermost = np.logical_or.accumulate(lungs, axis=1)
    outermost &= np.logical_or.accumulate(lungs[:, ::-1], axis=1)[:, ::-1]
    _, labels = cv2.connectedComponents(missing.view(np.uint8))
    beside = np.unique(labels[missing & ~outermost])
    return np.isin(labels, beside) & missing


def _hulls(mask: np.ndarray) -> np.ndarray:
    """The convex hull of each lung."""
    lungs = mask.view(np.uint8)
    hulls = np.zeros_like(lungs)
    middle = middle_column(lungs)
    for columns in (slice(0, middle), slice(middle, None)):
        contours, _ = cv2.findContours(
            np.ascontiguousarray(lungs[:, columns]), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        if contours:
            side = np.zeros_like(lungs[:, columns])
            cv2.fillConvexPoly(side, cv2.convexHull(np.concatenate(contours)), 1)
            hulls[:, columns] |= side
    return hulls.view(bool)


def _to_the_walls(lungs: np.ndarray) -> np.ndarray:
    """Adds to each lung what lies between it and the chest wall beside it."""
    middle = middle_column(lungs)
    left = _to_the_wall(lungs[:, :middle])
    right = _to_the_wall(lungs[:, middle:][:, ::-1])[:, ::-1]
    return np.ascontiguousarray(np.hstack([left, right]))


def _to_the_wall(lung: np.ndarray) -> np.ndarray:
    """Adds what lies between a lung and the convex chest wall to its left: consolidation."""
    rows = np.flatnonzero(lung.any(axis=1))
    if len(rows) < 2:
        return lung
    width = lung.shape[1]
    first = lung[rows].argmax(axis=1)
    outline = np.stack([first, rows], axis=1)
    # Closed far on the other side, the hull has the wall's course as its remaining corners.
    ends = np.array([[width, rows[-1]], [width, rows[0]]])
    hull = cv2.convexHull(np.concatenate([outline, ends]).astype(np.int32))[:, 0]
    course = hull[hull[:, 0] < width]
    wall_x, wall_y = course[np.argsort(course[:, 1])].T
    wall = np.interp(rows, wall_y, wall_x)
    # Where the hull runs across the chest, or past rows without lung, it spans the dome of the
    # diaphragm, not the wall.
    heights = np.diff(wall_y)
    along = np.abs(np.diff(wall_x)) < 0.7 * heights
    along &= np.histogram(rows, wall_y)[0] >= 0.9 * heights
    is_wall = along[np.searchsorted(wall_y[1:-1], rows, side="right")]
    columns = np.arange(width)
    beside = (columns >= wall[:, None]) & (columns < first[:, None]) & is_wall[:, None]
    added = lung.copy()
    added[rows] |= beside.view(np.uint8)
    return added
