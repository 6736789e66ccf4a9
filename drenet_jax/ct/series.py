"""One person's slices on disk, in anatomical order: a DICOM series, or PNG/JPEG pictures."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pydicom.errors

from drenet_jax.errors import InputError

# The HU of air outside the scanned field. Some scanners write -2000 or -3024 there.
PADDING_HU = -1024.0

# How much of each file is read at first: most headers are shorter.
_HEAD_BYTES = 1 << 16

_HEADER_TAGS = (
    "Modality",
    "SeriesInstanceUID",
    "ImageType",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "RescaleSlope",
    "RescaleIntercept",
)

# A pixel is coloured if its channels lie further apart than this: JPEG blurs colour, and scans of
# print are tinted.
_GREY_SPREAD = 40
_COLOURED_SHARE = 0.1

# What pydicom and its decoders raise on damaged files.
_DICOM_ERRORS = (
    AttributeError,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    pydicom.errors.InvalidDicomError,
)


@dataclasses.dataclass(frozen=True)
class Excluded:
    """A file that was left out, and why.

    Attributes:
      name: the file's name, relative to the series' folder.
      why: the reason, a few words; what concerns this file alone comes after a colon.
    """

    name: str
    why: str


class UnreadableSlice(InputError):
    """A file that is no CT slice or cannot be decoded; `why` is the reason without the path."""

    def __init__(self, file: Path, why: str, mend: str):
        super().__init__(f"{file} is {why}; {mend}.")
        self.why = why


class NoSlices(InputError):
    """A folder without any CT slice; `excluded` says of each file why it is none."""

    def __init__(self, folder: Path, excluded: Sequence[Excluded]):
        first = excluded[0]
        super().__init__(
            f"{folder} holds no CT slice ({first.name}: {first.why}); "
            "name a folder with DICOM or PNG/JPEG slices."
        )
        self.excluded = tuple(excluded)


@dataclasses.dataclass(frozen=True)
class Series:
    """The slices of one series, in order; pixels are read one slice at a time.

    Attributes:
      path: the folder, or the single file.
      names: the slices' file names relative to the folder, from the feet to the head for DICOM, in
        natural order for pictures. Bytes that are not UTF-8 are written as escapes.
      files: the slices' files.
      excluded: the files in the folder that are no slices of this series.
      is_hu: True for DICOM, whose slices are in HU; pictures are lung-windowed 8 bits already.
    """

    path: Path
    names: tuple[str, ...]
    files: tuple[Path, ...]
    excluded: tuple[Excluded, ...]
    is_hu: bool

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> np.ndarray:
        """Decodes one slice.

        Args:
          index: its place in `names`.

        Returns:
          float32 [H, W] in HU, at least -1024 (padding is air), or uint8 [H, W].

        Raises:
          UnreadableSlice: the file cannot be decoded, or is a colour picture.
        """
        file = self.files[index]
        return _read_hu(file) if self.is_hu else _read_picture(file)


def open_series(path: Path) -> Series:
    """Finds the slices under `path` and orders them, reading headers only.

    DICOM slices are ordered by ImagePositionPatient along the normal of the image plane; file names
    and InstanceNumber play no part (DESIGN 3.1). If a folder holds several series, the one with
    most slices is taken. Pictures are ordered by name, with 2 before 10.

    Args:
      path: a folder of DICOM files (nested or without extensions, too), a folder of PNG/JPEG
        pictures, or a single file of either kind.

    Raises:
      InputError: `path` does not exist or holds no CT slice (UnreadableSlice if it is a file).
    """
    path = Path(path)
    # os.path's, which take a path that may not be looked at for one that is not there.
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist or may not be read; check the path.")
    excluded: list[Excluded] = []
    if path.is_dir():
        files, excluded = _files_below(path)
        if not files and not excluded:
            raise InputError(f"{path} is an empty folder; name one with DICOM or PNG/JPEG slices.")
    else:
        files = {printable(path.name): path}

    headers: list[_Header] = []
    pictures: list[str] = []
    for name, file in files.items():
        try:
            head = _read_head(file)
        except OSError as error:
            excluded.append(Excluded(name, f"a file that cannot be opened ({error.strerror})"))
            continue
        if _is_picture(head):
            pictures.append(name)
        elif _is_dicom(head):
            header = _read_header(name, file, head, needs_place=len(files) > 1)
            (headers if isinstance(header, _Header) else excluded).append(header)
        else:
            excluded.append(Excluded(name, _what_it_is(file, head)))

    if headers:
        excluded += [Excluded(name, "a picture beside a DICOM series") for name in pictures]
        names, others = _order(headers)
        excluded += others
    elif pictures:
        names = pictures
    elif path.is_dir():
        raise NoSlices(path, excluded)
    else:
        raise UnreadableSlice(path, excluded[0].why, "name a CT slice in DICOM, PNG or JPEG")
    return Series(
        path=path,
        names=tuple(names),
        files=tuple(files[name] for name in names),
        excluded=tuple(sorted(excluded, key=lambda one: _natural(one.name))),
        is_hu=bool(headers),
    )


def require_images(path: Path) -> None:
    """Looks for a file that might be a slice, and stops at the first: a cheap check beforehand.

    Args:
      path: as for `open_series`.

    Raises:
      InputError: `path` does not exist, or no file there begins like DICOM, PNG or JPEG.
    """
    if os.path.exists(path):
        files = _files_below(path)[0].values() if path.is_dir() else [path]
        for file in files:
            with contextlib.suppress(OSError):
                head = _read_head(file)
                if _is_picture(head) or _is_dicom(head):
                    return
    open_series(path)  # which says what is wrong


def _read_head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _is_picture(head: bytes) -> bool:
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def printable(name: str) -> str:
    """A file's name with bytes that are not UTF-8, which no text file could hold, as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _files_below(folder: Path) -> tuple[dict[str, Path], list[Excluded]]:
    """All files below a folder by relative name, in natural order; and folders not to be read."""
    found: list[Path] = []
    unreadable: list[Excluded] = []
    seen: set[tuple[int, int]] = set()

    def tell(error: OSError) -> None:
        name = printable(os.path.relpath(error.filename, folder))
        unreadable.append(Excluded(name, f"a folder that cannot be opened ({error.strerror})"))

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=tell):
        status = os.stat(parent)
        # A link to a folder above would be followed round and round.
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found += [Path(parent, name) for name in names]
    by_name = {printable(file.relative_to(folder).as_posix()): file for file in found}
    return {name: by_name[name] for name in sorted(by_name, key=_natural)}, unreadable


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key under which 2 comes before 10."""
    return [
        (not part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.split(r"([0-9]+)", name)
        if part
    ]


def _is_dicom(head: bytes) -> bool:
    # Old files lack the preamble and begin with an element of group 0002 or 0008.
    return head[128:132] == b"DICM" or (
        head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    )


def _what_it_is(file: Path, head: bytes) -> str:
    if not head:
        return "an empty file"
    if file.suffix.lower() in (".dcm", ".dicom", ".ima"):
        return f"no DICOM file in spite of its name ({file.suffix})"
    return "neither a DICOM file nor a PNG or JPEG picture"


@dataclasses.dataclass(frozen=True)
class _Header:
    """What ordering needs of a DICOM slice; `place_mm` grows from the feet to the head."""

    name: str
    series: tuple
    place_mm: float


def _read_header(name: str, file: Path, head: bytes, *, needs_place: bool) -> _Header | Excluded:
    try:
        header = _dicom_header(file, head)
        values = {tag: _values(header, tag) for tag in _HEADER_TAGS}
        return _checked_header(name, values, needs_place=needs_place)
    except _DICOM_ERRORS as error:
        return Excluded(name, f"a DICOM file whose header cannot be read ({_one_line(error)})")


def _dicom_header(file: Path, head: bytes) -> pydicom.Dataset:
    """The header from the file's first bytes, or from the file where they are too few."""

    def read(source: Path | io.BytesIO) -> pydicom.Dataset:
        tags = list(_HEADER_TAGS)
        with _without_warnings():
            return pydicom.dcmread(source, stop_before_pixels=True, specific_tags=tags, force=True)

    # pydicom is faster in memory than in a file: it seeks and tells at every element.
    stream = io.BytesIO(head)
    is_whole_file = len(head) < _HEAD_BYTES
    try:
        header = read(stream)
    except _DICOM_ERRORS:
        if is_whole_file:
            raise
        return read(file)
    reached_pixels = stream.tell() < len(head)
    return header if is_whole_file or reached_pixels else read(file)


