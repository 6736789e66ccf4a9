"""The report keeps the rows of TID 1500, which `dciodvfy` does not check."""

from __future__ import annotations

import copy
import io
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
import pytest
from dicom_export.tid1500 import violations
from pydicom import Dataset

pytest.importorskip("highdicom", reason="highdicom is not installed (extra `pacs`)")
from highdicom.sr import CodeContentItem, CodedConcept, TextContentItem

from drenet_jax.ct.dicom.instances import SourceInstance
from drenet_jax.dicom_export.header import UidSource
from drenet_jax.dicom_export.structured_report import structured_report

_CT = "1.2.840.10008.5.1.4.1.1.2"
_BOX = {"y0": 10.0, "x0": 20.0, "y1": 30.5, "x1": 40.25, "score": 0.9}
_LABELS = {"COVID-19": 0.7, "bacterial": 0.2, "a label of our own, quite long": 0.1}


def _report(boxes: Sequence[int] = (2, 0, 1)) -> Dataset:
    """Of slices with so many boxes, as read back from its file."""
    instances = [
        SourceInstance(
            study={"StudyInstanceUID": "1.2.3", "PatientName": "Doe^J", "StudyDate": "20210304"},
            series_uid="1.2.3.4",
            sop_class_uid=_CT,
            sop_instance_uid=f"1.2.3.4.{index}",
            frame_number=None,
            pixel_spacing_mm=None,
            is_oriented=True,
        )
        for index in range(len(boxes))
    ]
    result = {
        "person": {"label": "COVID-19", "probabilities": _LABELS, "n_slices": len(boxes)},
        "slices": [{"index": i, "boxes": [_BOX] * count} for i, count in enumerate(boxes)],
        "excluded": [{"name": "1.dcm", "why": "no lungs found"}],
        "notes": ["left out beside the series taken: series 3 of 5 slices"],
        "model": {
            "name": "drenet",
            "step": 6,
            "version": "1.0",
            "labels": list(_LABELS),
            "temperature": None,
            "ct": {},
        },
        "decision": {
            "rule": "largest_probability",
            "threshold": None,
            "positive": None,
            "aggregate": "mean",
        },
    }
    stream = io.BytesIO()
    structured_report(result, instances, UidSource("a seed")).save_as(stream)
    stream.seek(0)
    return pydicom.dcmread(stream)


@pytest.fixture(scope="module")
def report() -> Dataset:
    return _report()


@pytest.mark.parametrize("boxes", [(0,), (1,), (2, 0, 1)])
def test_the_report_keeps_every_row(boxes):
    assert violations(_report(boxes)) == []


# PixelMed's validator

_PIXELMED = Path("/usr/share/java/pixelmed.jar")
# Its rules have more XPath operators than Java allows by default.
_LIMITS = [f"-Djdk.xml.xpath{what}Limit=0" for what in ("TotalOp", "ExprOp", "ExprGrp")]
# What it says of a report that is right. CID 100 is a baseline group, which does not bind, and the
# texts of TID 1501 row 12 are younger than its edition of the standard.
_KNOWN = (
    '(24627-2,LN,"CT Chest") not found in context group 100',
    '/TEXT (121106,DCM,"Comment"): Content Item not in template',
)


