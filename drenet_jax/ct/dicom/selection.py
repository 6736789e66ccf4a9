"""Which of several stacks shows the lungs best."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from drenet_jax.ct.dicom import geometry
from drenet_jax.ct.dicom.grouping import AttributeTable, first_number

# Of two stacks that cover about the same, slices up to this thickness are equally good.
_THIN_MM = 3.0
_SAME_COVERAGE = 0.8
# A shorter one, such as the slices that watch for contrast, is no chest, whatever else it is.
_LEAST_COVERAGE = 0.5
# No chest is longer; whole bodies and abdomens are.
_CHEST_MM = 350.0
# A field of view of this width, or not much smaller than the widest one, shows both lungs.
_WIDE_MM = 300.0
_SAME_WIDTH = 0.8

# What a derived image type says of how it was made.
_PROJECTIONS = ("MIP", "MINIP", "MAX_IP", "MIN_IP", "AVERAGE", "MEAN", "PROJECTION IMAGE", "MPR")

# Sharp kernels, which show lung, and smooth ones: GE, Philips by names; Toshiba and Canon (FC),
# and Siemens by numbers.
_SHARP_NAMES = frozenset(
    ["LUNG", "BONE", "BONEPLUS", "EDGE", "CHEST", "DETAIL", "L", "D", "E", "YA", "YB", "YC", "YD"]
)
_SMOOTH_NAMES = frozenset(["STANDARD", "SOFT", "STND", "A", "B", "C"])
_SHARP_FROM = {"FC": 30, "": 50}
_UNKNOWN_KERNEL = 1


class _Merits(NamedTuple):
    """By what stacks are compared; more is better, the first decides.

    Attributes:
      is_chest: whether they reach at least half as far along the patient as the longest stack.
      is_wide: whether the field of view is as wide as a chest or as the widest one.
      is_original: the scanner's own slices rather than derived ones.
      covers: whether they reach about as far along the patient as the longest stack does.
      thinness: of slices; equal up to 3 mm.
      kernel: 2 for lung, 1 if not known, 0 for soft tissue.
      n_slices: how many.
    """

    is_chest: bool
    is_wide: bool
    is_original: bool
    covers: bool
    thinness: float
    kernel: int
    n_slices: int


# In the order of `_Merits`.
_REASONS = (
    "it covers more of the patient",
    "its field of view is wider",
    "its slices are original, not derived",
    "it covers more of the patient",
    "its slices are thinner",
    "its kernel is for lung",
    "it has more slices",
)


class Comparison:
    """Stacks that could be taken, side by side."""

    def __init__(self, table: AttributeTable, stacks: Sequence[np.ndarray]):
        self._table = table
        originals = [self._is_original(rows) for rows in stacks]
        coverages_mm = [min(self._coverage_mm(rows), _CHEST_MM) for rows in stacks]
        widths_mm = [self._width_mm(rows) for rows in stacks]
        self.merits = []
        for rows, is_original, coverage_mm, width_mm in zip(
            stacks, originals, coverages_mm, widths_mm, strict=True
        ):
            alike_mm = [
                mm for mm, same in zip(coverages_mm, originals, strict=True) if same == is_original
            ]
            self.merits.append(
                _Merits(
                    is_chest=coverage_mm >= _LEAST_COVERAGE * max(coverages_mm),
                    is_wide=width_mm >= min(_WIDE_MM, _SAME_WIDTH * max(widths_mm)),
                    is_original=is_original,
                    covers=coverage_mm >= _SAME_COVERAGE * max(alike_mm),
                    thinness=-round(max(self._thickness_mm(rows), _THIN_MM), 1),
                    kernel=self._kernel(rows),
                    n_slices=len(rows),
                )
            )
        # Of equally good ones the first by name.
        self.order = sorted(range(len(stacks)), key=lambda i: (self.merits[i], -i), reverse=True)

    def why_not_the_largest(self) -> str:
        """Why the best was taken though another has more slices; '' if none has."""
        best = self.merits[self.order[0]]
        largest = max(self.merits, key=lambda merits: merits.n_slices)
        if largest.n_slices <= best.n_slices:
            return ""
        ranks = zip(best, largest, _REASONS, strict=True)
        why = next(reason for mine, other, reason in ranks if mine > other)
        return f"a stack of {best.n_slices} slices is taken, not one of {largest.n_slices}: {why}"

    def _first(self, rows: np.ndarray, name: str) -> tuple[str, ...]:
        return self._table.slices[rows[0]].attributes.get(name, ())

    def _image_type(self, rows: np.ndarray) -> list[str]:
        parts = self._first(rows, "FrameType") or self._first(rows, "ImageType")
        return [part.upper() for part in parts]

    def _is_original(self, rows: np.ndarray) -> bool:
        return self._image_type(rows)[:1] != ["DERIVED"] and not self.projection(rows)

    def projection(self, rows: np.ndarray) -> str:
        """How several slices were made one, as "MIP"; '' if they were not."""
        return next((kind for kind in _PROJECTIONS if kind in self._image_type(rows)), "")

    def _width_mm(self, rows: np.ndarray) -> float:
        """Of the field of view; infinite if it is not known."""
        columns = first_number(self._first(rows, "Columns"))
        spacing_mm = first_number(self._first(rows, "PixelSpacing"))
        return columns * spacing_mm if spacing_mm > 0 else np.inf

    def _coverage_mm(self, rows: np.ndarray) -> float:
        places_mm = self._table.places_mm(rows)
        return float(np.ptp(places_mm)) + self._step_mm(places_mm)

    @staticmethod
    def _step_mm(places_mm: np.ndarray) -> float:
        steps = np.diff(np.sort(places_mm))
        steps = steps[steps >= geometry.SAME_PLACE_MM]
        return float(np.median(steps)) if len(steps) else 0.0

    def _thickness_mm(self, rows: np.ndarray) -> float:
        written_mm = first_number(self._first(rows, "SliceThickness"))
        return written_mm or self._step_mm(self._table.places_mm(rows))

    def _kernel(self, rows: np.ndarray) -> int:
        name = "".join(self._first(rows, "ConvolutionKernel")[:1]).upper()
        description = "".join(self._first(rows, "SeriesDescription")).upper()
        if "LUNG" in name or (not name and "LUNG" in description):
            return 2
        if name in _SHARP_NAMES or name in _SMOOTH_NAMES:
            return 2 if name in _SHARP_NAMES else 0
        numbered = re.match(r"(FC)?[A-Z]{0,2}?(\d\d)", name)
        if numbered is None:
            return _UNKNOWN_KERNEL
        return 2 if int(numbered[2]) >= _SHARP_FROM[numbered[1] or ""] else 0
