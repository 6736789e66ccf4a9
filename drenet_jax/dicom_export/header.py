"""What the report and the captures have in common: whose they are and what made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from highdicom import UID
from highdicom.enum import ContentQualificationValues
from pydicom import Dataset

from drenet_jax.ct.dicom.instances import STUDY_KEYWORDS, SourceInstance

MAKER = "drenet_jax"
WARNING = "Research only, not for clinical use"

# DICOM type 2: there even if empty.
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


def new_series(number: int, description: str, model: Mapping) -> dict[str, Any]:
    """highdicom's arguments for the instances of a new series that the model makes.

    Args:
      number: the series' number in the study.
      description: what is in it, a few words.
      model: what result.json says of the model.
    """
    return {
        "series_instance_uid": UID(),
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
    """Gives an object the patient and the study of its source, in the source's words.

    highdicom is not given them: it logs and warns of names that it finds odd.
    """
    # UTF-8: the names of any source and the labels of any model.
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in STUDY_KEYWORDS:
        text = source.study.get(keyword)
        if text is not None or keyword in _MAY_BE_EMPTY:
            setattr(dataset, keyword, text)
        elif keyword in dataset:
            delattr(dataset, keyword)
