"""DICOM CT: which files are slices of which stack, their order, and their HU (DESIGN 3.1)."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
import pydicom
import pydicom.errors
import pydicom.filereader
import pydicom.uid
from pydicom.pixels import pixel_array
from pydicom.tag import Tag

from drenet_jax.ct.files import HEAD_BYTES, Excluded
from drenet_jax.ct.turn import Turn, turn_of

# The HU of air outside the scanned field. Some scanners write -2000 or -3024 there.
PADDING_HU = -1024.0

# Larger claims are damage: the largest CT matrices have 2048 columns, the longest some 3000 frames.
_LARGEST_PX = 4096
_MOST_FRAMES = 20_000
# What a deflated file may unpack to.
_MOST_INFLATED_BYTES = 256 << 20

# From here on a slice counts as tilted, and as coronal or sagittal: cosines to the patient's axis.
_TILTED_BELOW = 0.999
_AXIAL_ABOVE = 0.7

_PLACE_MM = 1e-3

_HEADER_TAGS = {
    keyword: Tag(keyword)
    for keyword in (
        "SOPClassUID",
        "Modality",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SeriesNumber",
        "ImageType",
        "AccessionNumber",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "NumberOfFrames",
        "PhotometricInterpretation",
        "PixelRepresentation",
        "Rows",
        "Columns",
        "RescaleSlope",
        "RescaleIntercept",
    )
}
# The last of them: what comes after need not be parsed.
_LAST_TAG = 0x00281053
_IDENTIFYING_TAGS = ("StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber", "PatientID")

_DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_SECONDARY_CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"
_NO_SLICE_TYPES = {
    "LOCALIZER": "a localizer",
    "SCREEN SAVE": "a screen shot",
    "SCREENSAVE": "a screen shot",
    "DOSE_INFO": "a dose report",
}

# What pydicom and its decoders raise on damaged files.
ERRORS = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    pydicom.errors.BytesLengthException,
    pydicom.errors.InvalidDicomError,
)


@dataclasses.dataclass(frozen=True)
class DicomSlice:
    """What ordering and decoding need to know of a slice.

    Attributes:
      name: of its file.
      frame: its number from 0 in a file with several frames, or None.
      series_uid: of its series.
      series_number: as the scanner counts its series; '' if not given.
      stack: equal for the slices of one series with one size and orientation.
      place_mm: along the slice normal, growing from the feet to the head.
      cosine: of the angle between the slice normal and the patient's axis.
      turn: makes it upright.
      syntax: the UID of its transfer syntax; '' if not given.
      slope, intercept: HU = slope * stored value + intercept.
    """

    name: str
    frame: int | None
    series_uid: str
    series_number: str
    stack: tuple
    place_mm: float
    cosine: float
    turn: Turn
    syntax: str
    slope: float
    intercept: float


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM."""
    # Old files lack the preamble and begin with an element of group 0002 or 0008.
    return head[128:132] == b"DICM" or (
        head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    )


def read_header(
    name: str,
    head: bytes,
    open_file: Callable[[], BinaryIO],
    *,
    needs_place: bool,
    identifiers: set[str],
) -> list[DicomSlice] | Excluded:
    """The slices in a file: one, or as many as it has frames.

    Args:
      name: of the file.
      head: its first bytes.
      open_file: gives the whole file as a stream, where the head is too short.
      needs_place: whether a slice without position is of no use.
      identifiers: gets the values of tags that name the patient or the examination.

    Returns:
      The slices, or why there is none.
    """
    try:
        with _without_warnings():
            if _DIRECTORY_CLASS in head[:1024]:
                return Excluded(name, "a directory of DICOM files (DICOMDIR)")
            header = _header(head, open_file)
            values = {keyword: _values(header, keyword) for keyword in _HEADER_TAGS}
            values["TransferSyntaxUID"] = (_transfer_syntax(io.BytesIO(head)),)
            identifiers.update(_identifiers(values))
            why = _why_no_slice(values)
            if why:
                return Excluded(name, why)
            if values["NumberOfFrames"] and int(values["NumberOfFrames"][0]) > 1:
                return _frames(name, values, open_file)
            return [_slice(name, values, needs_place=needs_place)]
    except _NoSliceError as error:
        return Excluded(name, str(error))
    except ERRORS as error:
        # Not the error's text: it may quote a tag's value, and that may be a patient's name.
        why = f"a DICOM file whose header cannot be read ({type(error).__name__})"
        return Excluded(name, why)


