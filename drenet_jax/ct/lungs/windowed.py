"""The lungs in a picture of 8 bits, whose window is unknown."""

from __future__ import annotations

import cv2
import numpy as np

from drenet_jax.ct.arrays import GreySlice
from drenet_jax.ct.lungs.thresholding import GRID_PX, disc, segment

# The lungs' largest share of the body: where there is more, the threshold took tissue for air.
_MOST_LUNG = 0.75


def find_in_picture(picture: GreySlice) -> GreySlice:
    """The lungs in a picture of unknown window, on the grid: 0 or 1."""
    lungs = np.zeros_like(picture)
    inside_frame = _without_frame(picture)
    part = np.ascontiguousarray(picture[inside_frame])
    if min(part.shape) < GRID_PX // 8:
        return lungs
    best = _by_otsu(part)
    if best is None:
        return lungs
    part_lungs, body = _with_opacities(part, *best)
    if _is_chest(part, part_lungs, body):
        lungs[inside_frame] = part_lungs
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
        lungs, body = segment(picture, level + 1, None, radius)
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
    around = picture[(cv2.dilate(lungs, disc(5)) > lungs) & (picture > level)]
    contrast = (float(np.median(around)) if around.size else 255.0) - air
    less = _sides(lungs, body)[0]
    # The threshold must stay below fat, which is what lies under the skin.
    under_skin = picture[body > cv2.erode(body, disc(5), borderValue=1)]
    no_fat = under_skin.size and np.mean(under_skin < air + 0.85 * contrast) <= 0.25
    for share in (0.85, 0.68) if no_fat else (0.68,):
        wider, wider_body = segment(picture, air + share * contrast, air - 0.13 * contrast, radius)
        sides = _sides(wider, wider_body)
        lost = wider.sum() <= 0.9 * lungs.sum() or sides[0] <= 0.9 * less
        if not lost and sum(sides) < _MOST_LUNG:
            return wider, wider_body
    return lungs, body


def _is_chest(picture: np.ndarray, lungs: np.ndarray, body: np.ndarray) -> bool:
    """Whether the mask is plausible for two lungs in a chest.

    The limits leave out about one CT slice in a hundred each, so a single miss is forgiven.
    """
    height, width = picture.shape
    _, _, lungs_width, lungs_height = cv2.boundingRect(lungs)
    body_x, _, body_width, _ = cv2.boundingRect(body)
    middle = body_x + body_width // 2
    contours, _ = cv2.findContours(lungs, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = sum(cv2.arcLength(contour, True) for contour in contours)
    around = picture[(cv2.dilate(lungs, disc(4)) & (1 - lungs)) > 0]
    core = picture[cv2.erode(lungs, disc(2), borderValue=1) > 0]
    rest = picture[(body & (1 - cv2.dilate(lungs, disc(3)))) > 0]
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
        _symmetry(lungs, middle) > 0.13,
        1.1 < lungs_width / lungs_height < 2.7,
        0.45 < lungs_width / body_width < 1.05,
        lungs.sum() > 0.07 * height * width,
        outline < 10.5 * np.sqrt(lungs.sum()),
        # Tissue is of one grey, bones aside.
        tissue_range < 1.2 * contrast,
        # The wall of the lungs is sharp.
        edge.any() and np.median(steps[edge > 0]) > 0.25 * contrast,
    )
    return sum(bool(test) for test in passed) >= len(passed) - 1


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
