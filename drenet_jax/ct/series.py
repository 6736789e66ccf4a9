"""One person's slices on disk, in anatomical order, whatever the files are."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom

from drenet_jax.ct import image_files, volumes
from drenet_jax.ct.dicom import continuity, copies, elements, headers, pixels, stacks
from drenet_jax.ct.dicom.headers import DicomSlice
from drenet_jax.ct.dicom.instances import NoInstanceError, SourceInstance, read_instance
from drenet_jax.ct.dicom.pixels import PADDING_HU
from drenet_jax.ct.orientation import FileAxes, Orientation
from drenet_jax.ct.sources import (
    CtError,
    Excluded,
    Source,
    TooLargeError,
    is_zip,
    natural,
    open_source,
)

KINDS = "DICOM, PNG, JPEG, NIfTI, MetaImage or NRRD"

# More pictures than these beside a DICOM slice are no previews of it.
_MOST_PICTURES_A_SLICE = 2
# So many pictures with the same beginning of their names are a series.
_LEAST_PICTURES_OF_A_SERIES = 3

# The note on files that are called by numbers.
RENAMED = (
    "names of files hold what identifies the patient, so files are called by their numbers in "
    "natural order"
)

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
    is_single_image: bool
    is_renamed: bool
    orientation: Orientation
    _read: Callable[[int], np.ndarray]
    _instance: Callable[[int], SourceInstance] | None
    axes: FileAxes | None = None
    _stored_index: Callable[[int], int] | None = None
    _turn_of: Callable[[int], Orientation] | None = None
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
        return self._turn_of(index) if self._turn_of is not None else self.orientation

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


def open_series(path: Path, series_uid: str = "", *, guard: Guard = no_guard) -> Series:
    """Finds the slices under `path` and orders them, reading DICOM headers only.

    DICOM slices are ordered by ImagePositionPatient along the normal of the image plane; file names
    and InstanceNumber play no part. Of several series the axial one with most slices
    is taken. Pictures are ordered by name, with 2 before 10.

    Args:
      path: a folder (nested, or without extensions, too) or a zip of DICOM files (of one slice or
        several each), of PNG/JPEG pictures, or with one NIfTI, MetaImage or NRRD volume; or a
        single file of any kind.
      series_uid: takes the DICOM series with this SeriesInstanceUID instead.
      guard: asked before a file is opened; see `isolated`.

    Raises:
      CtError: `path` does not exist or holds no CT slice (NoSlices, or UnreadableSlice if it is a
        file); no series has the `series_uid`; there are several volumes.
    """
    path = Path(path)
    files = open_source(path)
    if not files.names and not files.excluded:
        raise CtError(
            f"{path} is an empty folder; name one with a CT series in {KINDS}.", "an empty folder"
        )
    excluded = list(files.excluded)
    result = _sorted_by_kind(files, guard, excluded)
    is_renamed = headers.names_identify(files.names, result.identifiers)
    if is_renamed:
        files, result, excluded = _renamed(files, result, excluded)
    is_file = path.is_file() and not is_zip(path)
    if result.dicom and len(result.pictures) > _MOST_PICTURES_A_SLICE * len(result.dicom):
        why = f"{len(result.pictures)} pictures beside {len(result.dicom)} DICOM slices"
        raise CtError(f"{path} holds {why}; name the pictures or the DICOM files.", why)
    if result.dicom:
        series = _dicom_series(path, files, result, series_uid, guard, excluded)
    elif series_uid:
        raise _no_such_series(path, "no DICOM series at all")
    elif len(result.volumes) > 1:
        why = f"{len(result.volumes)} volumes ({result.volumes[0]} and {result.volumes[1]} first)"
        raise CtError(f"{path} holds {why}; name one of them.", why)
    elif result.volumes:
        series = _volume_series(path, files, result, guard, excluded)
    elif result.pictures:
        _require_one_series(path, result.pictures)
        series = _picture_series(path, files, result.pictures, guard, excluded)
    elif is_file:
        raise UnreadableSlice.of(path, excluded[0].why, f"name a CT slice or series in {KINDS}")
    else:
        raise NoSlices.of(path, excluded)
    return dataclasses.replace(
        series,
        is_single_image=is_file and len(series) == 1 and not result.volumes,
        is_renamed=is_renamed,
        notes=(*series.notes, RENAMED) if is_renamed and not is_file else series.notes,
    )


def require_images(path: Path) -> None:
    """Checks cheaply that at least one file may be a slice.

    It finds mistakes of the caller, such as a folder of something else. Damage, as of a zip, is
    reported when the file is read.

    Args:
      path: as for `open_series`.

    Raises:
      CtError: `path` does not exist, or no file there begins like a CT slice or volume.
    """
    path = Path(path)
    if os.path.exists(path) and is_zip(path):
        return
    files = open_source(path)
    for name in files.names:
        with contextlib.suppress(OSError, ValueError):
            head = files.head(name)
            if (
                image_files.is_picture(head)
                or elements.is_dicom(head)
                or volumes.is_volume(name, head)
            ):
                return
    open_series(path)  # which says what is wrong


@dataclasses.dataclass(frozen=True)
class _FilesByKind:
    """What kind of file is which."""

    dicom: list[DicomSlice] = dataclasses.field(default_factory=list)
    volumes: list[str] = dataclasses.field(default_factory=list)
    pictures: list[str] = dataclasses.field(default_factory=list)
    heads: dict[str, bytes] = dataclasses.field(default_factory=dict)
    identifiers: set[str] = dataclasses.field(default_factory=set)


def _sorted_by_kind(files: Source, guard: Guard, excluded: list[Excluded]) -> _FilesByKind:
    result = _FilesByKind()
    for name in files.names:
        why = guard(str(files.place(name)), "header")
        if why:
            excluded.append(Excluded(name, why))
            continue
        try:
            head = files.head(name)
        except OSError as error:
            excluded.append(Excluded(name, f"a file that cannot be opened ({error.strerror})"))
            continue
        except ValueError as error:
            excluded.append(Excluded(name, str(error)))
            continue
        if image_files.is_picture(head):
            result.pictures.append(name)
        elif volumes.is_volume(name, head):
            result.volumes.append(name)
            result.heads[name] = head
        elif elements.is_dicom(head):
            slices, others = headers.read_header(
                name,
                head,
                functools.partial(_stream, files, name),
                identifiers=result.identifiers,
            )
            result.dicom.extend(slices)
            excluded.extend(others)
        else:
            excluded.append(Excluded(name, _what_it_is(name, head)))
    return result


def _renamed(
    files: Source, by_kind: _FilesByKind, excluded: list[Excluded]
) -> tuple[Source, _FilesByKind, list[Excluded]]:
    """All with numbers in place of names that identify the patient."""
    numbered = files.numbered()
    called = dict(zip(files.names, numbered.names, strict=True))
    renamed = _FilesByKind(
        dicom=[dataclasses.replace(item, name=called[item.name]) for item in by_kind.dicom],
        volumes=[called[name] for name in by_kind.volumes],
        pictures=[called[name] for name in by_kind.pictures],
        heads={called[name]: head for name, head in by_kind.heads.items()},
    )
    # What could not be looked at has no number; its name goes unsaid.
    return (
        numbered,
        renamed,
        [Excluded(called.get(item.name, "(not named)"), item.why) for item in excluded],
    )


def _stream(files: Source, name: str) -> io.BytesIO:
    return elements.as_stream(files.read(name))


def _what_it_is(name: str, head: bytes) -> str:
    suffix = Path(name).suffix.lower()
    if not head:
        return "an empty file"
    if suffix in (".dcm", ".dicom", ".ima"):
        return f"no DICOM file in spite of its name ({suffix})"
    if head.startswith(b"PK\x03\x04"):
        return "a zip inside a folder or a zip (unpack it first)"
    return f"not {KINDS}"


def _dicom_series(
    path: Path,
    files: Source,
    by_kind: _FilesByKind,
    series_uid: str,
    guard: Guard,
    unreadable: Sequence[Excluded],
    nth: int = 0,
) -> Series:
    excluded = list(unreadable)
    excluded += [Excluded(name, "a volume beside a DICOM series") for name in by_kind.volumes]
    excluded += [Excluded(name, "a picture beside a DICOM series") for name in by_kind.pictures]

    @functools.lru_cache(maxsize=1)
    def dataset_of_frames(name: str) -> pydicom.Dataset:
        return pixels.read_dataset(_stream(files, name), is_whole=True)

    def dataset_of(item: DicomSlice) -> pydicom.Dataset:
        if item.frame is not None:
            return dataset_of_frames(item.name)
        return pixels.read_dataset(_stream(files, item.name), is_whole=False)

    def decode(item: DicomSlice) -> np.ndarray:
        file = files.place(item.name)
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
            return hashlib.sha256(files.read(item.name)).digest(), item.frame
        except (OSError, ValueError):  # which decoding will report
            return item.label

    try:
        stack = stacks.choose(
            by_kind.dicom, series_uid, pixels=copies.Pixels(decode, digest), nth=nth
        )
        if isinstance(stack, str):
            raise _no_such_series(path, stack)
        continuity.check(stack, decode)
    except copies.NoStackError as error:
        raise CtError(
            f"{path} holds {error}; put the files of one series alone into a folder, or name the "
            "series in series_uid.",
            str(error),
        ) from None

    def instance(index: int) -> SourceInstance:
        item = stack.slices[index]
        file = files.place(item.name)
        why = guard(str(file), "header")
        try:
            if why:
                raise NoInstanceError(why)
            if item.frame is not None:
                return read_instance(item, dataset_of(item))
            return read_instance(item, _stream(files, item.name))
        except NoInstanceError as error:
            raise UnreadableSlice.of(file, str(error), "export it again") from error
        except elements.ERRORS as error:
            # Not the error's text, nor the error itself: they may quote what a tag holds.
            why = f"a DICOM file whose header cannot be read ({type(error).__name__})"
            raise UnreadableSlice.of(file, why, "export it again") from None

    return _series(
        path,
        names=[item.label for item in stack.slices],
        excluded=[*excluded, *stack.excluded],
        notes=stack.notes,
        from_feet=True,
        orientation=stack.slices[0].orientation,
        read=lambda index: decode(stack.slices[index]),
        instance=instance,
        scale=lambda index: stack.slices[index].scale,
        next_best=functools.partial(
            _dicom_series, path, files, by_kind, series_uid, guard, unreadable, nth + 1
        ),
    )


def _no_such_series(path: Path, there: str) -> CtError:
    why = f"no axial CT series with that series_uid (there is {there})"
    return NoSuchSeries(f"{path} holds {why}; check --series_uid.", why)


def _volume_series(
    path: Path,
    files: Source,
    by_kind: _FilesByKind,
    guard: Guard,
    excluded: list[Excluded],
) -> Series:
    (name,) = by_kind.volumes
    excluded += [Excluded(picture, "a picture beside a volume") for picture in by_kind.pictures]
    why = guard(str(files.place(name)), "pixels")
    try:
        if why:
            raise volumes.VolumeError(why)
        with files.on_disk(name) as place:
            volume = volumes.Volume(place, by_kind.heads[name])
    except (ValueError, OSError) as error:
        why = str(error) if isinstance(error, ValueError) else "a volume that cannot be read"
        raise UnreadableSlice.of(
            files.place(name), why, f"give a CT volume, or another of {KINDS}"
        ) from error
    return _series(
        path,
        names=[f"{name}#{volume.file_index(i) + 1}" for i in range(volume.n_slices)],
        excluded=excluded,
        notes=volume.notes,
        from_feet=True,
        orientation=volume.orientation,
        read=volume.read,
        axes=volume.axes,
        stored_index=volume.file_index,
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


def _picture_series(
    path: Path, files: Source, names: list[str], guard: Guard, excluded: list[Excluded]
) -> Series:
    notes: tuple[str, ...] = ()
    if len(names) > 2 and len(set(map(_beginning, names))) == len(names):
        notes = (
            "names of pictures without a number in common: whether they are one series, and in "
            "which order, is not known",
        )
    turns: dict[int, Orientation] = {}

    def read(index: int) -> np.ndarray:
        file = files.place(names[index])
        try:
            why = guard(str(file), "pixels")
            if why:
                raise image_files.PictureError(why)
            data = files.read(names[index])
            image = image_files.read_picture(data)
            turns[index] = image_files.read_orientation(data)
            return image
        except OSError as error:
            why = f"a file that cannot be opened ({error.strerror})"
            raise UnreadableSlice.of(file, why, "check its permissions") from error
        except ValueError as error:
            raise UnreadableSlice.of(file, str(error), "give a grey CT slice") from error

    def orientation_of(index: int) -> Orientation:
        if index not in turns:
            read(index)
        return turns[index]

    return _series(
        path,
        names=names,
        excluded=excluded,
        notes=notes,
        from_feet=False,
        orientation=Orientation(),
        read=read,
        orientation_of=orientation_of,
    )


def _series(
    path: Path,
    *,
    names,
    excluded,
    notes,
    from_feet,
    orientation,
    read,
    instance=None,
    axes=None,
    stored_index=None,
    orientation_of=None,
    next_best=None,
    scale=None,
) -> Series:
    return Series(
        path=path,
        names=tuple(names),
        excluded=tuple(sorted(excluded, key=lambda item: natural(item.name))),
        notes=tuple(notes),
        from_feet=from_feet,
        is_single_image=False,
        is_renamed=False,
        orientation=orientation,
        _read=read,
        _instance=instance,
        axes=axes,
        _stored_index=stored_index,
        _turn_of=orientation_of,
        _next_best=next_best,
        _scale=scale,
    )
