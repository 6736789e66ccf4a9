"""A prepared patient: the sampled slices, and why some were not kept.

Apart from `preprocess`, which imports the decoders.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from drenet_jax.array_types import Bool, Int16, UInt8
from drenet_jax.ct.arrays import GreySlice, LungMask
from drenet_jax.ct.file_facts import FileFacts
from drenet_jax.ct.fill import Fill, apply_fill, draw_fill
from drenet_jax.ct.orientation import Box, FileAxes, Orientation
from drenet_jax.ct.settings import CtSettings

if TYPE_CHECKING:
    from drenet_jax.ct.dicom.instances import SourceInstance
    from drenet_jax.ct.sources import Excluded

# Beyond, a file's spacing is wrong rather than its pixels so long.
_MOST_PIXEL_ASPECT = 4.0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SampledSlice:
    """One picked slice of a person, kept or not.

    Attributes:
      index: its place in the ordered series (in the list of paths for single images), from 0. The
        slices of a volume are ordered from the feet to the head, whichever way they are stored.
      name: its file name, relative to the series' folder.
      source: the original slice, lung-windowed and upright.
      source_mask: the lungs; all False if none were found.
      source_box: the lungs' box (y0, x0, y1, x1) in pixels of the source, half open, or None.
      orientation: how the slice as stored became upright.
      image: the lungs' box resized, neither masked nor filled; None if not kept.
      lung_mask: the lungs in `image`; None if not kept.
      why_excluded: '' if the slice is kept.
      instance: the DICOM instance that it comes from, if that was asked for. It identifies the
        patient; nothing else here does.
      stored_index: for a slice of a volume, its place along the slice axis of the array as stored,
        from 0; None for files of slices.
      file_axes: for a slice of a volume, the axes of the array as stored that `file_index` and the
        rows and columns of `file_box` and `file_size` count along; None for files of slices.
      file_facts: of its file.
      hu: `source` in whole HU, if that was asked for and the slice is kept; None for a picture in a
        window.
    """

    index: int
    name: str
    source: GreySlice
    source_mask: LungMask
    orientation: Orientation
    source_box: Box | None = None
    image: UInt8[np.ndarray, "size size"] | None = None
    lung_mask: Bool[np.ndarray, "size size"] | None = None
    why_excluded: str = ""
    instance: SourceInstance | None = None
    stored_index: int | None = None
    file_axes: FileAxes | None = None
    file_facts: FileFacts = dataclasses.field(default_factory=FileFacts)
    hu: Int16[np.ndarray, "height width"] | None = None

    @property
    def kept(self) -> bool:
        return not self.why_excluded

    @property
    def file_index(self) -> int:
        """Its number in the file, from 0: along the slice axis of a volume's array as stored."""
        return self.index if self.stored_index is None else self.stored_index

    @property
    def file_size(self) -> tuple[int, int]:
        """(H, W) of the slice as its file has it."""
        return self.orientation.stored_shape(self.source.shape)

    @property
    def file_box(self) -> Box:
        """The lungs' box in pixels of the slice as its file has it. For slices with lungs only."""
        assert self.source_box is not None
        return self.orientation.stored_box(self.source_box, self.source.shape)

    @property
    def pixel_aspect(self) -> float:
        """A pixel's height over its width in `source`; 1 where the file does not say."""
        height_mm, width_mm = self.file_facts.row_spacing_mm, self.file_facts.spacing_mm
        if not (height_mm and width_mm):
            return 1.0
        aspect = width_mm / height_mm if self.orientation.transpose else height_mm / width_mm
        return aspect if 1 / _MOST_PIXEL_ASPECT <= aspect <= _MOST_PIXEL_ASPECT else 1.0

    @property
    def masked(self) -> UInt8[np.ndarray, "size size"]:
        """The crop with 0 outside the lungs. For kept slices only."""
        assert self.image is not None
        assert self.lung_mask is not None
        return np.where(self.lung_mask, self.image, np.uint8(0))


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedPerson:
    """A patient's slices after preprocessing.

    Attributes:
      picked: the picked slices in order, kept or not.
      excluded: files that are no slices of the series, and picked slices that were not kept.
      notes: what is odd about the files, in words.
      n_slices: how many slices the series has (how many single images were given).
    """

    picked: tuple[SampledSlice, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]
    n_slices: int

    @property
    def kept(self) -> tuple[SampledSlice, ...]:
        return tuple(slice_ for slice_ in self.picked if slice_.kept)


def fill_of(picked: SampledSlice, settings: CtSettings, seed: int) -> Fill:
    """How the blank of a kept slice is filled, the same in every run for the same arguments.

    Args:
      picked: a kept slice.
      settings: how many copies fill the blank.
      seed: the seed of the data set. The fill is seeded by it and by a hash of the image, so that
        a slice is filled alike in a data set and in a prediction.
    """
    assert picked.lung_mask is not None
    # Python's hash() differs between processes.
    picture = hashlib.sha256(picked.masked.tobytes()).digest()
    entropy = (seed, int.from_bytes(picture[:8], "little"))
    return draw_fill(picked.lung_mask, settings.fill_copies, entropy)


def filled(picked: SampledSlice, settings: CtSettings, seed: int) -> UInt8[np.ndarray, "size size"]:
    """The crop with its blank filled; see `fill_of`."""
    assert picked.image is not None
    return apply_fill(picked.image, fill_of(picked, settings, seed))


def input_image(
    picked: SampledSlice, fill: str, settings: CtSettings, seed: int
) -> UInt8[np.ndarray, "size size"]:
    """What a model is given of a kept slice.

    Args:
      picked: the slice.
      fill: `data.fill` of the model's config: "none" is the crop as it is, "always" the filled
        one; else it is black outside the lungs.
      settings, seed: as for `fill_of`.
    """
    if fill == "none":
        assert picked.image is not None
        return picked.image
    if fill == "always":
        return filled(picked, settings, seed)
    return picked.masked
