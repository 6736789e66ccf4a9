"""Header elements that the report and the captures share: patient, study and device."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from highdicom import UID
from highdicom.enum import ContentQualificationValues
from pydicom import Dataset
from pydicom.uid import generate_uid

from drenet_jax.ct.dicom.instances import STUDY_KEYWORDS, SourceInstance

MAKER = "drenet_jax"
WARNING = "Research only, not for clinical use"

# DICOM type 2: present even if empty.
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


@dataclasses.dataclass(frozen=True)
class UidSource:
    """UIDs of new objects.

    Attributes:
      seed: what the UIDs are derived from; None: they are new each time.
    """

    seed: str | None = None

    def uid(self, *role: str | int) -> UID:
        """The UID of one role, as ("series", 9901), among the objects of one result."""
        if self.seed is None:
            return UID()
        # As JSON: pydicom joins the sources, and ("a", "bc") would be ("ab", "c").
        return UID(generate_uid(entropy_srcs=[json.dumps([MAKER, self.seed, *role])]))


def new_series(number: int, description: str, model: Mapping, uids: UidSource) -> dict[str, Any]:
    """highdicom's arguments for the instances of a new series.

    Args:
      number: the series' number in the study.
      description: of its content, a few words.
      model: the part `model` of result.json.
      uids: gives the series' UID.
    """
    return {
        "series_instance_uid": uids.uid("series", number),
        "series_number": number,
        "series_description": f"{MAKER} {description} ({WARNING})",
        "manufacturer": MAKER,
        "manufacturer_model_name": model_name(model),
        "software_versions": model["version"],
        "content_qualification": ContentQualificationValues.RESEARCH,
    }


def model_name(model: Mapping) -> str:
    return f"{model['name']}, step {model['step']}"


def copy_patient_study(dataset: Dataset, source: SourceInstance) -> None:
    """Copies the patient and study elements of the source, unchanged.

    highdicom does not get them: it logs and warns of unusual names.
    """
    # UTF-8: the names of any source and the labels of any model.
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in STUDY_KEYWORDS:
        text = source.study.get(keyword)
        if text is not None or keyword in _MAY_BE_EMPTY:
            setattr(dataset, keyword, text)
        elif keyword in dataset:
            delattr(dataset, keyword)
