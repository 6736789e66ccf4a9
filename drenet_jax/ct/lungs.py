"""The lungs in an axial slice."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

# Lungs are sought on a grid with this many pixels on the longer side. The lengths below are in its
# pixels; a chest takes 150 to 256 of them, so one is about 1.5 mm.
_GRID_PX = 256

# HU between ground-glass opacity and fat, and between lung and the gas in trachea and gut.
_AIR_BELOW_HU = -320.0
_GAS_BELOW_HU = -960.0

# The lungs' largest share of the body: where there is more, the threshold took tissue for air.
_MOST_LUNG = 0.75

# A slice tells about the slices around it if its lungs are this large, relative to the largest.
_LEAST_WITNESS_SHARE = 0.25


def find_lungs(image: np.ndarray) -> np.ndarray:
    """Finds the lungs: air inside the body, closed over vessels and disease (paper 2.2.1).

    Trachea and gas in the gut are left out. A picture of 8 bits has an unknown window, so its
    thresholds are taken from the picture, and what does not look like two lungs in a chest is
    refused; the body may be cut by the picture's edges.

    Args:
      image: float [H, W] in HU, or uint8 [H, W] in a window that shows the lungs dark.

    Returns:
      bool [H, W]; all False if no lungs are found.
    """
    return _to_size(_on_grid(image), image.shape)


def find_lungs_in_series(images: Sequence[np.ndarray], *, from_feet: bool) -> list[np.ndarray]:
    """Finds the lungs in slices that follow each other, each with the help of the others.

    Lungs that are white with disease are given back: what both neighbours hold is lung. Of slices
    known to run from the feet to the head, a gap at the chest wall is lung, too, if there is lung
    below it. The domes of the diaphragm and the heart have no lung below them.

    Args:
      images: as for `find_lungs`, all of one size, in order.
      from_feet: whether they are known to run from the feet to the head.

    Returns:
      bool [H, W] for each image.
    """
    masks = [_on_grid(image) for image in images]
    areas = [np.count_nonzero(mask) for mask in masks]
    completed = []
    below = np.zeros_like(masks[0]) if masks else None
    for i, mask in enumerate(masks):
        found = mask
        if 0 < i < len(masks) - 1:
            found = found | _opened(masks[i - 1] & masks[i + 1] & ~mask)
        if from_feet:
            found = found | _at_the_wall(_opened(below & _hulls(found) & ~found), found)
            # Small areas may be gas in the gut.
            if areas[i] > _LEAST_WITNESS_SHARE * max(areas):
                below = below | mask
        completed.append(found)
    return [_to_size(mask, image.shape) for mask, image in zip(completed, images, strict=True)]


def _on_grid(image: np.ndarray) -> np.ndarray:
    """bool [h, w]: the lungs of one slice on the grid."""
    height, width = image.shape
    scale = _GRID_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    if image.dtype == np.uint8:
        return _in_picture(small).view(bool)
    lungs = _segment(small, _AIR_BELOW_HU, _GAS_BELOW_HU)[0]
    return _to_the_walls(lungs).view(bool)


def _to_size(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return cv2.resize(mask * np.uint8(255), shape[::-1]) >= 128


def _opened(mask: np.ndarray) -> np.ndarray:
    return cv2.morphologyEx(mask.view(np.uint8), cv2.MORPH_OPEN, _disc(2)).view(bool)


def _at_the_wall(missing: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """The pieces of `missing` that have no lung between them and the chest wall."""
    outermost = np.logical_or.accumulate(lungs, axis=1)
    outermost &= np.logical_or.accumulate(lungs[:, ::-1], axis=1)[:, ::-1]
    _, labels = cv2.connectedComponents(missing.view(np.uint8))
    beside = np.unique(labels[missing & ~outermost])
    return np.isin(labels, beside) & missing


def _hulls(mask: np.ndarray) -> np.ndarray:
    """The convex hull of each lung."""
    lungs = mask.view(np.uint8)
    hulls = np.zeros_like(lungs)
    middle = _middle_column(lungs)
    for columns in (slice(0, middle), slice(middle, None)):
        contours, _ = cv2.findContours(
            np.ascontiguousarray(lungs[:, columns]), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        if contours:
            side = np.zeros_like(lungs[:, columns])
            cv2.fillConvexPoly(side, cv2.convexHull(np.concatenate(contours)), 1)
            hulls[:, columns] |= side
    return hulls.view(bool)


def _in_picture(picture: np.ndarray) -> np.ndarray:
    """The lungs in a picture of unknown window, on the grid: uint8 0 or 1."""
    lungs = np.zeros_like(picture)
    inside_frame = _without_frame(picture)
    part = np.ascontiguousarray(picture[inside_frame])
    if min(part.shape) < _GRID_PX // 8:
        return lungs
    best = _by_otsu(part)
    if best is None:
        return lungs
    found, body = _with_opacities(part, *best)
    if _is_chest(part, found, body):
        lungs[inside_frame] = found
    return lungs


def _by_otsu(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int] | None:
    """Lungs, body, threshold and opening radius for the threshold that shows two lungs best."""
    middle = _otsu(picture)
    low, high = _otsu(picture[picture <= middle]), _otsu(picture[picture > middle])
    # Most often Otsu's threshold parts air from tissue. In a soft-tissue window it parts bone from
    # all else, and where the lungs are grey it parts the air outside from all else. A lung that
    # runs into the air outside through a dark wall needs the larger opening.
    best, best_score = None, 0.0
    for level, radius in ((middle, 1), (low, 1), (high, 1), (middle, 3), (low, 3)):
        lungs, body = _segment(picture, level + 1, None, radius)
        less, more = _sides(lungs, body)
        if less + more > _MOST_LUNG or body.sum() < 0.15 * picture.size:
            continue
        if less > 0.25 * more and less + more > 0.1:
            return lungs, body, level, radius
        # One lung may be white with disease: better one than none.
        if less + 0.2 * more > best_score:
            best, best_score = (lungs, body, level, radius), less + 0.2 * more
    return best


def _with_opacities(
    picture: np.ndarray, lungs: np.ndarray, body: np.ndarray, level: float, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lungs and body by a threshold nearer to tissue, which takes ground-glass opacity in."""
    air = float(np.median(picture[(lungs > 0) & (picture <= level)]))
    around = picture[(cv2.dilate(lungs, _disc(5)) > lungs) & (picture > level)]
    contrast = (float(np.median(around)) if around.size else 255.0) - air
    less = _sides(lungs, body)[0]
    # The threshold must stay below fat, which is what lies under the skin.
    under_skin = picture[body > cv2.erode(body, _disc(5), borderValue=1)]
    no_fat = under_skin.size and np.mean(under_skin < air + 0.85 * contrast) <= 0.25
    for share in (0.85, 0.68) if no_fat else (0.68,):
        wider, wider_body = _segment(picture, air + share * contrast, air - 0.13 * contrast, radius)
        sides = _sides(wider, wider_body)
        lost = wider.sum() <= 0.9 * lungs.sum() or sides[0] <= 0.9 * less
        if not lost and sum(sides) < _MOST_LUNG:
            return wider, wider_body
    return lungs, body


