"""The slices of one series in anatomical order, whatever the format of their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from drenet_jax.ct.dicom.instances import SourceInstance
from drenet_jax.ct.dicom.pixels import PADDING_HU
from drenet_jax.ct.orientation import FileAxes, Orientation
from drenet_jax.ct.sources import CtError, Excluded

KINDS = "DICOM, PNG, JPEG, NIfTI, MetaImage or NRRD"

# Asked before a file is opened, with its place and what is sought in it ("header" or "pixels"): ''
# to go on, or why to leave it out.
Guard = Callable[[str, str], str]


def no_guard(place: str, what: str) -> str:
    return ""


class UnreadableSlice(CtError):
    """A file that is no CT slice or cannot be decoded; `why` is the reason without the path."""

    @classmethod
    def of(cls, file: Path | str, why: str, fix: str) -> UnreadableSlice:
        return cls(f"{file} is {why}; {fix}.", why)


class NoSuchSeries(CtError):
    """A folder without the series that was asked for."""


class NoSlices(CtError):
    """A folder without any CT slice; `excluded` says of each file why it is none."""

    @classmethod
    def of(cls, folder: Path, excluded: Sequence[Excluded]) -> NoSlices:
        reasons: dict[str, list[str]] = {}
        for entry in excluded:
            reasons.setdefault(entry.why, []).append(entry.name)
        most = sorted(reasons.items(), key=lambda item: -len(item[1]))[:3]
        text = "; ".join(
            f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}"
            for why, names in most
        )
        why = f"no CT slice ({text})"
        return cls(f"{folder} holds {why}; name a CT series in {KINDS}.", why, excluded)


@dataclasses.dataclass(frozen=True)
class Series:
    """The slices of one series, in order; pixels are read one slice at a time.

    Attributes:
      path: the folder, the zip or the single file.
      names: the slices' names, from the feet to the head for DICOM and volumes, in natural order
        for pictures: their files' names relative to the folder, with `#` and the number of the
        frame in a file of several, or of the slice along the stored slice axis of a volume. Bytes
        that are not UTF-8 are written as escapes.
      excluded: the files that are no slices of this series.
      notes: what is odd about the series, in words.
      from_feet: whether the order is known to be from the feet to the head.
      is_single_image: a file of one slice, rather than a series.
      is_renamed: names of files held something that identifies the patient, so files are called
        by their numbers in natural order.
      orientation: of a slice as stored, unless `orientation_of` says otherwise of it.
      axes: of the stored array, for a volume.
    """

    path: Path
    names: tuple[str, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]
    from_feet: bool
    orientation: Orientation
    _read: Callable[[int], np.ndarray]
    is_single_image: bool = False
    is_renamed: bool = False
    _instance: Callable[[int], SourceInstance] | None = None
    axes: FileAxes | None = None
    _stored_index: Callable[[int], int] | None = None
    _orientation_of: Callable[[int], Orientation] | None = None
    _next_best: Callable[[], Series] | None = None
    _scale: Callable[[int], object] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def instance(self, index: int) -> SourceInstance | None:
        """The DICOM instance of one slice, which identifies the patient; None if it is no DICOM.

        Args:
          index: its place in `names`.

        Raises:
          UnreadableSlice: the file cannot be read, or nothing can refer to it.
        """
        return self._instance(index) if self._instance is not None else None

    def next_best(self) -> Series | None:
        """The series that would have been taken if this one were not there; None if there is none.

        Raises:
          CtError: there is one, but its slices cannot be identified.
        """
        if self._next_best is None:
            return None
        try:
            series = self._next_best()
        except NoSuchSeries:
            return None
        return dataclasses.replace(series, is_renamed=self.is_renamed)

    def scale(self, index: int) -> object:
        """What a slice's values are made HU by: equal for slices of one scale."""
        return self._scale(index) if self._scale is not None else None

    @property
    def is_of_pictures(self) -> bool:
        """Whether the slices are PNG or JPEG pictures, which do not say what their values mean."""
        return self._instance is None and self.axes is None

    def stored_index(self, index: int) -> int | None:
        """For a volume, a slice's place along the stored slice axis, from 0; None for files."""
        return self._stored_index(index) if self._stored_index is not None else None

    def orientation_of(self, index: int) -> Orientation:
        """How one slice as stored becomes upright: pictures may each be turned by their EXIF."""
        return self._orientation_of(index) if self._orientation_of is not None else self.orientation

    def read(self, index: int) -> np.ndarray:
        """Decodes one slice.

        Args:
          index: its place in `names`.

        Returns:
          float32 [H, W] in HU, at least -1024 (padding is air), or uint8 [H, W] in the lung window;
          upright: columns to the patient's left, rows to the back, as far as the file tells.

        Raises:
          UnreadableSlice: the file cannot be decoded, or is a colour picture.
        """
        stored = self._read(index)
        image = self.orientation_of(index).to_canonical(stored)
        if image.dtype == np.uint8:
            return image
        return np.maximum(image, PADDING_HU, out=image)
