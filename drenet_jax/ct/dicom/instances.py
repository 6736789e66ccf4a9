"""What a DICOM object about a slice must say of the slice's own file: whose it is, and which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pydicom
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

from drenet_jax.ct.dicom import elements
from drenet_jax.ct.dicom.headers import CT_CLASSES, DicomSlice, frame_element

# Enough to file an object under its patient and study, and no more. The last ones say that the
# patient's identity was removed, which is true of what is made from the file, too.
STUDY_KEYWORDS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
)
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_TAGS = (
    *STUDY_KEYWORDS,
    *_UIDS,
    "DeidentificationMethodCodeSequence",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "SOPClassUID",
    "SpecificCharacterSet",
)
_LONGEST_TEXT = 64


# Without a repr: a traceback or a failed assertion that shows it would name the patient.
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class SourceInstance:
    """The DICOM instance that a slice comes from. It identifies the patient.

    Attributes:
      study: what the file says of patient and study, as text by keyword (`STUDY_KEYWORDS`); what
        it leaves out or empty is not there.
      series_uid, sop_class_uid, sop_instance_uid: of the file.
      frame_number: the slice's frame, from 1, in a file with several; or None.
      pixel_spacing_mm: between rows and between columns of the upright slice, or None.
      is_oriented: whether the file says how the slice lies in the patient.
    """

    study: Mapping[str, str]
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None
    pixel_spacing_mm: tuple[float, float] | None
    is_oriented: bool


class NoInstanceError(ValueError):
    """A file that no object can refer to; its text says why and quotes no tag."""


def read_instance(dicom_slice: DicomSlice, source: bytes | pydicom.Dataset) -> SourceInstance:
    """Reads it from the file's header.

    Args:
      dicom_slice: the slice.
      source: its file; as `pixels.read_dataset` returns it, if it has several frames.

    Raises:
      NoInstanceError: the file lacks a UID, or is of no class of CT images.
      One of `elements.ERRORS`: the header cannot be read.
    """
    with elements.without_warnings():
        if isinstance(source, pydicom.Dataset):
            dataset = source
        else:
            if dicom_slice.syntax == elements.DEFLATED:
                elements.check_inflated(source)
            dataset = pydicom.dcmread(
                elements.as_stream(source),
                stop_before_pixels=True,
                force=True,
                specific_tags=list(_TAGS),
            )
        study = {keyword: _text(dataset.get(keyword)) for keyword in STUDY_KEYWORDS}
        if study["PatientIdentityRemoved"] == "YES" and not study["DeidentificationMethod"]:
            study["DeidentificationMethod"] = _method(dataset)
        uids = [_text(dataset.get(keyword)) for keyword in _UIDS]
        sop_class_uid = _text(dataset.get("SOPClassUID"))
        spacing = _spacing_mm(dicom_slice, dataset)
    for keyword, uid in zip(_UIDS, uids, strict=True):
        if not uid:
            raise NoInstanceError(f"a DICOM file without {keyword}")
    if sop_class_uid not in CT_CLASSES:
        raise NoInstanceError("a DICOM file whose SOPClassUID is none of CT images")
    return SourceInstance(
        study={keyword: text for keyword, text in study.items() if text},
        series_uid=uids[1],
        sop_class_uid=sop_class_uid,
        sop_instance_uid=uids[2],
        frame_number=None if dicom_slice.frame is None else dicom_slice.frame + 1,
        pixel_spacing_mm=spacing,
        is_oriented=dicom_slice.frame is not None
        or all(dataset.get(tag) for tag in ("ImageOrientationPatient", "ImagePositionPatient")),
    )


def _text(value: object) -> str:
    """An element's value as text, several parted by backslashes; '' for what is no text."""
    if isinstance(value, MultiValue):
        return "\\".join(_text(part) for part in value)
    return str(value).strip(" \0") if isinstance(value, str | PersonName) else ""


def _method(dataset: pydicom.Dataset) -> str:
    """How identity was removed, in words, of a file that gives codes only."""
    items = dataset.get("DeidentificationMethodCodeSequence") or ()
    meanings = [_text(item.get("CodeMeaning"))[:_LONGEST_TEXT] for item in items]
    return "\\".join(filter(None, meanings)) or "not reported"


def _spacing_mm(dicom_slice: DicomSlice, dataset: pydicom.Dataset) -> tuple[float, float] | None:
    if dicom_slice.frame is None:
        values = dataset.get("PixelSpacing") or ()
    else:
        shared = (dataset.get("SharedFunctionalGroupsSequence") or (pydicom.Dataset(),))[0]
        own = dataset.PerFrameFunctionalGroupsSequence[dicom_slice.frame]
        values = frame_element(own, shared, "PixelMeasuresSequence", "PixelSpacing")
    try:
        rows, columns = (float(value) for value in values)
    except (TypeError, ValueError):
        return None
    if not (np.isfinite([rows, columns]).all() and rows > 0 and columns > 0):
        return None
    return (columns, rows) if dicom_slice.orientation.transpose else (rows, columns)
