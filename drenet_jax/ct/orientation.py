"""How a slice as stored becomes upright: columns to the patient's left, rows to the back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from drenet_jax.array_types import Float, Shaped

Box = tuple[float, float, float, float]


class FileAxes(NamedTuple):
    """Which axes of a volume's array the places in its axial slices count along.

    Axes are numbered as nibabel and SimpleITK index them: 0 for i, which runs fastest in the file,
    1 for j, 2 for k. Of the two axes of a slice, x counts along the one of the lower number and y
    along the other. A volume stored from axial planes has (2, 1, 0): a box of its slice `n` is
    `array[x0:x1, y0:y1, n]`. One stored from sagittal planes, with the patient's long axis along j,
    has (1, 2, 0): there the box is `array[x0:x1, n, y0:y1]`.

    Attributes:
      index: of the slice's number (from 0) in the file.
      y: of the rows.
      x: of the columns.
    """

    index: int  # type: ignore[assignment]  # not `tuple.index`; a key of result.json
    y: int
    x: int


class Orientation(NamedTuple):
    """A transposition, then flips.

    Attributes:
      transpose: rows and columns change places.
      flip_rows: the first row becomes the last.
      flip_columns: the first column becomes the last.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def to_canonical(
        self, stored: Shaped[np.ndarray, "rows columns"]
    ) -> Shaped[np.ndarray, "height width"]:
        """A slice in canonical orientation."""
        turned = stored.T if self.transpose else stored
        turned = turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return np.ascontiguousarray(turned)

    def stored_shape(self, canonical_shape: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the slice as stored."""
        height, width = canonical_shape
        return (width, height) if self.transpose else (height, width)

    def stored_box(self, box: Box, canonical_shape: tuple[int, int]) -> Box:
        """A box (y0, x0, y1, x1; half open) of the upright slice, in pixels as stored."""
        height, width = canonical_shape
        y0, x0, y1, x1 = box
        if self.flip_rows:
            y0, y1 = height - y1, height - y0
        if self.flip_columns:
            x0, x1 = width - x1, width - x0
        return (x0, y0, x1, y1) if self.transpose else (y0, x0, y1, x1)

    def canonical_box(self, box: Box, stored_shape: tuple[int, int]) -> Box:
        """A box of the slice as stored, in pixels of the upright slice; undoes `stored_box`."""
        if self.transpose:
            box = (box[1], box[0], box[3], box[2])
            stored_shape = stored_shape[::-1]
        # Flips undo themselves.
        return self._replace(transpose=False).stored_box(box, stored_shape)


def orientation_of(
    row_cosines: Float[np.ndarray, " 3"], column_cosines: Float[np.ndarray, " 3"]
) -> Orientation:
    """The turn for a slice in the patient's coordinates (x to the left, y to the back, z to the
    head).

    Args:
      row_cosines: the direction in which the column index grows.
      column_cosines: the direction in which the row index grows.
    """
    if abs(row_cosines[0]) >= abs(row_cosines[1]):
        return Orientation(False, bool(column_cosines[1] < 0), bool(row_cosines[0] < 0))
    return Orientation(True, bool(row_cosines[1] < 0), bool(column_cosines[0] < 0))
