"""The lungs in an axial slice."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

# Lungs are sought on a grid with this many pixels on the longer side. The lengths below are in its
# pixels; a chest takes 150 to 256 of them, so one is about 1.5 mm.
_GRID_PX = 256

# HU between lung with ground-glass opacity and fat, and between lung and the gas in trachea and gut.
_AIR_BELOW_HU = -320.0
_GAS_BELOW_HU = -960.0


def find_lungs(image: np.ndarray) -> np.ndarray:
    """Finds the lungs: air inside the body, closed over vessels and disease (paper 2.2.1).

    Trachea and gas in the gut are left out. A picture of 8 bits has an unknown window, so its
    thresholds are taken from the picture, and what does not look like two lungs in a chest is
    refused; the body may be cut by the picture's edges.

    Args:
      image: float [H, W] in HU, or uint8 [H, W], a CT slice in any window that shows the lungs dark.

    Returns:
      bool [H, W]; all False if no lungs are found.
    """
    height, width = image.shape
    scale = _GRID_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if image.dtype == np.uint8:
        lungs = _in_picture(small)
    else:
        lungs = _segment(small, _AIR_BELOW_HU, _GAS_BELOW_HU)[0]
    if not lungs.any():
        return np.zeros(image.shape, bool)
    return cv2.resize(lungs * np.uint8(255), (width, height)) >= 128


def complete_by_neighbours(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Adds to each mask what the masks before and after it agree on."""
    completed = list(masks)
    for i in range(1, len(masks) - 1):
        completed[i] = masks[i] | (masks[i - 1] & masks[i + 1])
    return completed


DEBUG = []


def _in_picture(picture: np.ndarray) -> np.ndarray:
    """The lungs in a picture of unknown window, on the grid: uint8 0 or 1."""
    lungs = np.zeros_like(picture)
    inside_frame = _without_frame(picture)
    part = np.ascontiguousarray(picture[inside_frame])
    if min(part.shape) < _GRID_PX // 8:
        return lungs
    middle = _otsu(part)
    # Most often Otsu's threshold parts air from tissue. In a soft-tissue window it parts bone from
    # the rest, with grey lungs it parts the air outside from the rest.
    best, best_score = None, 0.0
    for level, radius in (
        (middle, 1),
        (_otsu(part[part <= middle]), 1),
        (_otsu(part[part > middle]), 1),
        (middle, 3),
        (_otsu(part[part <= middle]), 3),
    ):
        found, body = _segment(part, level + 1, None, radius)
        less, more = _sides(found, body)
        DEBUG.append((level, radius, round(less, 3), round(more, 3)))
        if less + more > 0.75:
            continue
        score = less + 0.2 * more
        if less > 0.25 * more and less + more > 0.1:
            best = found, body, level, radius
            break
        if score > best_score:
            best, best_score = (found, body, level, radius), score
    if best is None:
        return lungs
    found, body, level, radius = best
    air = float(np.median(part[(found > 0) & (part <= level)]))
    around = cv2.dilate(found, _disc(5)) & (1 - found) & (part > level)
    tissue = float(np.median(part[around > 0])) if around.any() else 255.0
    skin = body & (1 - cv2.erode(body, _disc(5), borderValue=1))
    for share in (0.85, 0.68):
        higher = air + share * (tissue - air)
        if share == 0.85 and (not skin.any() or np.mean(part[skin > 0] < higher) > 0.25):
            continue
        again, again_body = _segment(part, higher, air - 0.1 * (tissue - air), radius)
        less, more = _sides(again, again_body)
        DEBUG.append((share, higher, again.sum(), found.sum(), less, more))
        if again.sum() > 0.9 * found.sum() and less > 0.9 * _sides(found, body)[0] and less + more < 0.75:
            found = again
            break
    lungs[inside_frame] = found
    return lungs


