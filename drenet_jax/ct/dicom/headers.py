"""DICOM headers: which files are CT slices, where they lie, and how they become HU."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pydicom
from pydicom.tag import Tag
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from drenet_jax.ct.dicom.elements import (
    ERRORS,
    NoSliceError,
    as_stream,
    read_header_elements,
    without_warnings,
)
from drenet_jax.ct.orientation import Orientation, orientation_of
from drenet_jax.ct.sources import Excluded

# Larger claims are damage: the largest CT matrices have 2048 columns, the longest some 3000 frames.
_LARGEST_PX = 4096
_MOST_FRAMES = 20_000

# A slice whose normal is further from the patient's axis is coronal or sagittal; a cosine.
_AXIAL_ABOVE = 0.7

# What may distinguish slices of one stack from slices of another, beside their geometry.
PATIENT_TAGS = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
STUDY_TAGS = ("StudyInstanceUID", "StudyDate")
SERIES_TAGS = ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription")
_SEPARATING_TAGS = (
    *PATIENT_TAGS,
    *STUDY_TAGS,
    *SERIES_TAGS,
    "FrameOfReferenceUID",
    "ImageType",
    "ConvolutionKernel",
    "SliceThickness",
    "KVP",
    "ContrastBolusAgent",
    "AcquisitionNumber",
    "AcquisitionDate",
    "AcquisitionTime",
    "TemporalPositionIdentifier",
)
_OTHER_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "InstanceNumber",
    "AccessionNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "PixelSpacing",
    "Rows",
    "Columns",
    "BitsStored",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
)
# What slices of one stack have in common.
_ATTRIBUTES = (*_SEPARATING_TAGS, "Rows", "Columns", "PixelSpacing", "BitsStored")
_TAGS = {keyword: int(Tag(keyword)) for keyword in (*_SEPARATING_TAGS, *_OTHER_TAGS)}
_MODALITY_LUT = int(Tag("ModalityLUTSequence"))
_READ_TAGS = (*_TAGS.values(), _MODALITY_LUT)
# Those that are numbers of two bytes.
_SHORTS = ("Rows", "Columns", "PixelRepresentation", "BitsStored")
_IDENTIFYING_TAGS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AccessionNumber",
    "PatientID",
)

# The values of elements as text, by keyword; none for one that is missing or empty.
_Values = Mapping[str, tuple[str, ...]]

_DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE_CLASS = "1.2.840.10008.5.1.4.1.1.7"
_NO_SLICE_TYPES = {
    "LOCALIZER": "a localizer",
    "SCREEN SAVE": "a screen shot",
    "SCREENSAVE": "a screen shot",
    "DOSE_INFO": "a dose report",
}
# Hounsfield units; and "unspecified", which ITK writes for CT.
_HU_TYPES = ("", "HU", "US", "UNSPECIFIED")

_ENHANCED_CLASSES = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
CT_CLASSES = (CTImageStorage, *_ENHANCED_CLASSES)

NO_PLACE = "a DICOM file without position and orientation: no known place"


@dataclasses.dataclass(frozen=True)
class DicomSlice:
    """What grouping, ordering and decoding need to know of a slice.

    Attributes:
      name: of its file.
      frame: its number from 0 in a file with several frames, or None.
      series_uid: of its series.
      series_number: as the scanner counts its series; '' if not given.
      instance_number: as the scanner counts the slices of a series; None if not given.
      sop_instance_uid: of its file; '' if not given.
      attributes: by keyword: what may distinguish stacks; missing ones are empty.
      position_mm: [3], of the first pixel in the patient; None if not given.
      cosines: [6], of the image's rows and columns.
      orientation: turns it to columns to the left, rows to the back.
      syntax: UID of the transfer syntax in which the file is encoded.
      slope, intercept: HU = slope * stored value + intercept.
    """

    name: str
    frame: int | None
    series_uid: str
    series_number: str
    instance_number: int | None
    sop_instance_uid: str
    attributes: _Values
    position_mm: tuple[float, float, float] | None
    cosines: tuple[float, ...]
    orientation: Orientation
    syntax: str
    slope: float
    intercept: float

    @property
    def scale(self) -> tuple:
        """Equal for slices whose stored values become HU in the same way."""
        return (self.slope, self.intercept, self.attributes.get("BitsStored"))

    @property
    def label(self) -> str:
        """The file's name, with the number of the frame, from 1, in a file with several."""
        return self.name if self.frame is None else f"{self.name}#{self.frame + 1}"