def _values(header: pydicom.Dataset, tag: str) -> tuple[str, ...]:
    """An element's values as text; none if it is missing or empty.

    Taken from the raw bytes: pydicom's conversions take longer than the reading of the file.
    """
    element = header.get_item(tag)
    if element is None or not element.value:
        return ()
    return tuple(part.strip(" \0") for part in element.value.decode("latin-1").split("\\"))


def _checked_header(
    name: str, values: dict[str, tuple[str, ...]], *, needs_place: bool
) -> _Header | Excluded:
    modality, photometric = (
        "\\".join(values[tag]) for tag in ("Modality", "PhotometricInterpretation")
    )
    if modality != "CT":
        return Excluded(name, f"a DICOM file that is no CT (modality {modality or 'not given'})")
    if not values["Rows"] or not values["Columns"]:
        return Excluded(name, "a DICOM file without an image")
    if values["NumberOfFrames"] and int(values["NumberOfFrames"][0]) > 1:
        return Excluded(name, "a DICOM file with several frames; write one file a slice")
    if "LOCALIZER" in values["ImageType"]:
        return Excluded(name, "a localizer")
    if photometric != "MONOCHROME2":
        return Excluded(name, f"a DICOM file that is no CT slice ({photometric or 'no'} pixels)")
    if not values["RescaleSlope"] or not values["RescaleIntercept"]:
        return Excluded(name, "a DICOM file without RescaleSlope and RescaleIntercept: no HU")
    position, orientation = values["ImagePositionPatient"], values["ImageOrientationPatient"]
    if not position or not orientation:
        if needs_place:
            return Excluded(name, "a DICOM file without position and orientation: no known place")
        return _Header(name, (), 0.0)

    cosines, normal = _cosines_and_normal(orientation)
    if abs(normal[2]) < 0.7:
        return Excluded(name, "a slice that is not axial")
    # The normal may point to the feet; one direction for all keeps the order the same everywhere.
    place_mm = sum(n * float(p) for n, p in zip(normal, position, strict=True))
    series = (values["SeriesInstanceUID"], values["Rows"], values["Columns"], cosines)
    return _Header(name, series, place_mm if normal[2] > 0 else -place_mm)


