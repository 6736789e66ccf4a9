"""The slices of one series in anatomical order, whatever the format of their files."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import numpy as np

from drenet_jax.ct.arrays import PADDING_HU, GreySlice, HuSlice
from drenet_jax.ct.dicom.instances import SourceInstance
from drenet_jax.ct.file_facts import FileFacts
from drenet_jax.ct.orientation import FileAxes, Orientation
from drenet_jax.ct.sources import Excluded
from drenet_jax.storage.objects import AnyPath


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series(abc.ABC):
    """The slices of one series, in order; pixels are read one slice at a time.

    Attributes:
      path: the folder, the zip or the single file.
      names: the slices' names, from the feet to the head for DICOM and volumes, in natural order
        for pictures: their files' names relative to the folder, with `#` and the number of the
        frame in a file of several, or of the slice along the stored slice axis of a volume. Bytes
        that are not UTF-8 are written as escapes.
      excluded: the files that are no slices of this series.
      notes: what is odd about the series, in words.
      orientation: of a slice as stored, unless `orientation_of` says otherwise of it.
      axes: of the stored array, for a volume.
      is_single_image: a file of one slice, rather than a series.
      is_renamed: names of files held something that identifies the patient, so files are called
        by their numbers in natural order.
      are_pictures: PNG or JPEG, which say neither what their values mean nor, but by their names,
        in which order they are.
    """

    path: AnyPath
    names: tuple[str, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]
    orientation: Orientation
    axes: FileAxes | None = None
    is_single_image: bool = False
    is_renamed: bool = False
    are_pictures: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> GreySlice | HuSlice:
        """Decodes one slice.

        Args:
          index: its place in `names`.

        Returns:
          The slice in HU, at least -1024 (padding is air), or in the lung window (uint8); upright:
          columns to the patient's left, rows to the back, as far as the file tells.

        Raises:
          UnreadableSlice: the file cannot be decoded, or is a colour picture.
        """
        stored = self._read(index)
        image = self.orientation_of(index).to_canonical(stored)
        if image.dtype == np.uint8:
            return image
        return np.maximum(image, PADDING_HU, out=image)

    @abc.abstractmethod
    def _read(self, index: int) -> np.ndarray:
        """One slice as stored, otherwise as `read` returns it."""

    def orientation_of(self, index: int) -> Orientation:
        """How one slice as stored becomes upright: pictures may each be turned by their EXIF."""
        return self.orientation

    def instance(self, index: int) -> SourceInstance | None:
        """The DICOM instance of one slice, which identifies the patient; None if it is no DICOM.

        Raises:
          UnreadableSlice: the file cannot be read, or nothing can refer to it.
        """
        return None

    def scale(self, index: int) -> object:
        """What a slice's values are made HU by: equal for slices of one scale."""
        return None

    def file_facts(self, index: int) -> FileFacts:
        """Facts of the file of one slice that has been read; none where they are not known."""
        return FileFacts()

    def stored_index(self, index: int) -> int | None:
        """For a volume, a slice's place along the stored slice axis, from 0; None for files."""
        return None

    def next_best(self) -> Series | None:
        """The series that would have been taken if this one were not there; None if there is none.

        Raises:
          CtError: there is one, but its slices cannot be identified.
        """
        return None
