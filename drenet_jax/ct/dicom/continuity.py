"""Whether neighbouring slices look like neighbours: what headers cannot say of a stack."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from drenet_jax.ct.dicom.headers import DicomSlice
from drenet_jax.ct.dicom.stacks import NoStackError, Stack
from drenet_jax.ct.files import CtError

# Slices are compared on a grid with this many pixels, in a range that shows lung and tissue.
_GRID_PX = 64
_RANGE_HU = (-1000.0, 200.0)

# Slices of one patient differ more from the next one than from one further away, except by noise.
_TIMES_THE_NEAR = 1.5
_LEAST_DIFFERENCE_HU = 1.0
_LONGEST_PERIOD = 4

# Where one patient ends and the next begins.
_TIMES_THE_OTHERS = 5.0
_LEAST_SEAM_HU = 20.0


def are_alike(
    first: DicomSlice, second: DicomSlice, decode: Callable[[DicomSlice], np.ndarray]
) -> bool:
    """Whether two slices have the same pixels; False if one cannot be decoded.

    Args:
      first, second: the slices.
      decode: gives HU [H, W]; raises CtError.
    """
    try:
        return np.array_equal(decode(first), decode(second))
    except CtError:
        return False


def check(stack: Stack, decode: Callable[[DicomSlice], np.ndarray]) -> None:
    """Looks at the pixels of a stack of which the headers do not say that it is one.

    Two stacks of one spacing, one shifted by half of it, lie as one stack of half the spacing.
    Where the scanner's numbers of the slices do not run along the patient, slices are compared with
    their neighbours; where patient, study or series differ from slice to slice, a single step from
    one patient to another is sought, too.

    Args:
      stack: in order.
      decode: gives HU [H, W]; raises CtError for slices that cannot be decoded, which are skipped.

    Raises:
      NoStackError: slices of two stacks take turns, or one stack goes on as another.
    """
    if stack.is_numbered and not stack.names_vary:
        return
    if len(stack.slices) < 4:
        return
    small = []
    for item in stack.slices:
        try:
            small.append(_shrunk(decode(item)))
        except CtError:
            continue
    if len(small) < 4:
        return
    pictures = np.stack(small)
    if _take_turns(pictures):
        raise NoStackError(
            f"{len(stack.slices)} slices of two or more stacks that take turns, with nothing in "
            "their headers that says which belong together"
        )
    if stack.names_vary and _has_seam(pictures):
        raise NoStackError(
            f"{len(stack.slices)} slices that name patient, study or series each by itself, and "
            "do not look like those of one patient"
        )


def _shrunk(hu: np.ndarray) -> np.ndarray:
    small = cv2.resize(hu, (_GRID_PX, _GRID_PX), interpolation=cv2.INTER_AREA)
    return np.clip(small, *_RANGE_HU).ravel()


def _differences(pictures: np.ndarray, apart: int) -> np.ndarray:
    """Mean absolute difference, in HU, of each picture to that `apart` places on."""
    return np.abs(pictures[apart:] - pictures[:-apart]).mean(axis=1)


def _take_turns(pictures: np.ndarray) -> bool:
    """Whether pictures resemble those some places on more than the next ones, again and again."""
    next_ones = _differences(pictures, 1)
    for period in range(2, min(_LONGEST_PERIOD, len(pictures) - 2) + 1):
        same = _differences(pictures, period)
        # Of the steps between a picture and its like, each leads to another stack.
        steps = np.lib.stride_tricks.sliding_window_view(next_ones, period).min(axis=1)
        is_turn = steps > _TIMES_THE_NEAR * same + _LEAST_DIFFERENCE_HU
        if _longest_run(is_turn) >= min(3, len(is_turn)):
            return True
    return False


def _longest_run(values: np.ndarray) -> int:
    longest = run = 0
    for value in values:
        run = run + 1 if value else 0
        longest = max(longest, run)
    return longest


def _has_seam(pictures: np.ndarray) -> bool:
    steps = _differences(pictures, 1)
    for i, step in enumerate(steps):
        others = np.concatenate([steps[max(0, i - 3) : i], steps[i + 1 : i + 4]])
        if step > max(_TIMES_THE_OTHERS * others.max(), _LEAST_SEAM_HU):
            return True
    return False