@functools.lru_cache(maxsize=16)
def _cosines_and_normal(
    orientation: tuple[str, ...],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The direction cosines of rows and columns, rounded, and the normal of the image plane."""
    cosines = np.array(orientation, float).reshape(2, 3)
    return tuple(np.round(cosines, 2).ravel().tolist()), tuple(np.cross(*cosines).tolist())


def _order(headers: Sequence[_Header]) -> tuple[list[str], list[Excluded]]:
    """The names of the largest series by place, and what is no slice of it."""
    series, _ = collections.Counter(header.series for header in headers).most_common(1)[0]
    excluded = []
    slices: list[_Header] = []
    for header in headers:
        if header.series == series:
            slices.append(header)
        elif header.series[:1] == series[:1]:
            why = "a slice of another size or orientation than the rest of its series"
            excluded.append(Excluded(header.name, why))
        else:
            why = "of another series than the largest, which is taken"
            excluded.append(Excluded(header.name, why))
    slices.sort(key=lambda header: header.place_mm)
    names: list[str] = []
    last_mm = None
    for header in slices:
        if last_mm is not None and header.place_mm - last_mm < 1e-3:
            excluded.append(Excluded(header.name, f"at the same place as {names[-1]}"))
            continue
        names.append(header.name)
        last_mm = header.place_mm
    return names, excluded


def _read_hu(file: Path) -> np.ndarray:
    try:
        with _without_warnings():
            dataset = pydicom.dcmread(file, force=True)
            stored = dataset.pixel_array
        hu = np.multiply(stored, dataset.RescaleSlope, dtype=np.float32)
        hu += np.float32(dataset.RescaleIntercept)
        padding = dataset.get("PixelPaddingValue")
        if padding is not None:
            limit = dataset.get("PixelPaddingRangeLimit", padding)
            low, high = sorted((int(padding), int(limit)))
            hu[(stored >= low) & (stored <= high)] = PADDING_HU
    except _DICOM_ERRORS as error:
        raise UnreadableSlice(
            file, f"a DICOM file that cannot be decoded ({_one_line(error)})", "export it again"
        ) from error
    return np.maximum(hu, PADDING_HU, out=hu)


def _read_picture(file: Path) -> np.ndarray:
    try:
        # imdecode rather than imread, which cannot open every file name on every system.
        data = file.read_bytes()
    except OSError as error:
        raise UnreadableSlice(
            file, f"a file that cannot be opened ({error.strerror})", "check its permissions"
        ) from error
    # A JPEG without its end marker was cut off; OpenCV would make up the rest.
    cut_off = data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < 0
    image = None if cut_off else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UnreadableSlice(file, "a picture that cannot be decoded", "export it again")
    if image.dtype != np.uint8:
        raise UnreadableSlice(
            file,
            f"a picture with {8 * image.dtype.itemsize} bits a pixel, neither HU nor windowed",
            "give DICOM, or a lung-windowed picture of 8 bits",
        )
    if image.ndim == 2:
        return image
    colour = image[..., :3]
    # Arrows and letters of a reader are coloured, too, but small.
    spread = colour.max(axis=2) - colour.min(axis=2)
    if np.mean(spread > _GREY_SPREAD) > _COLOURED_SHARE:
        raise UnreadableSlice(file, "a colour picture, no CT slice", "give a grey CT slice")
    return cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps pydicom from warning of each oddity of each file: what matters raises, and is told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__
