"""Whether slices show a chest the right way up: two lungs side by side, the spine behind them.

Headers lie: an array is saved with an identity affine, a picture transposed or upside down, a DICOM
series with the orientation of another. Without this check such a chest would be diagnosed as it
lies. What is looked for in the picked slices:

- A gap that parts the lungs from the front to the back. Where there is none, but one appears when
  rows and columns change places, the chest lies on its side.
- The back: there the lungs reach further beside the spine than in the middle, and the spine, bright
  and wide, lies between them; in front they come together behind a thin sternum.
- Edges: a body that runs on beyond both ends of the slices, with no spine behind the lungs, is cut
  along its length (coronal or sagittal slices).

What cannot be seen: left and right exchanged (the heart is too often not where it should be, and
some people are mirrored), and slices in the order from the head to the feet.

The evidence of single pictures is weaker than that of a series, so more of it is required.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from drenet_jax.ct.arrays import GreySlice, HuSlice, LungMask
from drenet_jax.ct.lungs import segmentation
from drenet_jax.ct.lungs.thresholding import disc

# Pixels on the longer side of the slices, as they are compared.
_GRID_PX = 128

# Slices with less lung are no evidence.
_LEAST_LUNG_SHARE = 0.04

_MANY_SLICES = 12

# From this many slices on the evidence is that of a series.
_LEAST_SLICES = 3

# The gap between two lungs side by side (how empty of lung the emptiest column is) is 1.0 in the
# median of each series, and 0.1 to 0.6 where the chest lies on its side or one lung is seen.
_LEAST_GAP = 0.65
_CLEAR_GAP = 0.85
_LEAST_GAIN = 0.35

# A body lies within the first and last row of axial slices; of coronal and sagittal ones, and
# likewise of columns, 0.35 to 0.99 is tissue.
_TISSUE_ABOVE_HU = -300
_CUT = 0.3
_NOT_CUT = 0.15
_CUT_THROUGH = 0.45
# A lung that is cut along its length takes 0.65 to 0.86 of the columns, across it at most 0.46.
_WIDE = 0.55
# The mean score of the back in coronal slices is at most this.
_CLEAR_BACK = 1.5


class _Limits(NamedTuple):
    """From which score of the back on slices are refused or noted as upside down."""

    refused_below: float
    noted_below: float


# Means over a series are 1.7 and more upright, with contrast medium, too, and the same with the
# other sign upside down. Of 540 single pictures 1% are below -2.0 and none is below -3.2; upside
# down, 48% are refused and 26% are noted.
_SERIES = _Limits(-1.0, 0.5)
_SINGLE = _Limits(-3.2, -2.0)


class Verdict(NamedTuple):
    """What the slices look like.

    Attributes:
      why: why they are not upright axial slices of a chest, or ''.
      note: what may be wrong with them, or ''.
    """

    why: str = ""
    note: str = ""


_ON_ITS_SIDE = (
    "slices in which the chest lies on its side (their orientation is given wrongly; turn them so "
    "that the spine is below)"
)
_UPSIDE_DOWN = (
    "slices in which the chest is upside down (their orientation is given wrongly; turn them so "
    "that the spine is below)"
)
_MAY_BE_UPSIDE_DOWN = (
    "the chest may lie upside down; see that the spine is below, or turn the slices"
)
_NOT_AXIAL = (
    "slices that are not axial, but cut the body along its length (their orientation is given "
    "wrongly)"
)


def judge(images: Sequence[HuSlice | GreySlice], masks: Sequence[LungMask]) -> Verdict:
    """Checks the sampled slices of a series, or a single one.

    Args:
      images: in HU (float32), or in a window that shows the lungs dark (uint8).
      masks: the lungs that were found in each.
    """
    # Every second slice of many is evidence enough, at half of the time.
    step = 2 if len(images) >= _MANY_SLICES else 1
    seen = [
        (image, mask)
        for image, mask in map(_on_grid, images[::step], masks[::step])
        if mask.mean() > _LEAST_LUNG_SHARE
    ]
    if not seen:
        return Verdict()
    is_series = len(seen) >= _LEAST_SLICES
    gap = float(np.median([_gap(mask) for _, mask in seen]))
    back = float(np.mean([_back_score(image, mask) for image, mask in seen]))
    cut_rows, cut_columns = np.median([_cut(image, mask) for image, mask in seen], axis=0)
    limits = _SERIES if is_series else _SINGLE
    if gap < _LEAST_GAP:
        turned = [_gap(segmentation.find_lungs(np.ascontiguousarray(image.T))) for image, _ in seen]
        if np.median(turned) > max(_CLEAR_GAP, gap + _LEAST_GAIN):
            return Verdict(_ON_ITS_SIDE)
        if not is_series:
            return Verdict()
        # One lung may be white with disease; but then the other fills less than half of the width.
        width = float(np.median([mask.any(axis=0).mean() for _, mask in seen]))
        is_cut_in_rows = cut_rows > _CUT and cut_columns < _NOT_CUT
        is_cut_in_columns = cut_columns > _CUT and cut_rows < _NOT_CUT
        if is_cut_in_rows or (is_cut_in_columns and width > _WIDE):
            return Verdict(_NOT_AXIAL)
        return Verdict()
    if is_series and cut_rows > _CUT_THROUGH and back < _CLEAR_BACK:
        return Verdict(_NOT_AXIAL)
    if back < limits.refused_below:
        return Verdict(_UPSIDE_DOWN)
    if back < limits.noted_below:
        return Verdict(note=_MAY_BE_UPSIDE_DOWN)
    return Verdict()


def _on_grid(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    small = segmentation.to_grid(image, _GRID_PX)
    size = small.shape[::-1]
    return small, cv2.resize(mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).view(bool)


def _gap(mask: np.ndarray) -> float:
    """How empty of lung the emptiest of the middle columns is, 0 to 1."""
    return _dip(mask.sum(axis=0))


def _dip(values: np.ndarray) -> float:
    """How deep values fall in their middle, 0 to 1; zeros at both ends do not count."""
    places = np.flatnonzero(values)
    if not places.size:
        return 0.0
    values = values[places[0] : places[-1] + 1]
    middle = values[round(0.3 * len(values)) : round(0.7 * len(values))]
    if not middle.size:
        return 0.0
    return float(max(0.0, 1 - middle.min() / max(np.percentile(values, 75), 1e-9)))


def _cut(image: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """How much of the first and the last row, and of the columns likewise, is tissue, 0 to 1."""
    level = float(_TISSUE_ABOVE_HU)
    if image.dtype == np.uint8:
        inside = float(np.median(image[mask]))
        around = image[cv2.dilate(mask.view(np.uint8), disc(2)) > mask]
        level = (inside + float(np.percentile(around, 60))) / 2 if around.size else 255.0
    tissue = image > level
    rows = min(tissue[at].mean() for at in (1, -2))
    columns = min(tissue[:, at].mean() for at in (1, -2))
    return float(rows), float(columns)


# The weights of `_features`, by a logistic regression on the pictures of COVID-CT, upright and
# upside down.
_WEIGHTS = np.array([8.0, 40.0, 18.0, 1.5])


def _back_score(image: np.ndarray, mask: np.ndarray) -> float:
    """Log odds that the lower edge of the slice is the back rather than the front."""
    return float(_features(image, mask) @ _WEIGHTS)


def _features(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[4], each of which changes its sign if the slice is turned upside down."""
    if image.dtype != np.uint8:
        image = np.interp(image, (-1350, 600), (0, 255))
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    inside = mask[y : y + height, x : x + width]

    def empty(rows: np.ndarray) -> float:
        """How many rows from the first on have no lung, for each of the middle columns."""
        rows = rows[:, round(0.4 * width) : round(0.6 * width)]
        return float(np.where(rows.any(axis=0), rows.argmax(axis=0), height).mean()) / height

    columns = slice(x + round(0.38 * width), x + round(0.62 * width))
    lower = image[y + round(0.6 * height) : y + round(1.1 * height), columns].ravel()
    upper = image[max(0, y - round(0.1 * height)) : y + round(0.4 * height), columns].ravel()
    bright = np.percentile(np.concatenate([lower, upper]), 97)
    return np.array(
        [
            empty(inside[::-1]) - empty(inside),
            np.average(np.arange(height), weights=inside.sum(axis=1)) / height - 0.5,
            (np.percentile(lower, 90) - np.percentile(upper, 90)) / 255,
            np.mean(lower >= bright) - np.mean(upper >= bright),
        ]
    )
