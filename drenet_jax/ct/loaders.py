"""The loaders of the three formats: DICOM, volumes (NIfTI, MetaImage, NRRD) and pictures."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from drenet_jax.ct import image_files, volumes
from drenet_jax.ct.dicom import continuity, stacks
from drenet_jax.ct.dicom.files import DicomFiles
from drenet_jax.ct.dicom.headers import DicomSlice
from drenet_jax.ct.dicom.instances import SourceInstance
from drenet_jax.ct.file_facts import FileFacts, picture_facts
from drenet_jax.ct.orientation import Orientation
from drenet_jax.ct.series import Series
from drenet_jax.ct.sources import (
    KINDS,
    CtError,
    Excluded,
    Guard,
    Source,
    UnreadableSlice,
    natural,
)
from drenet_jax.storage.objects import AnyPath

# So many pictures with the same beginning of their names are a series.
_LEAST_PICTURES_OF_A_SERIES = 3


@dataclasses.dataclass
class Listing:
    """The files of a source by kind, as `discovery` finds them; input of the loaders.

    Attributes:
      path: as the user gave it.
      source: of the files.
      guard: see `sources.Guard`.
      excluded: files that are no slices.
      dicom: the DICOM slices' headers.
      volumes: names of volumes.
      pictures: names of pictures.
      identifiers: values of DICOM tags that identify the patient.
    """

    path: AnyPath
    source: Source
    guard: Guard
    excluded: list[Excluded]
    dicom: list[DicomSlice] = dataclasses.field(default_factory=list)
    volumes: list[str] = dataclasses.field(default_factory=list)
    pictures: list[str] = dataclasses.field(default_factory=list)
    identifiers: set[str] = dataclasses.field(default_factory=set)

    def sorted_excluded(self, *more: Excluded) -> tuple[Excluded, ...]:
        return tuple(sorted((*self.excluded, *more), key=lambda file: natural(file.name)))


class NoSuchSeries(CtError):
    """A folder without the series that was asked for."""

    @classmethod
    def of(cls, path: AnyPath, there: str) -> NoSuchSeries:
        why = f"no axial CT series with that series_uid (there is {there})"
        return cls(f"{path} holds {why}; check --series_uid.", why)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _DicomSeries(Series):
    listing: Listing
    series_uid: str
    nth: int
    files: DicomFiles
    slices: tuple[DicomSlice, ...]

    def _read(self, index: int) -> np.ndarray:
        return self.files.decode(self.slices[index])

    def instance(self, index: int) -> SourceInstance:
        return self.files.instance(self.slices[index])

    def file_facts(self, index: int) -> FileFacts:
        return self.files.facts(self.slices[index])

    def scale(self, index: int) -> object:
        return self.slices[index].scale

    def next_best(self) -> Series | None:
        try:
            series = load_dicom(self.listing, self.series_uid, self.nth + 1)
        except NoSuchSeries:
            return None
        return dataclasses.replace(series, is_renamed=self.is_renamed)


def load_dicom(listing: Listing, series_uid: str = "", nth: int = 0) -> Series:
    """The best DICOM series; with `nth`, the one that comes so many places after it.

    Raises:
      NoSuchSeries: there is none with the `series_uid`, or no further one.
      CtError: the slices of one series cannot be distinguished from those of another.
    """
    files = DicomFiles(listing.source, listing.guard)
    others = [Excluded(name, "a volume beside a DICOM series") for name in listing.volumes]
    others += [Excluded(name, "a picture beside a DICOM series") for name in listing.pictures]
    try:
        stack = stacks.choose(listing.dicom, series_uid, files=files, nth=nth)
        if isinstance(stack, str):
            raise NoSuchSeries.of(listing.path, stack)
        continuity.check(stack, files)
    except stacks.NoStackError as error:
        raise CtError(
            f"{listing.path} holds {error}; put the files of one series alone into a folder, or "
            "name the series in series_uid.",
            str(error),
        ) from None
    return _DicomSeries(
        path=listing.path,
        names=tuple(dicom_slice.label for dicom_slice in stack.slices),
        excluded=listing.sorted_excluded(*others, *stack.excluded),
        notes=stack.notes,
        orientation=stack.slices[0].orientation,
        listing=listing,
        series_uid=series_uid,
        nth=nth,
        files=files,
        slices=stack.slices,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _VolumeSeries(Series):
    volume: volumes.Volume
    facts: FileFacts

    def file_facts(self, index: int) -> FileFacts:
        return self.facts

    def _read(self, index: int) -> np.ndarray:
        return self.volume.read(index)

    def stored_index(self, index: int) -> int:
        return self.volume.file_index(index)


def load_volume(listing: Listing) -> Series:
    """The only volume.

    Raises:
      UnreadableSlice: it cannot be read.
    """
    (name,) = listing.volumes
    source = listing.source
    others = [Excluded(picture, "a picture beside a volume") for picture in listing.pictures]
    why = listing.guard(str(source.place(name)), "pixels")
    try:
        if why:
            raise volumes.VolumeError(why)
        with source.on_disk(name) as file:
            volume = volumes.Volume(file, source.head(name))
    except (ValueError, OSError) as error:
        why = str(error) if isinstance(error, ValueError) else "a volume that cannot be read"
        raise UnreadableSlice.of(
            source.place(name), why, f"give a CT volume, or another of {KINDS}"
        ) from error
    return _VolumeSeries(
        path=listing.path,
        names=tuple(f"{name}#{volume.file_index(i) + 1}" for i in range(volume.n_slices)),
        excluded=listing.sorted_excluded(*others),
        notes=tuple(volume.notes),
        orientation=volume.orientation,
        axes=volume.axes,
        volume=volume,
        facts=FileFacts(
            format="volume",
            n_bytes=source.size(name),
            bits=volume.bits,
            spacing_mm=volume.spacing_mm[0],
            row_spacing_mm=volume.spacing_mm[1],
            thickness_mm=volume.spacing_mm[2],
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PictureSeries(Series):
    source: Source
    guard: Guard
    orientations: dict[int, Orientation] = dataclasses.field(default_factory=dict)
    facts: dict[int, FileFacts] = dataclasses.field(default_factory=dict)
    are_pictures: ClassVar[bool] = True

    def _read(self, index: int) -> np.ndarray:
        place = self.source.place(self.names[index])
        try:
            why = self.guard(str(place), "pixels")
            if why:
                raise image_files.PictureError(why)
            data = self.source.read(self.names[index])
            image = image_files.read_picture(data)
            self.orientations[index] = image_files.read_orientation(data)
            self.facts[index] = picture_facts(data)
            return image
        except OSError as error:
            why = f"a file that cannot be opened ({error.strerror})"
            raise UnreadableSlice.of(place, why, "check its permissions") from error
        except ValueError as error:
            raise UnreadableSlice.of(place, str(error), "give a grey CT slice") from error

    def file_facts(self, index: int) -> FileFacts:
        return self.facts[index]

    def orientation_of(self, index: int) -> Orientation:
        if index not in self.orientations:
            self._read(index)
        return self.orientations[index]


def load_pictures(listing: Listing) -> Series:
    """The pictures in natural order of their names.

    Raises:
      CtError: their names are those of several series.
    """
    names = listing.pictures
    _require_one_series(listing.path, names)
    notes: tuple[str, ...] = ()
    if len(names) > 2 and len(set(map(_beginning, names))) == len(names):
        notes = (
            "names of pictures without a number in common: whether they are one series, and in "
            "which order, is not known",
        )
    return _PictureSeries(
        path=listing.path,
        names=tuple(names),
        excluded=listing.sorted_excluded(),
        notes=notes,
        orientation=Orientation(),
        source=listing.source,
        guard=listing.guard,
    )


def _require_one_series(path: AnyPath, names: Sequence[str]) -> None:
    """Refuses pictures in several folders, or with several beginnings of their names."""
    folders = collections.Counter(name.rpartition("/")[0] for name in names)
    beginnings = collections.Counter(map(_beginning, names))
    large = [name for name, n in beginnings.items() if n >= _LEAST_PICTURES_OF_A_SERIES]
    why = ""
    if len(folders) > 1:
        first, second = list(folders)[:2]
        why = f"pictures in {len(folders)} folders ({first or '.'} and {second} first)"
    elif len(large) > 1:
        first, second = (
            next(name for name in names if _beginning(name) == beginning) for beginning in large[:2]
        )
        why = f"pictures with {len(large)} kinds of names ({first} and {second} first)"
    if why:
        raise CtError(f"{path} holds {why}; name the folder of one series.", why)


def _beginning(name: str) -> str:
    """A picture's name without the number of the slice, which comes last."""
    return re.sub(r"\d+(?=\D*$)", "", name)