def read_header(
    name: str, head: bytes, read_file: Callable[[], bytes], *, identifiers: set[str]
) -> tuple[list[DicomSlice], list[Excluded]]:
    """The slices in a file: one, or as many as it has axial frames; and what is none, with why.

    Args:
      name: of the file.
      head: its first bytes.
      read_file: gives the whole file, where the head is too short.
      identifiers: gets the values of tags that name the patient or the examination.
    """
    try:
        with without_warnings():
            if _DIRECTORY_CLASS in head[:1024]:
                return [], [Excluded(name, "a directory of DICOM files (DICOMDIR)")]
            raw, is_big_endian, syntax = read_header_elements(head, read_file, _READ_TAGS)
            values = {
                keyword: _texts(keyword, raw.get(tag), is_big_endian)
                for keyword, tag in _TAGS.items()
            }
            identifiers.update(_identifiers(values))
            why = _why_no_slice(values)
            if why:
                return [], [Excluded(name, why)]
            if raw.get(_MODALITY_LUT):
                raise NoSliceError("a DICOM file with a modality lookup table: no HU")
            n_frames = int(float((values["NumberOfFrames"] or ("1",))[0]))
            if n_frames > 1 or "".join(values["SOPClassUID"]) in _ENHANCED_CLASSES:
                return _frames(name, n_frames, values, syntax, read_file)
            return [_slice(name, None, values, {}, syntax)], []
    except NoSliceError as error:
        return [], [Excluded(name, str(error))]
    except ERRORS as error:
        # Not the error's text: it may quote a tag's value, and that may be a patient's name.
        why = f"a DICOM file whose header cannot be read ({type(error).__name__})"
        return [], [Excluded(name, why)]


@functools.lru_cache(maxsize=1024)  # most values are the same in all files of a series
def _texts(keyword: str, value: bytes | object, is_big_endian: bool) -> tuple[str, ...]:
    """An element's values, from the raw bytes: pydicom's conversions take longer than the reading
    of the file, and fail for odd values of elements that are not needed."""
    if not value:
        return ()
    if not isinstance(value, bytes):  # pydicom has converted it already
        return (str(value),)
    if keyword in _SHORTS:
        return (str(int.from_bytes(value[:2], "big" if is_big_endian else "little")),)
    parts = tuple(part.strip(" \0") for part in value.decode("latin-1").split("\\"))
    return parts if any(parts) else ()


def _why_no_slice(values: _Values) -> str:
    """Why a file holds no CT slice; '' if it does."""
    modality, rows, columns = values["Modality"], values["Rows"], values["Columns"]
    sop_class = "".join(values["SOPClassUID"])
    # A header that was cut off lacks the rows, too.
    is_ct_class = sop_class in CT_CLASSES and rows
    if modality != ("CT",) and (modality or not is_ct_class):
        text = "".join(modality)
        known = text if re.fullmatch("[A-Z]{2,16}", text) else "not given"
        return f"a DICOM file that is no CT (modality {known})"
    if sop_class.startswith(_SECONDARY_CAPTURE_CLASS):
        return "a secondary capture"
    for kind, why in _NO_SLICE_TYPES.items():
        if kind in values["ImageType"]:
            return why
    if not rows or not columns:
        return "a DICOM file without an image"
    if max(int(rows[0]), int(columns[0])) > _LARGEST_PX:
        return f"a DICOM file with more than {_LARGEST_PX} rows or columns"
    # MONOCHROME1 says how to show a picture; HU are the same.
    if "".join(values["PhotometricInterpretation"]) not in ("", "MONOCHROME1", "MONOCHROME2"):
        return "a DICOM file that is no CT slice (its pixels are not grey)"
    return ""


