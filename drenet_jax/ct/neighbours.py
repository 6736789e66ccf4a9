"""How neighbouring slices look: like the next ones of one patient, in order, or not."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from drenet_jax.array_types import Float, Float32
from drenet_jax.ct.arrays import HuSlice

# Slices are compared on a grid with this many pixels, in a range that shows lung and tissue.
_GRID_PX = 64
_RANGE_HU = (-1000.0, 200.0)

# Where one patient ends and the next begins. In three whole series (COVID-CT-MD), at 2 to 40 mm, no
# step was more than 1.73 times the largest of the three before and after it.
_TIMES_THE_OTHERS = 3.0
_TIMES_THE_OTHERS_UNNAMED = 2.0
_LEAST_SEAM_HU = 60.0
_LEAST_SLICES_OF_A_SIDE = 2

# The mean difference to the next slice over that to the one after it, of so many slices taken
# evenly. The same series at 2 to 50 mm have 0.58 to 0.73, with noise of 150 HU too; shuffled, 0.84
# and more.
_MOST_SLICES = 32
_LEAST_SLICES = 6
_MOST_OF_TWO_APART = 0.79


def shrunk(hu: HuSlice) -> Float32[np.ndarray, " pixels"]:
    """A slice as it is compared."""
    small = cv2.resize(hu, (_GRID_PX, _GRID_PX), interpolation=cv2.INTER_AREA)
    return np.clip(small, *_RANGE_HU).ravel()


def differences(
    pictures: Float32[np.ndarray, "slices pixels"], apart: int
) -> Float[np.ndarray, " steps"]:
    """Mean absolute difference, in HU, of each picture to that `apart` places on."""
    return np.abs(pictures[apart:] - pictures[:-apart]).mean(axis=1)


def has_seam(
    pictures: Float32[np.ndarray, "slices pixels"],
    steps_mm: Float[np.ndarray, " steps"],
    *,
    names_vary: bool,
) -> bool:
    """Whether one step between neighbours is far larger than those before and after it.

    Args:
      pictures: of the slices, see `shrunk`.
      steps_mm: between the slices.
      names_vary: names of patient or series make more than one patient likely.
    """
    times = _TIMES_THE_OTHERS_UNNAMED if names_vary else _TIMES_THE_OTHERS
    least = 1 if names_vary else _LEAST_SLICES_OF_A_SIDE
    steps = differences(pictures, 1)
    if not names_vary:
        # Slices differ more where some are missing between them.
        steps = steps / np.maximum(steps_mm / np.median(steps_mm), 1)
    for i in range(least - 1, len(steps) - least + 1):
        others = np.concatenate([steps[max(0, i - 3) : i], steps[i + 1 : i + 4]])
        if len(others) and steps[i] > max(times * others.max(), _LEAST_SEAM_HU):
            return True
    return False


def reason_not_in_order(images: Sequence[HuSlice]) -> str:
    """Why slices, evenly spaced, cannot follow each other in a patient; '' if they can.

    Of a few slices nothing can be said.

    Args:
      images: in HU.
    """
    if len(images) < _LEAST_SLICES:
        return ""
    pictures = np.stack([shrunk(image) for image in images])
    if has_seam(pictures, np.ones(len(pictures) - 1), names_vary=False):
        return "slices of which some do not follow each other (missing, or not in order)"
    # Apart from each other, so that noise does not count.
    chosen = pictures[:: max(1, len(pictures) // _MOST_SLICES)]
    near, far = (differences(chosen, apart).mean() for apart in (1, 2))
    if near > _MOST_OF_TWO_APART * far:
        return "slices that are not in order"
    return ""
