"""Whether neighbouring slices look like neighbours: what headers cannot say of a stack."""

from __future__ import annotations

import cv2
import numpy as np

from drenet_jax.ct.dicom.copies import NoStackError
from drenet_jax.ct.dicom.files import DicomFiles
from drenet_jax.ct.dicom.stacks import Stack
from drenet_jax.ct.sources import CtError

# Slices are compared on a grid with this many pixels, in a range that shows lung and tissue.
_GRID_PX = 64
_RANGE_HU = (-1000.0, 200.0)

# Slices of one patient differ more from the next one than from one further away, except by noise.
_TIMES_THE_NEAR = 1.5
# Three such changes in a row are no coincidence; a single one counts, where the names of patient or
# series vary, if it is as large as between patients.
_MANY_TURNS = 3
_LEAST_DIFFERENCE_HU = 1.0
_LEAST_SINGLE_DIFFERENCE_HU = 40.0
_LONGEST_PERIOD = 4

# Where one patient ends and the next begins. In three whole series (COVID-CT-MD), at 2 to 40 mm, no
# step was more than 1.73 times the largest of the three before and after it.
_TIMES_THE_OTHERS = 3.0
_TIMES_THE_OTHERS_UNNAMED = 2.0
_LEAST_SEAM_HU = 60.0
_LEAST_SLICES_OF_A_SIDE = 2
# In the same series slices 2, 4, 6 and 10 mm apart differed by up to 36, 67, 94 and 141 HU, and
# slices of two patients by 170 HU and more.
_LEAST_JUMP_HU = 100.0
_MOST_HU_PER_MM = 20.0


def check(stack: Stack, files: DicomFiles) -> None:
    """Compares the pixels of neighbours in a stack that its headers do not identify.

    Two stacks of one spacing, one shifted by half of it, lie as one stack of half the spacing.
    Where the scanner's numbers of the slices do not grow evenly along the patient, slices are
    compared with their neighbours. Of two or three slices that lie far apart nothing can be said,
    nor of two such stacks that somebody has numbered anew as one.

    Args:
      stack: in order.
      files: of the slices; those that cannot be decoded are skipped.

    Raises:
      NoStackError: slices of two stacks take turns, or one stack goes on as another.
    """
    if stack.is_counted and not stack.names_vary:
        return
    places_mm: list[float] = []
    shrunk: list[np.ndarray] = []
    for slice_, place_mm in zip(stack.slices, stack.places_mm, strict=True):
        try:
            shrunk.append(_shrunk(files.decode(slice_)))
        except CtError:
            continue
        places_mm.append(place_mm)
    if len(shrunk) < 2:
        return
    pictures = np.stack(shrunk)
    what = ""
    if _take_turns(pictures, _MANY_TURNS, _LEAST_DIFFERENCE_HU) or (
        stack.names_vary and _take_turns(pictures, 1, _LEAST_SINGLE_DIFFERENCE_HU)
    ):
        what = "two or more stacks that take turns"
    elif _has_jump(pictures, np.diff(places_mm)) or _has_seam(
        pictures, np.diff(places_mm), stack.names_vary
    ):
        what = "more than one patient, as they look"
    if what:
        raise NoStackError(
            f"{len(stack.slices)} slices of {what}, with nothing in their headers that says which "
            "belong together"
        )


def _shrunk(hu: np.ndarray) -> np.ndarray:
    small = cv2.resize(hu, (_GRID_PX, _GRID_PX), interpolation=cv2.INTER_AREA)
    return np.clip(small, *_RANGE_HU).ravel()


def _differences(pictures: np.ndarray, apart: int) -> np.ndarray:
    """Mean absolute difference, in HU, of each picture to that `apart` places on."""
    return np.abs(pictures[apart:] - pictures[:-apart]).mean(axis=1)


def _take_turns(pictures: np.ndarray, least_turns: int, least_hu: float) -> bool:
    """Whether pictures resemble those some places on more than the next ones, in a row."""
    if len(pictures) < 3:
        return False
    next_ones = _differences(pictures, 1)
    for period in range(2, min(_LONGEST_PERIOD, max(2, len(pictures) - 2)) + 1):
        same = _differences(pictures, period)
        # Of the steps between a picture and its like, each leads to another stack.
        steps = np.lib.stride_tricks.sliding_window_view(next_ones, period).min(axis=1)
        is_turn = steps > _TIMES_THE_NEAR * same + least_hu
        if _longest_run(is_turn) >= min(least_turns, len(is_turn)):
            return True
    return False


def _longest_run(values: np.ndarray) -> int:
    longest = run = 0
    for value in values:
        run = run + 1 if value else 0
        longest = max(longest, run)
    return longest


def _has_jump(pictures: np.ndarray, steps_mm: np.ndarray) -> bool:
    """Whether neighbours differ more than slices of one patient so close to each other can."""
    limit = _LEAST_JUMP_HU + _MOST_HU_PER_MM * steps_mm
    return bool(np.any(_differences(pictures, 1) > limit))


def _has_seam(pictures: np.ndarray, steps_mm: np.ndarray, names_vary: bool) -> bool:
    """Whether one step between neighbours is far larger than those before and after it."""
    times = _TIMES_THE_OTHERS_UNNAMED if names_vary else _TIMES_THE_OTHERS
    least = 1 if names_vary else _LEAST_SLICES_OF_A_SIDE
    steps = _differences(pictures, 1)
    if not names_vary:
        # Slices differ more where some are missing between them.
        steps = steps / np.maximum(steps_mm / np.median(steps_mm), 1)
    for i in range(least - 1, len(steps) - least + 1):
        others = np.concatenate([steps[max(0, i - 3) : i], steps[i + 1 : i + 4]])
        if len(others) and steps[i] > max(times * others.max(), _LEAST_SEAM_HU):
            return True
    return False