def _is_chest(picture: np.ndarray, lungs: np.ndarray, body: np.ndarray) -> bool:
    """Whether it looks like two lungs in a chest rather than dark things in any other picture.

    The limits leave out about one CT slice in a hundred each, so a single miss is forgiven.
    """
    height, width = picture.shape
    _, _, lungs_width, lungs_height = cv2.boundingRect(lungs)
    body_x, _, body_width, _ = cv2.boundingRect(body)
    middle = body_x + body_width // 2
    contours, _ = cv2.findContours(lungs, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = sum(cv2.arcLength(contour, True) for contour in contours)
    around = picture[(cv2.dilate(lungs, _disc(4)) & (1 - lungs)) > 0]
    core = picture[cv2.erode(lungs, _disc(2), borderValue=1) > 0]
    rest = picture[(body & (1 - cv2.dilate(lungs, _disc(3)))) > 0]
    if not (around.size and core.size and rest.size):
        return False
    dark = float(np.median(core))
    contrast = float(np.percentile(around, 60)) - dark
    if contrast <= 0:
        return False
    level = dark + contrast / 2
    steps = np.hypot(*(cv2.Sobel(picture, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (0, 1)))
    steps = cv2.dilate(steps, np.ones((3, 3), np.uint8))
    edge = cv2.drawContours(np.zeros_like(lungs), contours, -1, 1, 1)
    edge[[0, -1]] = 0
    edge[:, [0, -1]] = 0
    tissue_range = float(np.subtract(*np.percentile(rest, (90, 10))))
    passed = (
        contrast > 0.25 * 255,
        # Around the body there is air, or nothing.
        np.mean((body == 0) & (picture >= level)) < 0.03,
        _symmetry(body, middle) > 0.55,
        _symmetry(lungs, middle) > 0.15,
        1.1 < lungs_width / lungs_height < 2.7,
        0.45 < lungs_width / body_width < 1.05,
        lungs.sum() > 0.07 * height * width,
        outline < 10.5 * np.sqrt(lungs.sum()),
        # Tissue is of one grey, bones aside.
        tissue_range < 1.2 * contrast,
        # The wall of the lungs is sharp.
        edge.any() and np.median(steps[edge > 0]) > 0.25 * contrast,
    )
    return sum(bool(one) for one in passed) >= len(passed) - 1


def _symmetry(mask: np.ndarray, middle: int) -> float:
    """Overlap (intersection over union) of a mask with its mirror image about a column."""
    reach = min(middle, mask.shape[1] - middle)
    left, right = mask[:, middle - reach : middle], mask[:, middle : middle + reach][:, ::-1]
    return float((left & right).sum() / max(1, (left | right).sum()))


def _sides(lungs: np.ndarray, body: np.ndarray) -> tuple[float, float]:
    """The lungs' areas on the two sides of the body, over the body's: smaller, larger."""
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
        if varied.size < 5:
            return slice(0, 0)
        first, end = int(varied[0]), int(varied[-1]) + 1
        # Between frame and picture lies a blend of both; a thin light frame is all blend.
        light = lines.mean(axis=1)
        if first > 0 or light[0] > light[3] + 25:
            first += 2
        if end < len(lines) or light[-1] > light[-4] + 25:
            end -= 2
        return slice(first, end)

    values = image.astype(np.int16)
    return inside(values), inside(values.T)


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)


def _segment(
    image: np.ndarray, air_below: float, gas_below: float | None, radius: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Lungs and body by a threshold.

    Args:
      image: [h, w] on the grid.
      air_below: what is darker is air or lung.
      gas_below: what is darker over some pixels is gas in trachea or gut; None if not known.
      radius: of the opening that parts lung from other air.

    Returns:
      The lungs and the filled body, uint8 0 or 1.
    """
    air = (image < air_below).view(np.uint8)
    # Opening parts lung from trachea and skin folds where only a thin wall lies between.
    air = cv2.morphologyEx(air, cv2.MORPH_OPEN, _disc(radius))
    outside = _outside(air)
    body = _body(air, outside)
    inside = air & body & (1 - outside)
    if gas_below is not None:
        gas = (cv2.blur(image, (3, 3)) < gas_below).view(np.uint8)
        gas = cv2.dilate(cv2.morphologyEx(gas, cv2.MORPH_OPEN, _disc(2)), _disc(2))
        inside &= 1 - gas

    contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(contour) for contour in contours]
    least = max(0.004 * body.sum(), 0.08 * max(areas, default=0))
    large = [contour for contour, area in zip(contours, areas, strict=True) if area > least]
    lungs = cv2.drawContours(np.zeros_like(inside), large, -1, 1, cv2.FILLED)
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
    contours, _ = cv2.findContours(tissue, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    body = np.zeros_like(tissue)
    if contours:
        cv2.drawContours(body, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return body[rim:-rim, rim:-rim]


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
    """Each lung closed and filled by itself, so that what lies between the two stays out."""
    middle = _middle_column(lungs)
    closed = np.zeros_like(lungs)
    for columns in (slice(0, middle), slice(middle, None)):
        x, y, width, height = cv2.boundingRect(lungs[:, columns])
        if not width:
            continue
        box = slice(y, y + height), slice(columns.start + x, columns.start + x + width)
        wide = cv2.copyMakeBorder(lungs[box], *(radius,) * 4, cv2.BORDER_CONSTANT, value=0)
        wide = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, _disc(radius))
        closed[box] |= _filled(wide)[radius:-radius, radius:-radius]
    return closed


def _to_the_walls(lungs: np.ndarray) -> np.ndarray:
    """Adds to each lung what lies between it and the chest wall beside it."""
    middle = _middle_column(lungs)
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
    # Where the hull runs across the chest it spans the dome of the diaphragm, not the wall.
    slopes = np.diff(wall_x) / np.diff(wall_y)
    steep = np.abs(slopes)[np.searchsorted(wall_y[1:-1], rows, side="right")] < 0.7
    columns = np.arange(width)
    beside = (columns >= wall[:, None]) & (columns < first[:, None]) & steep[:, None]
    added = lung.copy()
    added[rows] |= beside.view(np.uint8)
    return added