def _sides(lungs: np.ndarray, body: np.ndarray) -> tuple[float, float]:
    """The areas of the lungs on either side of the body's middle, over the body's: smaller, larger."""
    body_area = max(1, int(body.sum()))
    x, _, width, _ = cv2.boundingRect(body)
    left = int(lungs[:, : x + width // 2].sum()) / body_area
    right = int(lungs[:, x + width // 2 :].sum()) / body_area
    return min(left, right), max(left, right)


def _otsu(values: np.ndarray) -> float:
    if values.size == 0:
        return 0.0
    return cv2.threshold(values.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)[0]


def _without_frame(image: np.ndarray) -> tuple[slice, slice]:
    """The part of a picture inside its frame: without lines of a single grey at its edges."""

    def inside(lines: np.ndarray) -> slice:
        middle = np.median(lines, axis=1, keepdims=True)
        varied = np.flatnonzero(np.mean(np.abs(lines - middle) > 12, axis=1) >= 0.03)
        if varied.size == 0:
            return slice(0, 0)
        first, end = int(varied[0]), int(varied[-1]) + 1
        # Between frame and picture lies a line that is a blend of both.
        return slice(first + 2 * (first > 0), end - 2 * (end < len(lines)))

    values = image.astype(np.int16)
    return inside(values), inside(values.T)


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)


def _segment(
    image: np.ndarray, air_below: float, gas_below: float | None, radius: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Lungs and body by a threshold: both uint8 0 or 1."""
    air = (image < air_below).view(np.uint8)
    # Opening parts lung from trachea and skin folds where only a thin wall lies between.
    air = cv2.morphologyEx(air, cv2.MORPH_OPEN, _disc(radius))
    outside = _outside(air)
    body = _body(air, outside)
    inside = air & body & (1 - outside)
    if gas_below is not None:
        gas = (cv2.blur(image, (3, 3)) < gas_below).view(np.uint8)
        gas = cv2.dilate(cv2.morphologyEx(gas, cv2.MORPH_OPEN, _disc(2)), _disc(1))
        inside &= 1 - gas

    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    keep = areas > max(0.004 * body.sum(), 0.08 * areas.max())
    lungs = keep[labels].view(np.uint8)
    if lungs.any():
        lungs = _closed(lungs, max(2, round(0.04 * np.sqrt(body.sum()))))
    return lungs, body


def _outside(air: np.ndarray) -> np.ndarray:
    """The air around the body, above and below the table."""
    height, width = air.shape
    count, labels, stats, _ = cv2.connectedComponentsWithStats(air, connectivity=4)
    corner = max(2, round(0.05 * max(height, width)))
    ends = (slice(0, corner), slice(-corner, None))
    corners = [labels[rows, columns] for rows in ends for columns in ends]
    n_corners = np.sum([np.bincount(part.ravel(), minlength=count) > 0 for part in corners], axis=0)
    framed = np.pad(air, 1)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]

    is_outside = np.zeros(count, np.uint8)
    is_outside[labels[[0, 0, -1, -1], [0, -1, 0, -1]]] = 1
    for i in range(1, count):
        x, y, w, h, _ = stats[i]
        left, right, top, bottom = x == 0, x + w == width, y == 0, y + h == height
        if not (left or right or top or bottom) or is_outside[i]:
            continue
        # A lung may be cut by the picture's edge, but it is thick, and not cut on both sides.
        box = slice(y, y + h), slice(x, x + w)
        thickness = depth[box][labels[box] == i].max()
        along = max(np.count_nonzero(labels[0] == i), np.count_nonzero(labels[-1] == i))
        is_outside[i] = (
            (left and right)
            or n_corners[i] >= 2
            or (n_corners[i] == 1 and (left or right) and (top or bottom))
            or thickness < 0.12 * max(w, h)
            or (along > 0.4 * w and h < w)
        )
    is_outside[0] = 0
    return is_outside[labels]


def _body(air: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """The largest piece of tissue, with all that it encloses."""
    # Where the picture cuts the body the body goes on: a rim joins its pieces.
    rim = 3
    tissue = 1 - (
        cv2.copyMakeBorder(air & (1 - outside), *(rim,) * 4, cv2.BORDER_CONSTANT, value=0)
        | cv2.copyMakeBorder(outside, *(rim,) * 4, cv2.BORDER_REPLICATE)
    )
    tissue = cv2.morphologyEx(tissue, cv2.MORPH_OPEN, _disc(1))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(tissue, connectivity=4)
    body = np.zeros_like(tissue)
    if len(stats) > 1:
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        body = (labels == largest).view(np.uint8)
    return _filled(body)[rim:-rim, rim:-rim]


def _filled(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED)


def _middle_column(lungs: np.ndarray) -> int:
    """The column between the two lungs."""
    x, _, width, _ = cv2.boundingRect(lungs)
    first = x + round(0.3 * width)
    columns = np.convolve(lungs.sum(axis=0), np.ones(5), "same")[first : x + round(0.7 * width)]
    return first + int(np.argmin(columns)) if columns.size else x + width // 2


def _closed(lungs: np.ndarray, radius: int) -> np.ndarray:
    """Each lung closed by itself, so that the space between the two stays open."""
    middle = _middle_column(lungs)
    closed = np.zeros_like(lungs)
    for columns in (slice(0, middle), slice(middle, None)):
        side = np.zeros_like(lungs)
        side[:, columns] = lungs[:, columns]
        wide = cv2.copyMakeBorder(side, *(radius,) * 4, cv2.BORDER_CONSTANT, value=0)
        wide = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, _disc(radius))
        closed |= wide[radius:-radius, radius:-radius]
    return _filled(closed)
