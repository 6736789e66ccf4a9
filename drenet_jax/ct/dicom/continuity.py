"""Whether neighbouring slices look like neighbours: what headers cannot say of a stack."""

from __future__ import annotations

import numpy as np

from drenet_jax.ct import neighbours
from drenet_jax.ct.dicom.copies import NoStackError
from drenet_jax.ct.dicom.files import DicomFiles
from drenet_jax.ct.dicom.stacks import Stack
from drenet_jax.ct.sources import CtError

# Slices of one patient differ more from the next one than from one further away, except by noise.
_TIMES_THE_NEAR = 1.5
# Three such changes in a row are no coincidence; a single one counts, where the names of patient or
# series vary, if it is as large as between patients.
_MANY_TURNS = 3
_LEAST_DIFFERENCE_HU = 1.0
_LEAST_SINGLE_DIFFERENCE_HU = 40.0
_LONGEST_PERIOD = 4

# In three whole series (COVID-CT-MD) slices 2, 4, 6 and 10 mm apart differed by up to 36, 67, 94
# and 141 HU, and slices of two patients by 170 HU and more.
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
            shrunk.append(neighbours.shrunk(files.decode(slice_)))
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
    elif _has_jump(pictures, np.diff(places_mm)) or neighbours.has_seam(
        pictures, np.diff(places_mm), names_vary=stack.names_vary
    ):
        what = "more than one patient, as they look"
    if what:
        raise NoStackError(
            f"{len(stack.slices)} slices of {what}, with nothing in their headers that says which "
            "belong together"
        )


def _take_turns(pictures: np.ndarray, least_turns: int, least_hu: float) -> bool:
    """Whether pictures resemble those some places on more than the next ones, in a row."""
    if len(pictures) < 3:
        return False
    next_ones = neighbours.differences(pictures, 1)
    for period in range(2, min(_LONGEST_PERIOD, max(2, len(pictures) - 2)) + 1):
        same = neighbours.differences(pictures, period)
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
    return bool(np.any(neighbours.differences(pictures, 1) > limit))
