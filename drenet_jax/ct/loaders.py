"""The loaders of the three formats: DICOM, volumes (NIfTI, MetaImage, NRRD) and pictures."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom

from drenet_jax.ct import image_files, volumes
from drenet_jax.ct.dicom import continuity, copies, elements, pixels, stacks
from drenet_jax.ct.dicom.headers import DicomSlice
from drenet_jax.ct.dicom.instances import NoInstanceError, SourceInstance, read_instance
from drenet_jax.ct.orientation import Orientation
from drenet_jax.ct.series import KINDS, Guard, NoSuchSeries, Series, UnreadableSlice
from drenet_jax.ct.sources import CtError, Excluded, Source, TooLargeError, natural

# So many pictures with the same beginning of their names are a series.
_LEAST_PICTURES_OF_A_SERIES = 3


@dataclasses.dataclass
class Listing:
    """The files of a source by kind, as `discovery` finds them; input of the loaders.

    Attributes:
      path: as the user gave it.
      source: of the files.
      guard: see `series.Guard`.
      excluded: files that are no slices.
      dicom: the DICOM slices' headers.
      volumes: names of volumes.
      pictures: names of pictures.
      heads: first bytes of the volumes, by name.
      identifiers: values of DICOM tags that identify the patient.
    """

    path: Path
    source: Source
    guard: Guard
    excluded: list[Excluded]
    dicom: list[DicomSlice] = dataclasses.field(default_factory=list)
    volumes: list[str] = dataclasses.field(default_factory=list)
    pictures: list[str] = dataclasses.field(default_factory=list)
    heads: dict[str, bytes] = dataclasses.field(default_factory=dict)
    identifiers: set[str] = dataclasses.field(default_factory=set)

    def stream(self, name: str) -> io.BytesIO:
        return elements.as_stream(self.source.read(name))

    def sorted_excluded(self, *more: Excluded) -> tuple[Excluded, ...]:
        return tuple(sorted((*self.excluded, *more), key=lambda item: natural(item.name)))


def load_dicom(listing: Listing, series_uid: str = "", nth: int = 0) -> Series:
    """The best DICOM series; with `nth`, the one that comes so many places after it.

    Raises:
      NoSuchSeries: there is none with the `series_uid`, or no further one.
      CtError: the slices of one series cannot be distinguished from those of another.
    """
    path, source, guard = listing.path, listing.source, listing.guard
    others = [Excluded(name, "a volume beside a DICOM series") for name in listing.volumes]
    others += [Excluded(name, "a picture beside a DICOM series") for name in listing.pictures]

    @functools.lru_cache(maxsize=1)
    def dataset_of_frames(name: str) -> pydicom.Dataset:
        return pixels.read_dataset(listing.stream(name), is_whole=True)

    def dataset_of(item: DicomSlice) -> pydicom.Dataset:
        if item.frame is not None:
            return dataset_of_frames(item.name)
        return pixels.read_dataset(listing.stream(item.name), is_whole=False)

    def decode(item: DicomSlice) -> np.ndarray:
        file = source.place(item.name)
        why = guard(str(file), "pixels")
        if why:
            raise UnreadableSlice.of(file, why, "export it again")
        try:
            return pixels.read_hu(item, dataset_of(item))
        except OSError as error:
            why = f"a file that cannot be opened ({error.strerror or 'damaged'})"
            raise UnreadableSlice.of(file, why, "check its permissions") from error
        except (TooLargeError, elements.NoSliceError) as error:
            raise UnreadableSlice.of(file, str(error), "export it again") from error
        except UserWarning as error:
            why = "a DICOM file that cannot be decoded (more pixels than rows and columns say)"
            raise UnreadableSlice.of(file, why, "export it again") from error
        except elements.ERRORS as error:
            why = pixels.reason_undecodable(error, item.syntax)
            raise UnreadableSlice.of(file, why, "export it again") from error

    def digest(item: DicomSlice) -> object:
        try:
            return hashlib.sha256(source.read(item.name)).digest(), item.frame
        except (OSError, ValueError):  # which decoding will report
            return item.label

    try:
        stack = stacks.choose(
            listing.dicom, series_uid, pixels=copies.Pixels(decode, digest), nth=nth
        )
        if isinstance(stack, str):
            raise no_such_series(path, stack)
        continuity.check(stack, decode)
    except copies.NoStackError as error:
        raise CtError(
            f"{path} holds {error}; put the files of one series alone into a folder, or name the "
            "series in series_uid.",
            str(error),
        ) from None

    def instance(index: int) -> SourceInstance:
        item = stack.slices[index]
        file = source.place(item.name)
        why = guard(str(file), "header")
        try:
            if why:
                raise NoInstanceError(why)
            if item.frame is not None:
                return read_instance(item, dataset_of(item))
            return read_instance(item, listing.stream(item.name))
        except NoInstanceError as error:
            raise UnreadableSlice.of(file, str(error), "export it again") from error
        except elements.ERRORS as error:
            # Not the error's text, nor the error itself: they may quote what a tag holds.
            why = f"a DICOM file whose header cannot be read ({type(error).__name__})"
            raise UnreadableSlice.of(file, why, "export it again") from None

    return Series(
        path=path,
        names=tuple(item.label for item in stack.slices),
        excluded=listing.sorted_excluded(*others, *stack.excluded),
        notes=stack.notes,
        from_feet=True,
        orientation=stack.slices[0].orientation,
        _read=lambda index: decode(stack.slices[index]),
        _instance=instance,
        _scale=lambda index: stack.slices[index].scale,
        _next_best=lambda: load_dicom(listing, series_uid, nth + 1),
    )


def no_such_series(path: Path, there: str) -> CtError:
    why = f"no axial CT series with that series_uid (there is {there})"
    return NoSuchSeries(f"{path} holds {why}; check --series_uid.", why)


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
        with source.on_disk(name) as place:
            volume = volumes.Volume(place, listing.heads[name])
    except (ValueError, OSError) as error:
        why = str(error) if isinstance(error, ValueError) else "a volume that cannot be read"
        raise UnreadableSlice.of(
            source.place(name), why, f"give a CT volume, or another of {KINDS}"
        ) from error
    return Series(
        path=listing.path,
        names=tuple(f"{name}#{volume.file_index(i) + 1}" for i in range(volume.n_slices)),
        excluded=listing.sorted_excluded(*others),
        notes=tuple(volume.notes),
        from_feet=True,
        orientation=volume.orientation,
        _read=volume.read,
        axes=volume.axes,
        _stored_index=volume.file_index,
    )


def load_pictures(listing: Listing) -> Series:
    """The pictures in natural order of their names.

    Raises:
      CtError: their names are those of several series.
    """
    names, source = listing.pictures, listing.source
    _require_one_series(listing.path, names)
    notes: tuple[str, ...] = ()
    if len(names) > 2 and len(set(map(_beginning, names))) == len(names):
        notes = (
            "names of pictures without a number in common: whether they are one series, and in "
            "which order, is not known",
        )
    orientations: dict[int, Orientation] = {}

    def read(index: int) -> np.ndarray:
        file = source.place(names[index])
        try:
            why = listing.guard(str(file), "pixels")
            if why:
                raise image_files.PictureError(why)
            data = source.read(names[index])
            image = image_files.read_picture(data)
            orientations[index] = image_files.read_orientation(data)
            return image
        except OSError as error:
            why = f"a file that cannot be opened ({error.strerror})"
            raise UnreadableSlice.of(file, why, "check its permissions") from error
        except ValueError as error:
            raise UnreadableSlice.of(file, str(error), "give a grey CT slice") from error

    def orientation_of(index: int) -> Orientation:
        if index not in orientations:
            read(index)
        return orientations[index]

    return Series(
        path=listing.path,
        names=tuple(names),
        excluded=listing.sorted_excluded(),
        notes=notes,
        from_feet=False,
        orientation=Orientation(),
        _read=read,
        _orientation_of=orientation_of,
    )


def _require_one_series(path: Path, names: Sequence[str]) -> None:
    """Refuses pictures whose names tell of several series, as of several patients.

    Raises:
      CtError: they lie in several folders, or have several beginnings.
    """
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
