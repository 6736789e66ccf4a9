"""Air inside the body, parted from other air and made whole: lungs on a coarse grid."""

from __future__ import annotations

import cv2
import numpy as np

from drenet_jax.array_types import Shaped, UInt8

# Lungs are sought on a grid with this many pixels on the longer side. Lengths in the modules of the
# lungs are in its pixels; a chest takes 150 to 256 of them, so one is about 1.5 mm.
GRID_PX = 256


def segment(
    image: Shaped[np.ndarray, "height width"],
    air_below: float,
    gas_below: float | None,
    radius: int = 1,
) -> tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]]:
    """Lungs and body by a threshold.

    Args:
      image: on the grid.
      air_below: what is darker is air or lung.
      gas_below: what is darker over some pixels is gas in trachea or gut; None if not known.
      radius: of the opening that parts lung from other air.

    Returns:
      The lungs and the filled body, 0 or 1.
    """
    air = (image < air_below).view(np.uint8)
    # Opening parts lung from trachea and skin folds where only a thin wall lies between.
    air = _open(air, disc(radius))
    outside = _outside(air)
    body = _body(air, outside)
    inside = air & body & (1 - outside)
    if gas_below is not None:
        gas = (cv2.blur(image, (3, 3)) < gas_below).view(np.uint8)
        gas = np.asarray(cv2.dilate(_open(gas, disc(2)), disc(2)), np.uint8)
        inside &= 1 - gas

    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(contour) for contour in contours]
    least = max(0.004 * body.sum(), 0.08 * max(areas, default=0))
    large = [contour for contour, area in zip(contours, areas, strict=True) if area > least]
    # Not filled yet: two lungs that touch would fill the heart between them.
    lungs = cv2.drawContours(np.zeros_like(inside), large, -1, 1, cv2.FILLED) & inside
    if lungs.any():
        lungs = _closed(lungs, max(2, round(0.04 * np.sqrt(body.sum()))))
    return lungs, body


def _open(mask: np.ndarray, element: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, element), np.uint8)


def _outside(air: np.ndarray) -> np.ndarray:
    """The air around the body, above and below the table."""
    # Filling from the edges is ten times faster than to label all pieces, of which most lie inside.
    unseen, inside, outside, this = 1, 2, 3, 4
    state = air.copy()
    height, width = air.shape
    edges = ((0, slice(None)), (-1, slice(None)), (slice(None), 0), (slice(None), -1))
    for at in edges:
        while (state[at] == unseen).any():
            along = int(np.argmax(state[at] == unseen))
            start = (along, at[0] % height) if isinstance(at[0], int) else (at[1] % width, along)
            x, y, wide, high = cv2.floodFill(state, None, start, this)[3]
            verdict = outside if _is_outside(state == this, (x, y, wide, high)) else inside
            cv2.floodFill(state, None, start, verdict)
    return (state == outside).view(np.uint8)


def _is_outside(piece: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    """Whether a piece of air at the picture's edge is no lung that the edge cuts.

    Such a lung is thick, and is not cut on both sides.

    Args:
      piece: bool [h, w], the whole picture.
      box: x, y, width and height of the piece.
    """
    height, width = piece.shape
    x, y, w, h = box
    corner = max(2, round(0.05 * max(height, width)))
    ends = (slice(0, corner), slice(-corner, None))
    n_corners = sum(piece[rows, columns].any() for rows in ends for columns in ends)
    beside = x == 0 or x + w == width
    above_or_below = y == 0 or y + h == height
    if (
        piece[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        or w == width
        or n_corners >= 2
        or (n_corners == 1 and beside and above_or_below)
    ):
        return True
    framed = cv2.copyMakeBorder(
        piece[y : y + h, x : x + w].view(np.uint8), *(1,) * 4, cv2.BORDER_CONSTANT, value=0
    )
    # Vessels do not make a lung thin.
    framed = cv2.morphologyEx(framed, cv2.MORPH_CLOSE, disc(2))
    thickness = cv2.distanceTransform(framed, cv2.DIST_L2, 3).max()
    along = max(np.count_nonzero(piece[0]), np.count_nonzero(piece[-1]))
    return bool(thickness < 0.12 * max(w, h) or (along > 0.4 * w and h < w))


def _body(air: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """The largest piece of tissue, with all that it encloses."""
    # Where the picture cuts the body the body goes on: a rim joins its pieces.
    rim = 3
    tissue = 1 - (
        cv2.copyMakeBorder(air & (1 - outside), *(rim,) * 4, cv2.BORDER_CONSTANT, value=0)
        | cv2.copyMakeBorder(outside, *(rim,) * 4, cv2.BORDER_REPLICATE)
    )
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, disc(1))
    contours, _ = cv2.findContours(tissue, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    body = np.zeros_like(tissue)
    if contours:
        cv2.drawContours(body, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return body[rim:-rim, rim:-rim]


def _filled(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED)


def _closed(lungs: np.ndarray, radius: int) -> np.ndarray:
    """Each lung closed and filled by itself, so that what lies between the two stays out."""
    middle = middle_column(lungs)
    closed = np.zeros_like(lungs)
    for columns in (slice(0, middle), slice(middle, None)):
        x, y, width, height = cv2.boundingRect(lungs[:, columns])
        if not width:
            continue
        box = slice(y, y + height), slice(columns.start + x, columns.start + x + width)
        wide = cv2.copyMakeBorder(lungs[box], *(radius,) * 4, cv2.BORDER_CONSTANT, value=0)
        wide = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, disc(radius))
        closed[box] |= _filled(wide)[radius:-radius, radius:-radius]
    return closed


def middle_column(lungs: np.ndarray) -> int:
    """The column between the two lungs."""
    x, _, width, _ = cv2.boundingRect(lungs)
    first = x + round(0.3 * width)
    columns = np.convolve(lungs.sum(axis=0), np.ones(5), "same")[first : x + round(0.7 * width)]
    return first + int(np.argmin(columns)) if columns.size else x + width // 2


def disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
