"""A person's result as a DICOM structured report, after template TID 1500.

Comprehensive SR rather than Comprehensive 3D SR: boxes are regions of single slices in pixels,
which the former holds, and more PACS take it. A box becomes a closed POLYLINE. Its coordinates are
DICOM's (column, row) with (0, 0) at the outer corner of the first pixel (PS3.3 C.18.6), which is
how boxes are counted here, too: half open, in pixels of the slice as stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    GraphicTypeValues,
    ImageRegion,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from drenet_jax.ct.dicom.instances import SourceInstance
from drenet_jax.dicom_export.header import (
    MAKER,
    WARNING,
    UidSource,
    copy_patient_study,
    model_name,
    new_series,
)
from drenet_jax.evaluation.decisions import decision_text
from drenet_jax.evaluation.overlays import LESION_BOX_MIN_PROBABILITY

SCHEME = "99DRENETJAX"
_SCHEME_NAME = "Labels of drenet_jax models and their probabilities"

_SERIES_NUMBER = 9901
_LONGEST_MEANING = 64

_CT_CHEST = CodedConcept("24627-2", "LN", "CT Chest")
_COVID_19 = CodedConcept("840539006", "SCT", "COVID-19")
_BACTERIAL = CodedConcept("53084003", "SCT", "Bacterial pneumonia")
_NORMAL = CodedConcept("17621005", "SCT", "Normal")
# By labels in lower case, letters and digits only.
_KNOWN_LABELS = {
    "covid": _COVID_19,
    "covid19": _COVID_19,
    "covid19pneumonia": _COVID_19,
    "bacterial": _BACTERIAL,
    "bacterialpneumonia": _BACTERIAL,
    "healthy": _NORMAL,
    "normal": _NORMAL,
}


def structured_report(
    result: Mapping, instances: Sequence[SourceInstance], uids: UidSource
) -> ComprehensiveSR:
    """The person's probabilities and the boxes above `LESION_BOX_MIN_PROBABILITY` on their slices.

    Args:
      result: what `predict` writes to result.json.
      instances: the DICOM instances of the slices in `result`, in the same order.
      uids: gives the UIDs of series, report and measurement groups.
    """
    model = result["model"]
    parameters = [
        f"{name}: {json.dumps(model[name], ensure_ascii=False)}"
        for name in ("labels", "temperature", "ct")
    ]
    parameters.append(f"decision: {json.dumps(result['decision'], ensure_ascii=False)}")
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(model)),
        procedure_reported=_CT_CHEST,
        imaging_measurements=[
            _person(result, instances, _algorithm(model, parameters), uids),
            *_boxes(result, instances, _algorithm(model, None), uids),
        ],
    )
    report = ComprehensiveSR(
        evidence=[_evidence(instance) for instance in instances],
        content=content[0],
        sop_instance_uid=uids.uid("report"),
        instance_number=1,
        is_complete=True,
        coding_schemes=[
            CodingSchemeIdentificationItem(
                SCHEME, name=_SCHEME_NAME, responsible_organization=MAKER
            )
        ],
        **new_series(_SERIES_NUMBER, "result", model, uids),
    )
    copy_patient_study(report, instances[0])
    return report


def label_code(label: str) -> CodedConcept:
    """SNOMED CT's concept for a label that is one of the paper's three, else one of our own."""
    known = _KNOWN_LABELS.get(re.sub(r"[\W_]", "", label.casefold()))
    return known or _own_code("L", label, label)


def probability_code(label: str) -> CodedConcept:
    """The measurement "Probability of LABEL", for which no public scheme has a concept."""
    return _own_code("P", label, f"Probability of {label}")


def _own_code(kind: str, label: str, meaning: str) -> CodedConcept:
    value, meaning = (re.sub(r"[\\\x00-\x1f\x7f]", "_", text) for text in (label, meaning))
    if len(meaning) > _LONGEST_MEANING:
        meaning = meaning[: _LONGEST_MEANING - 3] + "..."
    return CodedConcept(f"{kind}:{value}", SCHEME, meaning)


def _algorithm(model: Mapping, parameters: list[str] | None) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=f"{MAKER} {model['name']}",
        version=f"{model['version']}, step {model['step']}",
        parameters=parameters,
    )


def _observer(model: Mapping) -> ObserverContext:
    # The same model is the same device in every report.
    identity = json.dumps(model, sort_keys=True, default=str)
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[MAKER, identity]),
            name=f"{MAKER} {model['version']}",
            manufacturer_name=MAKER,
            model_name=model_name(model),
        ),
    )


def _person(
    result: Mapping,
    instances: Sequence[SourceInstance],
    algorithm: AlgorithmIdentification,
    uids: UidSource,
) -> MeasurementsAndQualitativeEvaluations:
    person = result["person"]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uids.uid("person"), "person"),
        # Only the predicted label is a finding: a viewer may show findings without their numbers.
        finding_type=label_code(person["label"]),
        algorithm_id=algorithm,
        measurements=[
            _probability(label, probability)
            for label, probability in person["probabilities"].items()
        ],
        source_images=[
            SourceImageForMeasurementGroup(
                instance.sop_class_uid, instance.sop_instance_uid, _frame_numbers(instance)
            )
            for instance in instances
        ],
    )
    for comment in _comments(result, instances):
        group[0].ContentSequence.append(
            TextContentItem(
                name=codes.DCM.Comment,
                value=comment,
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
        )
    return group


def _comments(result: Mapping, instances: Sequence[SourceInstance]) -> Iterator[str]:
    """How the label was decided, and of which slices: what was taken and what was left out."""
    yield f"{WARNING}. {decision_text(result['decision'], result['person']['n_slices'])}"
    series = dict.fromkeys(instance.series_uid for instance in instances)
    yield f"SeriesInstanceUID of the slices taken: {', '.join(series)}"
    yield from result["notes"]
    yield f"Files and slices left out: {len(result['excluded'])}"


def _boxes(
    result: Mapping,
    instances: Sequence[SourceInstance],
    algorithm: AlgorithmIdentification,
    uids: UidSource,
) -> Iterator[PlanarROIMeasurementsAndQualitativeEvaluations]:
    label = result["person"]["label"]
    for row, source in zip(result["slices"], instances, strict=True):
        passed = [box for box in row["boxes"] if box["score"] > LESION_BOX_MIN_PROBABILITY]
        for number, box in enumerate(passed, start=1):
            yield PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=TrackingIdentifier(
                    uids.uid("box", row["index"], number), f"slice {row['index']}, box {number}"
                ),
                referenced_region=_region(box, source),
                finding_type=label_code(label),
                algorithm_id=algorithm,
                measurements=[_probability(label, box["score"])],
                geometric_purpose=codes.SCT.BoundedBy,
            )


def _region(box: Mapping[str, float], source: SourceInstance) -> ImageRegion:
    left, top, right, bottom = (box[edge] for edge in ("x0", "y0", "x1", "y1"))
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return ImageRegion(
        graphic_type=GraphicTypeValues.POLYLINE,
        # Rounding may put an edge slightly outside of the image, which DICOM does not allow.
        graphic_data=np.maximum(np.array(corners), 0.0),
        source_image=SourceImageForRegion(
            source.sop_class_uid, source.sop_instance_uid, _frame_numbers(source)
        ),
    )


def _probability(label: str, value: float) -> Measurement:
    return Measurement(name=probability_code(label), value=value, unit=codes.UCUM.NoUnits)


def _frame_numbers(source: SourceInstance) -> list[int] | None:
    return None if source.frame_number is None else [source.frame_number]


def _evidence(source: SourceInstance) -> Dataset:
    """What highdicom needs for a reference; `copy_patient_study` adds the patient."""
    dataset = Dataset()
    dataset.SOPClassUID = source.sop_class_uid
    dataset.SOPInstanceUID = source.sop_instance_uid
    dataset.SeriesInstanceUID = source.series_uid
    dataset.StudyInstanceUID = source.study["StudyInstanceUID"]
    for keyword in (
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyDate",
        "StudyTime",
    ):
        setattr(dataset, keyword, None)
    return dataset