def _pixelmed(report: Dataset, folder: Path) -> list[str]:
    """Its errors and warnings without the known ones."""
    if not _PIXELMED.is_file() or shutil.which("java") is None:
        pytest.skip("PixelMed's validator is not installed (Debian: libpixelmed-java)")
    report.save_as(folder / "report.dcm")
    done = subprocess.run(
        [
            *("java", "-XX:TieredStopAtLevel=1", *_LIMITS, "-cp", _PIXELMED),
            "com.pixelmed.validate.DicomSRValidator",
            *("-checkcontentitemorder", "-checktemplateid", folder / "report.dcm"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "Found Root Template TID_1500" in done.stdout, done.stdout + done.stderr
    assert "IOD validation complete" in done.stdout
    said = [line for line in done.stdout.splitlines() if "Error" in line or "Warning" in line]
    return [line for line in said if not line.endswith(_KNOWN)]


def _person_alone() -> Dataset:
    return _report((0,))


def _box_alone() -> Dataset:
    # Of a report with groups of both kinds it checks all as one kind.
    report = _report((1,))
    del _at(report, "126010").ContentSequence[0]
    return report


@pytest.mark.slow
@pytest.mark.parametrize("make", [_person_alone, _box_alone])
def test_pixelmed_finds_nothing(make, tmp_path):
    assert _pixelmed(make(), tmp_path) == []


# Damage


def _at(report: Dataset, *path: str) -> Dataset:
    """The first item at each step with this concept; 'box' is the second measurement group."""
    item = report
    for step in path:
        concept, nth = ("125007", 1) if step == "box" else (step, 0)
        item = [child for child in item.ContentSequence if _concept(child) == concept][nth]
    return item


def _concept(item: Dataset) -> str:
    code = item.ConceptNameCodeSequence[0]
    return code.get("CodeValue") or code.LongCodeValue


_PERSON = ("126010", "125007")
_BOX_GROUP = ("126010", "box")


def _without(*path: str) -> Callable[[Dataset], None]:
    def damage(report: Dataset) -> None:
        _at(report, *path[:-1]).ContentSequence.remove(_at(report, *path))

    return damage


def _twice(*path: str) -> Callable[[Dataset], None]:
    def damage(report: Dataset) -> None:
        _at(report, *path[:-1]).ContentSequence.append(copy.deepcopy(_at(report, *path)))

    return damage


def _swapped(parent: Sequence[str], first: str, second: str) -> Callable[[Dataset], None]:
    def damage(report: Dataset) -> None:
        contents = _at(report, *parent).ContentSequence
        i, j = (contents.index(_at(report, *parent, concept)) for concept in (first, second))
        contents[i], contents[j] = contents[j], contents[i]

    return damage


def _with(keyword: str, value: object, *path: str) -> Callable[[Dataset], None]:
    return lambda report: setattr(_at(report, *path), keyword, value)


def _concept_of(*path: str) -> Callable[[Dataset], None]:
    return _with("ConceptNameCodeSequence", [CodedConcept("121060", "DCM", "History")], *path)


def _value_of(*path: str) -> Callable[[Dataset], None]:
    return _with("ConceptCodeSequence", [CodedConcept("260413007", "SCT", "None")], *path)


def _plus(item: Dataset, *path: str) -> Callable[[Dataset], None]:
    return lambda report: _at(report, *path).ContentSequence.append(item)


def _unit(report: Dataset) -> None:
    (measured,) = _at(report, *_PERSON, "P:COVID-19").MeasuredValueSequence
    measured.MeasurementUnitsCodeSequence = [CodedConcept("kg", "UCUM", "kg")]


def _no_source(report: Dataset) -> None:
    del _at(report, *_BOX_GROUP, "111030").ContentSequence


def _two_sources(report: Dataset) -> None:
    contents = _at(report, *_BOX_GROUP, "111030").ContentSequence
    contents.append(copy.deepcopy(contents[0]))


def _person(report: Dataset) -> None:
    observer = _at(report, "121005")
    observer.ConceptCodeSequence = [CodedConcept("121006", "DCM", "Person")]


_TEXT = TextContentItem(CodedConcept("121106", "DCM", "Comment"), "text", "HAS OBS CONTEXT")
_CODE = CodeContentItem(
    CodedConcept("111000", "DCM", "Algorithm Family"),
    CodedConcept("123110", "DCM", "Artificial Intelligence"),
    "CONTAINS",
)

DAMAGE = [
    # Missing
    (_without("121012"), "TID 1004 row 1: missing"),
    (_without("121005"), "TID 1002 row 1: missing"),
    (_without("126010"), "TID 1500 row 6: missing"),
    (_without(*_PERSON, "111001"), "TID 4019 row 1: missing"),
    (_without(*_BOX_GROUP, "111003"), "TID 4019 row 2: missing"),
    (_without(*_BOX_GROUP, "111030"), "TID 1410 row 5: missing"),
    (_without(*_BOX_GROUP, "P:COVID-19"), "TID 1419 row 5: missing"),
    (_no_source, "TID 1410 row 6: missing"),
    # Too many
    (_twice("121012"), "TID 1004 row 1: 2 items"),
    (_twice("121049"), "TID 1204 row 1: 2 items"),
    (_twice("126010"), "TID 1500 row 6: 2 items"),
    (_twice(*_PERSON, "121071"), "TID 1501 row 3b: 2 items"),
    (_twice(*_BOX_GROUP, "112040"), "TID 1410 row 3: 2 items"),
    (_twice(*_BOX_GROUP, "111030"), "TID 1410 row 5: 2 items"),
    (_two_sources, "TID 1410 row 6: 2 items"),
    # Wrong relationship
    (_with("RelationshipType", "CONTAINS", "121013"), "no row allows CONTAINS TEXT"),
    (_with("RelationshipType", "CONTAINS", *_PERSON, "112039"), "no row allows CONTAINS TEXT"),
    (_with("RelationshipType", "HAS OBS CONTEXT", "121058"), "no row allows HAS OBS CONTEXT"),
    (_with("RelationshipType", "INFERRED FROM", *_PERSON, "121112"), "no row allows INFERRED"),
    # Wrong value type
    (_with("ValueType", "TEXT", *_PERSON, "112040"), "no row allows HAS OBS CONTEXT TEXT"),
    (_with("ValueType", "PNAME", "121013"), "no row allows HAS OBS CONTEXT PNAME"),
    (_with("ValueType", "TEXT", *_BOX_GROUP, "130400"), "no row allows CONTAINS TEXT"),
    # Wrong concept
    (_concept_of(*_PERSON, "121112"), "no row allows CONTAINS IMAGE ('121060', 'DCM')"),
    (_concept_of("121049"), "no row allows HAS CONCEPT MOD CODE ('121060', 'DCM')"),
    (_concept_of(*_BOX_GROUP, "P:COVID-19"), "no row allows CONTAINS NUM ('121060', 'DCM')"),
    (lambda r: _concept_of()(r), "no row allows no relationship CONTAINER ('121060', 'DCM')"),
    # Wrong value
    (_value_of("121005"), "TID 1002 row 1: value ('260413007', 'SCT') is not of DCID 270"),
    (_value_of("121049"), "TID 1204 row 1: value"),
    (_value_of("121058"), "TID 1500 row 4: value"),
    (_value_of(*_BOX_GROUP, "130400"), "TID 1410 row 3c: value"),
    (_unit, "TID 300 row 1: unit ('kg', 'UCUM')"),
    (_with("GraphicType", "MULTIPOINT", *_BOX_GROUP, "111030"), "TID 1410 row 5: a MULTIPOINT"),
    (_with("TextValue", "", *_PERSON, "111001"), "TID 4019 row 1: no value"),
    # Wrong order, where it is significant
    (_swapped((), "121005", "121012"), "TID 1002: not in the order"),
    (_swapped((), "121012", "121013"), "TID 1004: not in the order"),
    (_swapped(_PERSON, "111001", "111003"), "TID 4019: not in the order"),
    # Wrong condition
    (_person, "TID 1002 row 3: must not be there"),
    # What no row allows
    (_plus(_TEXT, *_PERSON), "no row allows HAS OBS CONTEXT TEXT ('121106', 'DCM')"),
    (_plus(_CODE, *_PERSON), "no row allows CONTAINS CODE ('111000', 'DCM')"),
    (lambda r: _plus(_at(r, *_PERSON))(r), "no row allows CONTAINS CONTAINER ('125007', 'DCM')"),
    # Another template than the one that the item states
    (lambda r: delattr(_at(r, *_PERSON), "ContentTemplateSequence"), "its template is none"),
    (lambda r: setattr(r.ContentTemplateSequence[0], "TemplateIdentifier", "2000"), "is 2000"),
]


@pytest.mark.parametrize(("damage", "expected"), DAMAGE, ids=[text for _, text in DAMAGE])
def test_each_damage_is_found(report, damage, expected):
    damaged = copy.deepcopy(report)
    damage(damaged)
    found = violations(damaged)
    assert any(expected in violation for violation in found), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "concept", "expected"),
    [(_person_alone, "121071", "Template 1501"), (_box_alone, "130400", "Template 1410")],
)
def test_pixelmed_finds_a_wrong_relationship(make, concept, expected, tmp_path):
    report = make()
    _with("RelationshipType", "HAS CONCEPT MOD", *_PERSON, concept)(report)
    (found,) = _pixelmed(report, tmp_path)
    assert expected in found
    assert "Incorrect relationship" in found