class _NoSliceError(Exception):
    """Why a file is no slice."""


def _header(head: bytes, open_file: Callable[[], BinaryIO]) -> pydicom.Dataset:
    """The header from the file's first bytes, or from the file where they are too few."""
    # pydicom is faster in memory than in a file: it seeks and tells at every element.
    stream = io.BytesIO(head)
    is_whole_file = len(head) < HEAD_BYTES
    try:
        header = _parse(stream)
    except ERRORS:
        if is_whole_file:
            raise
        return _parse_file(open_file)
    is_complete = is_whole_file or stream.tell() < len(head)
    return header if is_complete else _parse_file(open_file)


def _parse_file(open_file: Callable[[], BinaryIO]) -> pydicom.Dataset:
    with open_file() as stream:
        return _parse(stream)


def _parse(stream: BinaryIO) -> pydicom.Dataset:
    def is_behind(tag: int, vr: str | None, length: int) -> bool:
        # Not `>`, which pydicom overloads: this is asked of every element of every file.
        return int.__gt__(tag, _LAST_TAG)

    syntax = _transfer_syntax(stream)
    if syntax == _DEFLATED:
        _check_inflated(stream)
    return pydicom.filereader.read_partial(
        stream, is_behind, force=True, specific_tags=list(_HEADER_TAGS.values())
    )


def _transfer_syntax(stream: BinaryIO) -> str:
    """Of the file, by a look into its first bytes; '' if it gives none."""
    start = stream.read(1024)
    stream.seek(0)
    at = start.find(b"\x02\x00\x10\x00UI")
    if at < 0:
        return ""
    length = int.from_bytes(start[at + 6 : at + 8], "little")
    return start[at + 8 : at + 8 + length].strip(b" \0").decode("latin-1")


