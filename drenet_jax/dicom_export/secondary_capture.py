"""Slices with their overlays as DICOM secondary captures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from drenet_jax.ct.dicom.instances import SourceInstance
from drenet_jax.dicom_export.header import (
    MAKER,
    WARNING,
    UidSource,
    copy_patient_study,
    new_series,
)
from drenet_jax.evaluation.overlays import HEAT_OPACITY, SlicePicture, composite, layers

_SERIES_NUMBER = 9902

# Below the picture, for the warning.
_STRIP_PX = 28

_WHAT = (
    "CT slice in the lung window, upright and enlarged, with the Grad-CAM heat map of the "
    "predicted label (blue to yellow), the lung box (grey) and the boxes above 0.8 of that "
    "label (red) with their scores"
)


def captures(
    pictures: Sequence[SlicePicture],
    instances: Sequence[SourceInstance],
    model: Mapping,
    uids: UidSource,
) -> Iterator[SCImage]:
    """Captures of slices, in one new series.

    Args:
      pictures: of the slices.
      instances: their DICOM instances, in the same order.
      model: the part `model` of result.json.
      uids: gives the UIDs of the series and of its instances.
    """
    series = new_series(_SERIES_NUMBER, "boxes", model, uids)
    for number, (picture, source) in enumerate(zip(pictures, instances, strict=True), start=1):
        overlay = composite(layers(picture), HEAT_OPACITY)
        capture = SCImage(
            pixel_array=_with_warning(overlay, model["version"]),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            # Pictures are upright: columns go to the patient's left, rows to the back.
            patient_orientation=("L", "P"),
            study_instance_uid=source.study["StudyInstanceUID"],
            sop_instance_uid=uids.uid("capture", number),
            instance_number=number,
            pixel_spacing=_spacing_mm(picture, overlay, source),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **series,
        )
        if not source.is_oriented:
            capture.PatientOrientation = None  # type: ignore[assignment]  # type 2: may be empty
        capture.BodyPartExamined = "CHEST"
        capture.DerivationDescription = f"{_WHAT}. {WARNING}."
        capture.SourceImageSequence = [_reference(source)]
        # PS3.3 C.7.6.1: about annotation that identifies the patient and the date. What is burnt in
        # here, scores and the warning, does not.
        capture.BurnedInAnnotation = "NO"
        copy_patient_study(capture, source)
        yield capture


def _with_warning(overlay: np.ndarray, version: str) -> np.ndarray:
    """Adds a strip with the warning below the image: viewers may hide an image's header."""
    strip = np.zeros((_STRIP_PX, overlay.shape[1], 3), np.uint8)
    text = f"{MAKER} {version}: {WARNING.lower()}"
    cv2.putText(
        strip, text, (6, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA
    )
    return np.concatenate([overlay, strip])


def _spacing_mm(
    picture: SlicePicture, overlay: np.ndarray, source: SourceInstance
) -> tuple[float, float] | None:
    """Between rows and between columns of the enlarged picture."""
    if source.pixel_spacing_mm is None:
        return None
    rows_mm, columns_mm = (
        mm * side / shown
        for mm, side, shown in zip(
            source.pixel_spacing_mm, picture.source.shape, overlay.shape[:2], strict=True
        )
    )
    return rows_mm, columns_mm


def _reference(source: SourceInstance) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.sop_class_uid
    reference.ReferencedSOPInstanceUID = source.sop_instance_uid
    if source.frame_number is not None:
        reference.ReferencedFrameNumber = source.frame_number
    reference.PurposeOfReferenceCodeSequence = [
        CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    return reference