def _slice(
    name: str, frame: int | None, values: _Values, frame_attributes: _Values, syntax: str
) -> DicomSlice:
    slope, intercept = _rescale(values)
    position, orientation = values["ImagePositionPatient"], values["ImageOrientationPatient"]
    is_placed = len(position) == 3 and len(orientation) == 6
    if frame is not None and not is_placed:
        raise NoSliceError("a DICOM file with several frames, but without the place of each")
    cosines, to_canonical = _plane(orientation if is_placed else ("1", "0", "0", "0", "1", "0"))
    position_mm = None
    if is_placed:
        x, y, z = map(float, position)
        position_mm = x, y, z
    if position_mm and not all(map(math.isfinite, position_mm)):
        raise NoSliceError(NO_PLACE)
    series_number = "".join(values["SeriesNumber"])
    number = "".join(values["InstanceNumber"])
    return DicomSlice(
        name=name,
        frame=frame,
        series_uid="".join(values["SeriesInstanceUID"]),
        series_number=series_number if _is_number(series_number) else "",
        instance_number=int(number) if _is_number(number.removeprefix("-")) else None,
        sop_instance_uid="".join(values["SOPInstanceUID"]),
        attributes={**{tag: values[tag] for tag in _ATTRIBUTES}, **frame_attributes},
        position_mm=position_mm,
        cosines=cosines,
        orientation=to_canonical,
        syntax=syntax,
        slope=slope,
        intercept=intercept,
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 12


def _rescale(values: _Values) -> tuple[float, float]:
    """Slope and intercept."""
    slopes, intercepts = values["RescaleSlope"], values["RescaleIntercept"]
    kind = "".join(values["RescaleType"]).upper()
    if kind not in _HU_TYPES and not kind.startswith("HOUNSFIELD"):
        known = kind if re.fullmatch("[A-Z_]{2,16}", kind) else "not HU"
        raise NoSliceError(f"a DICOM file whose values are no HU (RescaleType {known})")
    slope = float(slopes[0]) if slopes else 1.0
    if intercepts:
        intercept = float(intercepts[0])
    # Signed values without a rescale are HU, as converters write them; unsigned ones are not.
    elif values["PixelRepresentation"] == ("1",) and not slopes:
        intercept = 0.0
    else:
        raise NoSliceError("a DICOM file without RescaleIntercept: no HU")
    if not (np.isfinite(slope) and slope != 0 and np.isfinite(intercept)):
        raise NoSliceError("a DICOM file with a RescaleSlope of 0 or not a number: no HU")
    return slope, intercept


@functools.lru_cache(maxsize=64)
def _plane(orientation: tuple[str, ...]) -> tuple[tuple[float, ...], Orientation]:
    """The cosines [6] of an axial slice, and what turns it to columns to the left."""
    cosines = np.array(orientation, float).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if not np.all(np.abs(lengths - 1) < 0.05) or abs(cosines[0] @ cosines[1]) > 0.05:
        raise NoSliceError("a DICOM file whose orientation is none")
    normal = np.cross(*cosines)
    if abs(normal[2]) < _AXIAL_ABOVE:
        is_coronal = abs(normal[1]) > abs(normal[0])
        raise NoSliceError(f"a {'coronal' if is_coronal else 'sagittal'} slice")
    return tuple(cosines.ravel().tolist()), orientation_of(*cosines)


def _identifiers(values: _Values) -> tuple[str, ...]:
    """What names the patient or the examination."""
    parts = [part for tag in _IDENTIFYING_TAGS for part in values[tag] if len(part) >= 4]
    names = "^".join(values["PatientName"])
    parts += [part for part in re.split(r"[\^= ,]+", names) if len(part) >= 3]
    for date in values["PatientBirthDate"]:
        if len(date) == 8:
            year, month, day = date[:4], date[4:6], date[6:]
            parts += [date, f"{year}-{month}-{day}", f"{day}{month}{year}", f"{day}.{month}.{year}"]
    return tuple(part.casefold() for part in parts)


def names_identify(names: Iterable[str], identifiers: Iterable[str]) -> bool:
    """Whether names of files hold an identifier of the patient, or a UID of any kind."""
    text = "\n".join(names).casefold()
    return any(identifier in text for identifier in identifiers) or bool(_UID.search(text))


_UID = re.compile(r"\d+(?:\.\d+){5,}")


# A file with several frames

_FRAME_VALUES = {
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
_FRAME_ATTRIBUTES = {
    "SliceThickness": "PixelMeasuresSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "KVP": "CTXRayDetailsSequence",
    "FrameType": "CTImageFrameTypeSequence",
    "StackID": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
}


def _frames(
    name: str, n_frames: int, values: _Values, syntax: str, read_file: Callable[[], bytes]
) -> tuple[list[DicomSlice], list[Excluded]]:
    """The frames of an enhanced CT, which has the place of each in sequences."""
    if n_frames > _MOST_FRAMES:
        raise NoSliceError(f"a DICOM file with more than {_MOST_FRAMES} frames")
    dataset = pydicom.dcmread(as_stream(read_file()), stop_before_pixels=True, force=True)
    own = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = (dataset.get("SharedFunctionalGroupsSequence") or (pydicom.Dataset(),))[0]
    if len(own) != n_frames:
        raise NoSliceError("a DICOM file with several frames, but without the place of each")

    slices, excluded = [], []
    for index, frame in enumerate(own):
        frame_values = {
            keyword: frame_element(frame, shared, group, keyword) or values[keyword]
            for keyword, group in _FRAME_VALUES.items()
        }
        # The file's own counts files.
        frame_values["InstanceNumber"] = frame_element(
            frame, shared, "FrameContentSequence", "InStackPositionNumber"
        )
        attributes = {
            keyword: frame_element(frame, shared, group, keyword)
            for keyword, group in _FRAME_ATTRIBUTES.items()
        }
        try:
            if "LOCALIZER" in attributes["FrameType"]:
                raise NoSliceError("a localizer")
            slices.append(_slice(name, index, {**values, **frame_values}, attributes, syntax))
        except NoSliceError as error:
            excluded.append(Excluded(f"{name}#{index + 1}", str(error)))
    if not slices:
        raise NoSliceError(excluded[0].why)
    return slices, excluded


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
                return tuple(str(part) for part in (value if several else [value]))
    return ()
