"""DICOM headers: which files are CT slices, where they lie, and how they become HU."""

from __future__ import annotations

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
from pydicom.tag import Tag

from drenet_jax.ct.files import HEAD_BYTES, Excluded
from drenet_jax.ct.turn import Turn, turn_of

# Larger claims are damage: the largest CT matrices have 2048 columns, the longest some 3000 frames.
_LARGEST_PX = 4096
_MOST_FRAMES = 20_000
# What a deflated file may unpack to.
_MOST_INFLATED_BYTES = 256 << 20

# A slice whose normal is further from the patient's axis is coronal or sagittal; a cosine.
_AXIAL_ABOVE = 0.7

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
# Those that are numbers of two bytes.
_SHORTS = ("Rows", "Columns", "PixelRepresentation")
_SHORT_TAGS = tuple(_HEADER_TAGS[keyword] for keyword in _SHORTS)
# The last of them: what comes after need not be parsed.
_LAST_TAG = 0x00281053
_IDENTIFYING_TAGS = ("StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber", "PatientID")

_DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
_PLAIN_SYNTAXES = {
    uid for uid in pydicom.uid.AllTransferSyntaxes if uid.is_little_endian and not uid.is_deflated
}
# Preamble, magic, and the element that gives the length of what is left of group 0002.
_META_START = 144
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
      patient: equal for files of one patient.
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
    patient: tuple
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
        with without_warnings():
            if _DIRECTORY_CLASS in head[:1024]:
                return Excluded(name, "a directory of DICOM files (DICOMDIR)")
            values = _values(_elements(head, open_file))
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


def _elements(head: bytes, open_file: Callable[[], BinaryIO]) -> dict[str, bytes | object]:
    """The header's elements by keyword, raw, from the file's first bytes, or from the file where
    they are too few."""
    # pydicom is faster in memory than in a file: it seeks and tells at every element.
    stream = io.BytesIO(head)
    is_whole_file = len(head) < HEAD_BYTES
    try:
        elements = _parse(stream)
    except ERRORS:
        if is_whole_file:
            raise
        return _parse_file(open_file)
    is_complete = is_whole_file or stream.tell() < len(head)
    return elements if is_complete else _parse_file(open_file)


def _parse_file(open_file: Callable[[], BinaryIO]) -> dict[str, bytes | object]:
    with open_file() as stream:
        return _parse(stream)


def _parse(stream: BinaryIO) -> dict[str, bytes | object]:
    def is_behind(tag: int, vr: str | None, length: int) -> bool:
        # Not `>`, which pydicom overloads: this is asked of every element of every file.
        return int.__gt__(tag, _LAST_TAG)

    syntax = _transfer_syntax(stream)
    tags = list(_HEADER_TAGS.values())
    is_implicit = syntax == pydicom.uid.ImplicitVRLittleEndian
    if syntax in _PLAIN_SYNTAXES and _begins_well(stream, is_implicit):
        # Most files by far; without the data set that pydicom builds of a file it takes half.
        found = pydicom.filereader.data_element_generator(
            stream, is_implicit, True, stop_when=is_behind, specific_tags=tags
        )
        raw = {element.tag: element.value for element in found}
    else:
        if syntax == DEFLATED:
            check_inflated(stream)
        header = pydicom.filereader.read_partial(stream, is_behind, force=True, specific_tags=tags)
        raw = {tag: element.value for tag, element in header.items()}
        if header.original_encoding[1] is False:
            raw |= {tag: raw[tag][1::-1] for tag in _SHORT_TAGS if raw.get(tag)}
    return {keyword: raw.get(tag) for keyword, tag in _HEADER_TAGS.items()}


def _begins_well(stream: BinaryIO, is_implicit: bool) -> bool:
    """Moves behind group 0002 if group 0008 follows in the encoding that is claimed."""
    start = stream.read(_META_START)
    stream.seek(_META_START + int.from_bytes(start[-4:], "little"))
    first = stream.read(6)
    stream.seek(-len(first), io.SEEK_CUR)
    is_good = first[:2] == b"\x08\x00" and first[4:6].isupper() != is_implicit
    if not is_good:
        stream.seek(0)
    return is_good


def _transfer_syntax(stream: BinaryIO) -> str:
    """Of the file, by a look into its first bytes; '' if it gives none."""
    start = stream.read(1024)
    stream.seek(0)
    at = start.find(b"\x02\x00\x10\x00UI")
    if at < 0:
        return ""
    length = int.from_bytes(start[at + 6 : at + 8], "little")
    return start[at + 8 : at + 8 + length].strip(b" \0").decode("latin-1")


def check_inflated(stream: BinaryIO) -> None:
    """Refuses a deflated file that would unpack to more than memory should hold."""
    data = stream.read()
    stream.seek(0)
    # The first element of group 0002 gives the group's length, counted from behind itself.
    start = _META_START + int.from_bytes(data[:_META_START][-4:], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(data[start:], _MOST_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise _NoSliceError(
            f"a DICOM file that unpacks to more than {_MOST_INFLATED_BYTES >> 20} MiB"
        )


def _values(elements: Mapping[str, bytes | object]) -> dict[str, tuple[str, ...]]:
    """The elements' values as text; none for one that is missing or empty.

    Taken from the raw bytes: pydicom's conversions take longer than the reading of the file.
    """
    values = {}
    for keyword, value in elements.items():
        if not value:
            values[keyword] = ()
        elif not isinstance(value, bytes):  # pydicom has converted it already
            values[keyword] = (str(value),)
        elif keyword in _SHORTS:
            values[keyword] = (str(int.from_bytes(value[:2], "little")),)
        else:
            text = value.decode("latin-1")
            values[keyword] = tuple(part.strip(" \0") for part in text.split("\\"))
    return values


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
    number = "".join(values["SeriesNumber"])
    return DicomSlice(
        name=name,
        frame=frame,
        series_uid=series_uid,
        series_number=number if number.isdecimal() and len(number) <= 12 else "",
        patient=(values["PatientID"], values["PatientName"]),
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

    slices = []
    for index, frame in enumerate(own):
        found = {
            **values,
            "RescaleSlope": frame_element(
                frame, shared, "PixelValueTransformationSequence", "RescaleSlope"
            ),
            "RescaleIntercept": frame_element(
                frame, shared, "PixelValueTransformationSequence", "RescaleIntercept"
            ),
        }
        position = frame_element(frame, shared, "PlanePositionSequence", "ImagePositionPatient")
        orientation = frame_element(
            frame, shared, "PlaneOrientationSequence", "ImageOrientationPatient"
        )
        if not position or not orientation:
            raise _NoSliceError("a DICOM file with several frames, but without the place of each")
        slices.append(_placed(name, index, found, position, orientation, *_rescale(found)))
    return slices


def frame_element(
    frame: pydicom.Dataset, shared: pydicom.Dataset, group: str, tag: str
) -> tuple[str, ...]:
    """An element of a frame's functional groups, or of those that all frames share, as text; none
    if it is missing or empty."""
    for source in (frame, shared):
        for item in source.get(group) or ():
            value = item.get(tag)
            if value is not None and value != "":
                several = isinstance(value, Sequence) and not isinstance(value, str)
                return tuple(str(one) for one in (value if several else [value]))
    return ()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps pydicom from warning of each oddity of each file: what matters raises, and is told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