def _check_inflated(stream: BinaryIO) -> None:
    """Refuses a deflated file that would unpack to more than memory should hold."""
    data = stream.read()
    stream.seek(0)
    # The first element of group 0002 gives the group's length, counted from behind itself.
    start = 144 + int.from_bytes(data[140:144], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(data[start:], _MOST_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise _NoSliceError(
            f"a DICOM file that unpacks to more than {_MOST_INFLATED_BYTES >> 20} MiB"
        )


def _values(header: pydicom.Dataset, keyword: str) -> tuple[str, ...]:
    """An element's values as text; none if it is missing or empty.

    Taken from the raw bytes: pydicom's conversions take longer than the reading of the file.
    """
    element = header.get_item(_HEADER_TAGS[keyword])
    value = None if element is None else element.value
    if not value:
        return ()
    if not isinstance(value, bytes):  # pydicom has converted it already
        return (str(value),)
    if keyword in ("Rows", "Columns", "PixelRepresentation"):
        is_little = header.original_encoding[1] is not False
        return (str(int.from_bytes(value[:2], "little" if is_little else "big")),)
    return tuple(part.strip(" \0") for part in value.decode("latin-1").split("\\"))


def _why_no_slice(values: Mapping[str, tuple[str, ...]]) -> str:
    """Why a file with this header holds no CT slice; '' if it does."""
    modality, photometric, sop_class = (
        "\\".join(values[tag]) for tag in ("Modality", "PhotometricInterpretation", "SOPClassUID")
    )
    if modality != "CT":
        known = modality if re.fullmatch("[A-Z]{2,16}", modality) else "not given"
        return f"a DICOM file that is no CT (modality {known})"
    if sop_class.startswith(_SECONDARY_CAPTURE_CLASS):
        return "a secondary capture"
    for image_type, why in _NO_SLICE_TYPES.items():
        if image_type in values["ImageType"]:
            return why
    if not values["Rows"] or not values["Columns"]:
        return "a DICOM file without an image"
    if max(int(values["Rows"][0]), int(values["Columns"][0])) > _LARGEST_PX:
        return f"a DICOM file with more than {_LARGEST_PX} rows or columns"
    # MONOCHROME1 says how to show a picture; HU are the same.
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return "a DICOM file that is no CT slice (its pixels are not grey)"
    return ""


def _slice(name: str, values: Mapping, *, needs_place: bool) -> DicomSlice:
    slope, intercept = _rescale(values)
    position, orientation = values["ImagePositionPatient"], values["ImageOrientationPatient"]
    if needs_place and not (position and orientation):
        raise _NoSliceError("a DICOM file without position and orientation: no known place")
    if not position or not orientation:
        position, orientation = ("0", "0", "0"), ("1", "0", "0", "0", "1", "0")
    return _placed(name, None, values, position, orientation, slope, intercept)


def _rescale(values: Mapping[str, tuple[str, ...]]) -> tuple[float, float]:
    slope = float(values["RescaleSlope"][0]) if values["RescaleSlope"] else 1.0
    if values["RescaleIntercept"]:
        intercept = float(values["RescaleIntercept"][0])
    # Signed values without a rescale are HU, as converters write them; unsigned ones are not.
    elif values["PixelRepresentation"] == ("1",) and not values["RescaleSlope"]:
        intercept = 0.0
    else:
        raise _NoSliceError("a DICOM file without RescaleIntercept: no HU")
    if not (np.isfinite(slope) and slope != 0 and np.isfinite(intercept)):
        raise _NoSliceError("a DICOM file with a RescaleSlope of 0 or not a number: no HU")
    return slope, intercept


def _placed(
    name: str,
    frame: int | None,
    values: Mapping[str, tuple[str, ...]],
    position: tuple[str, ...],
    orientation: tuple[str, ...],
    slope: float,
    intercept: float,
) -> DicomSlice:
    plane = _plane(orientation)
    # The normal may point to the feet; one direction for all keeps the order the same everywhere.
    sign = 1.0 if plane.normal[2] > 0 else -1.0
    place_mm = sign * sum(n * float(p) for n, p in zip(plane.normal, position, strict=True))
    if not np.isfinite(place_mm):
        raise _NoSliceError("a DICOM file without position and orientation: no known place")
    series_uid = "".join(values["SeriesInstanceUID"])
    return DicomSlice(
        name=name,
        frame=frame,
        series_uid=series_uid,
        series_number="".join(values["SeriesNumber"])[:12],
        stack=(series_uid, values["Rows"], values["Columns"], plane.cosines),
        place_mm=place_mm,
        cosine=abs(plane.normal[2]),
        turn=plane.turn,
        syntax="".join(values["TransferSyntaxUID"]),
        slope=slope,
        intercept=intercept,
    )


@dataclasses.dataclass(frozen=True)
class _Plane:
    """Of a slice: the cosines of its rows and columns, rounded, its normal, its turn."""

    cosines: tuple[float, ...]
    normal: tuple[float, ...]
    turn: Turn


@functools.lru_cache(maxsize=64)
def _plane(orientation: tuple[str, ...]) -> _Plane:
    cosines = np.array(orientation, float).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if not np.all(np.abs(lengths - 1) < 0.05) or abs(cosines[0] @ cosines[1]) > 0.05:
        raise _NoSliceError("a DICOM file whose orientation is none")
    normal = np.cross(*cosines)
    if abs(normal[2]) < _AXIAL_ABOVE:
        is_coronal = abs(normal[1]) > abs(normal[0])
        raise _NoSliceError(f"a {'coronal' if is_coronal else 'sagittal'} slice")
    return _Plane(
        tuple(np.round(cosines, 2).ravel().tolist()), tuple(normal.tolist()), turn_of(*cosines)
    )


def _identifiers(values: Mapping[str, tuple[str, ...]]) -> list[str]:
    parts = [part for tag in _IDENTIFYING_TAGS for part in values[tag] if len(part) >= 4]
    name = "^".join(values["PatientName"])
    parts += [part for part in re.split(r"[\^= ,]+", name) if len(part) >= 3]
    for date in values["PatientBirthDate"]:
        if len(date) == 8:
            year, month, day = date[:4], date[4:6], date[6:]
            parts += [date, f"{year}-{month}-{day}", f"{day}{month}{year}", f"{day}.{month}.{year}"]
    return [part.casefold() for part in parts]


def names_identify(names: Iterable[str], identifiers: Iterable[str]) -> bool:
    """Whether names of files hold an identifier of the patient, or a UID of any kind."""
    text = "\n".join(names).casefold()
    return any(one in text for one in identifiers) or bool(_UID.search(text))


_UID = re.compile(r"\d+(?:\.\d+){5,}")


# A file with several frames


def _frames(name: str, values: dict, open_file: Callable[[], BinaryIO]) -> list[DicomSlice]:
    """The frames of an enhanced CT, which has the place of each in sequences."""
    n_frames = int(values["NumberOfFrames"][0])
    if n_frames > _MOST_FRAMES:
        raise _NoSliceError(f"a DICOM file with more than {_MOST_FRAMES} frames")
    with open_file() as stream:
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = (dataset.get("SharedFunctionalGroupsSequence") or (pydicom.Dataset(),))[0]
    if len(own) != n_frames:
        raise _NoSliceError("a DICOM file with several frames, but without the place of each")

    def element(frame: pydicom.Dataset, group: str, tag: str) -> tuple[str, ...]:
        for source in (frame, shared):
            for item in source.get(group) or ():
                value = item.get(tag)
                if value is not None and value != "":
                    several = isinstance(value, Sequence) and not isinstance(value, str)
                    return tuple(str(one) for one in (value if several else [value]))
        return ()

    slices = []
    for index, frame in enumerate(own):
        found = {
            **values,
            "RescaleSlope": element(frame, "PixelValueTransformationSequence", "RescaleSlope"),
            "RescaleIntercept": element(
                frame, "PixelValueTransformationSequence", "RescaleIntercept"
            ),
        }
        position = element(frame, "PlanePositionSequence", "ImagePositionPatient")
        orientation = element(frame, "PlaneOrientationSequence", "ImageOrientationPatient")
        if not position or not orientation:
            raise _NoSliceError("a DICOM file with several frames, but without the place of each")
        slices.append(_placed(name, index, found, position, orientation, *_rescale(found)))
    return slices


# Order


@dataclasses.dataclass(frozen=True)
class Ordered:
    """The slices of the chosen stack from the feet to the head, and the rest."""

    slices: tuple[DicomSlice, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]


def order(slices: Sequence[DicomSlice], series_uid: str) -> Ordered | str:
    """Takes the stack with most slices and orders it by place along the slice normal.

    Args:
      slices: of all files.
      series_uid: takes the largest stack of this series; '': of all.

    Returns:
      The stack, or, where there is no such series, which ones there are.
    """
    wanted = [one for one in slices if not series_uid or one.series_uid == series_uid]
    if not wanted:
        return _series_in_words(slices)
    stack, _ = collections.Counter(one.stack for one in wanted).most_common(1)[0]
    taken = sorted((one for one in slices if one.stack == stack), key=lambda one: one.place_mm)
    excluded = []
    for one in slices:
        if one.stack == stack:
            continue
        if one.series_uid == taken[0].series_uid:
            why = "a slice of another size or orientation than the rest of its series"
        else:
            why = "of another series than the one that is taken"
        excluded.append(Excluded(slice_name(one), why))
    kept: list[DicomSlice] = []
    for one in taken:
        if kept and one.place_mm - kept[-1].place_mm < _PLACE_MM:
            why = f"at the same place as another slice: {slice_name(kept[-1])}"
            excluded.append(Excluded(slice_name(one), why))
        else:
            kept.append(one)
    others = [one for one in slices if one.series_uid != taken[0].series_uid]
    notes = list(_notes_on_places(kept))
    if others:
        notes.append(f"left out beside the series taken: {_series_in_words(others)}")
    return Ordered(tuple(kept), tuple(excluded), tuple(notes))


def slice_name(one: DicomSlice) -> str:
    return one.name if one.frame is None else f"{one.name}#{one.frame + 1}"


def _series_in_words(slices: Sequence[DicomSlice]) -> str:
    """Series by number and size: a UID would lead to the patient."""
    counts = collections.Counter((one.series_uid, one.series_number) for one in slices)
    return ", ".join(
        f"series {number or 'without a number'} of {count} slice{'s' if count > 1 else ''}"
        for (_, number), count in counts.most_common()
    )


def _notes_on_places(slices: Sequence[DicomSlice]) -> Iterator[str]:
    if slices[0].cosine < _TILTED_BELOW:
        yield f"the gantry is tilted by {np.degrees(np.arccos(slices[0].cosine)):.0f} degrees"
    steps_mm = np.diff([one.place_mm for one in slices])
    if len(steps_mm) < 2:
        return
    usual_mm = float(np.median(steps_mm))
    missing = int(np.sum(np.maximum(np.rint(steps_mm / usual_mm) - 1, 0)))
    if missing:
        first = int(np.argmax(np.rint(steps_mm / usual_mm) > 1))
        yield (
            f"{missing} slice{'s' if missing > 1 else ''} missing (spacing {usual_mm:.1f} mm, up "
            f"to {steps_mm.max():.1f} mm; first behind slice {first + 1} of {len(slices)})"
        )
    elif np.ptp(steps_mm) > max(0.1, 0.1 * usual_mm):
        yield f"uneven spacing of slices: {steps_mm.min():.1f} to {steps_mm.max():.1f} mm"


# Pixels


def read_dataset(stream: BinaryIO) -> pydicom.Dataset:
    """A whole file with several frames, which would take long to parse for each of them."""
    with _without_warnings():
        return pydicom.dcmread(stream, force=True)


def read_hu(one: DicomSlice, source: BinaryIO | pydicom.Dataset) -> np.ndarray:
    """Decodes a slice.

    Args:
      one: the slice.
      source: its file, seekable, or what `read_dataset` made of it.

    Returns:
      float32 [H, W] in HU as stored, at least -1024 (padding is air).

    Raises:
      One of `ERRORS`: it cannot be decoded; `why_undecodable` has the reason.
    """
    with _without_warnings():
        if not isinstance(source, pydicom.Dataset) and one.syntax == _DEFLATED:
            _check_inflated(source)
            source = pydicom.dcmread(source)
        if isinstance(source, pydicom.Dataset):
            dataset = source
            stored = pixel_array(source, index=one.frame or 0, correct_unused_bits=True)
        else:
            dataset = pydicom.Dataset()
            stored = pixel_array(source, ds_out=dataset, index=0, correct_unused_bits=True)
        padding = dataset.get("PixelPaddingValue")
        limit = dataset.get("PixelPaddingRangeLimit", padding)
    if stored.ndim != 2:
        raise ValueError("not one grey picture")
    hu = np.multiply(stored, one.slope, dtype=np.float32)
    hu += np.float32(one.intercept)
    if padding is not None:
        low, high = sorted((int(padding), int(limit)))
        hu[(stored >= low) & (stored <= high)] = PADDING_HU
    return np.maximum(hu, PADDING_HU, out=hu)


def why_undecodable(error: BaseException, transfer_syntax: str) -> str:
    """In words, without the error's text, which may quote a tag's value."""
    syntax = pydicom.uid.UID(transfer_syntax)
    if isinstance(error, MemoryError):
        return "a DICOM file that needs more memory than it may have"
    if syntax.is_transfer_syntax and syntax.is_compressed:
        return f"a DICOM file that cannot be decoded (compressed as {syntax.name})"
    return f"a DICOM file that cannot be decoded ({type(error).__name__})"


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps pydicom from warning of each oddity of each file: what matters raises, and is told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
