"""DICOM for the PACS: valid, filed under the right patient, boxes where they were."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from ct.conftest import draw_chest, write_dicom
from ct.odd_inputs import change, enhanced, zipped
from dicom_checks import require_valid

import drenet_jax
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.sources import natural
from drenet_jax.ct.window import window
from drenet_jax.dicom_export.objects import require_highdicom, write_objects
from drenet_jax.errors import InputError
from drenet_jax.evaluation.overlays import (
    HEAT_OPACITY,
    LESION_BOX_MIN_PROBABILITY,
    composite,
    layers,
)
from drenet_jax.evaluation.person_report import top_slices
from drenet_jax.evaluation.pipeline import PersonResult

hd = pytest.importorskip("highdicom", reason="highdicom is not installed (extra `pacs`)")
from drenet_jax.dicom_export import structured_report  # noqa: E402

PATIENT = {
    "PatientName": "MUSTERFRAU^ERIKA",
    "PatientID": "HOSP-77120934",
    "IssuerOfPatientID": "SANKT NIRGENDWO",
    "PatientBirthDate": "19640812",
    "PatientSex": "F",
    "StudyInstanceUID": "1.2.276.0.7230010.3.1.2.8323329.77.1",
    "StudyDate": "20210304",
    "StudyTime": "121500",
    "StudyID": "S-4711",
    "StudyDescription": "THORAX KONTROLLE",
    "AccessionNumber": "ACC4455667",
    "ReferringPhysicianName": "QUACKSALBER^OTTO",
}


@pytest.fixture(scope="module")
def pipeline(trained):
    return drenet_jax.load(trained)


@dataclasses.dataclass(frozen=True)
class Written:
    """What was predicted and written of an input, and what its files say of themselves."""

    prediction: PersonResult
    folder: Path
    source: Callable[[str], pydicom.Dataset]

    @functools.cached_property
    def report(self) -> hd.sr.ComprehensiveSR:
        return hd.sr.srread(self.folder / "report.dcm")

    @functools.cached_property
    def captures(self) -> list[pydicom.Dataset]:
        return [pydicom.dcmread(file) for file in sorted(self.folder.glob("capture_*.dcm"))]

    @functools.cached_property
    def regions(self) -> list:
        return self.report.content.get_planar_roi_measurement_groups()


def _write(pipeline, path: Path, folder: Path, source: Callable | None = None) -> Written:
    """Writes the objects with all boxes, however low their scores."""
    folder.mkdir()
    prediction = pipeline.predict(path, with_instances=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structured_report, "LESION_BOX_MIN_PROBABILITY", -1.0)
        write_objects(folder, prediction.result, prediction.pictures, prediction.instances)
    return Written(prediction, folder, source or (lambda name: pydicom.dcmread(path / name)))


def _copy(phantoms: Path, folder: Path, **tags: object) -> Path:
    """A person's series with other tags; None empties one."""
    shutil.copytree(sorted((phantoms / "dicom").iterdir())[0], folder)
    for file in folder.iterdir():
        change(file, **tags)
    return folder


def _folder(phantoms, place):
    path = _copy(phantoms, place / "in", **PATIENT)
    return path, None


def _zip(phantoms, place):
    path = zipped(_copy(phantoms, place / "in", **PATIENT))

    def source(name):
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            return pydicom.dcmread(stream)

    return path, source


def _files_named_for_the_patient(phantoms, place):
    folder = _copy(phantoms, place / "in", **PATIENT)
    for file in list(folder.iterdir()):
        file.rename(folder / f"MUSTERFRAU_{file.name}")
    return folder, _by_number(folder)


def _by_number(folder: Path) -> Callable[[str], pydicom.Dataset]:
    files = (file for file in folder.rglob("*") if file.is_file())
    names = sorted((file.relative_to(folder).as_posix() for file in files), key=natural)
    return lambda name: pydicom.dcmread(folder / names[int(name.split()[1]) - 1])


def _single_file(phantoms, place):
    folder = _copy(phantoms, place / "in", **PATIENT)
    files = sorted(folder.iterdir(), key=lambda file: pydicom.dcmread(file).SliceLocation)
    path = files[len(files) // 2]
    return path, lambda name: pydicom.dcmread(path)


def _enhanced_ct(phantoms, place):
    place.mkdir(exist_ok=True)
    path = enhanced(place)
    change(path, **PATIENT)
    return path, lambda name: pydicom.dcmread(path)


def _legacy_converted_ct(phantoms, place):
    folder = _copy(phantoms, place / "in", **PATIENT, PositionReferenceIndicator="")
    files = [pydicom.dcmread(file) for file in folder.iterdir()]
    made = hd.legacy.LegacyConvertedEnhancedCTImage(
        files, hd.UID(), series_number=7, sop_instance_uid=hd.UID(), instance_number=1
    )
    path = place / "ct.dcm"
    made.save_as(path)
    return path, lambda name: pydicom.dcmread(path)


def _two_series(phantoms, place):
    folder = _copy(phantoms, place / "in", **PATIENT)
    series_uid = hd.UID()
    for file in sorted(folder.iterdir())[:5]:
        other = pydicom.dcmread(file)
        other.SeriesInstanceUID = series_uid
        other.SOPInstanceUID = hd.UID()
        other.file_meta.MediaStorageSOPInstanceUID = other.SOPInstanceUID
        other.save_as(folder / f"another {file.name}")
    return folder, None


def _real_covid_ct_md(phantoms, place):
    folder = Path(__file__).resolve().parents[2].parent / "shared/data/covid_ct_md/COVID-19"
    if not folder.is_dir():
        pytest.skip(f"no real CT data at {folder}")
    return folder, _by_number(folder)


INPUTS = [
    _folder,
    _zip,
    _files_named_for_the_patient,
    _single_file,
    _enhanced_ct,
    _legacy_converted_ct,
    _two_series,
    _real_covid_ct_md,
]


@pytest.fixture(scope="module", params=INPUTS, ids=lambda make: make.__name__[1:])
def written(request, pipeline, phantoms, tmp_path_factory) -> Written:
    place = tmp_path_factory.mktemp("pacs")
    path, source = request.param(phantoms, place / "files")
    return _write(pipeline, path, place / "dicom", source)


@pytest.fixture
def series(phantoms, tmp_path) -> Callable[..., Path]:
    return lambda **tags: _copy(phantoms, tmp_path / "in", **tags)


def test_report_and_captures_are_valid_dicom(written):
    require_valid(written.folder)


def test_dcmtk_reads_the_report_without_a_warning(written):
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump is not installed (Debian: dcmtk)")
    done = subprocess.run(
        ["dsrdump", written.folder / "report.dcm"], capture_output=True, text=True, check=False
    )
    # It does not check values in UTF-8.
    said = [line for line in done.stderr.splitlines() if "VR checker does not support" not in line]
    assert (done.returncode, said) == (0, [])
    assert done.stdout.count("Measurement Group") == 1 + len(written.regions)


def test_boxes_come_back_where_they_were(written):
    rows = written.prediction.result["slices"]
    expected = [(row, box) for row in rows for box in row["boxes"]]
    assert len(expected) == len(written.regions) > 0
    label = written.prediction.result["person"]["label"]
    for (row, box), region in zip(expected, written.regions, strict=True):
        # Columns before rows; (0, 0) is the outer corner of the first pixel (PS3.3 C.18.6).
        corners = region.roi.value
        assert region.roi.graphic_type == hd.sr.GraphicTypeValues.POLYLINE
        np.testing.assert_array_equal(corners[0], corners[4])
        np.testing.assert_allclose(corners.min(axis=0), (box["x0"], box["y0"]), atol=1e-3)
        np.testing.assert_allclose(corners.max(axis=0), (box["x1"], box["y1"]), atol=1e-3)
        assert len(np.unique(corners, axis=0)) == 4
        source = written.source(row["name"])
        assert corners.min() >= 0
        assert (corners <= (source.Columns, source.Rows)).all()
        (measurement,) = region.get_measurements()
        assert measurement.value == pytest.approx(box["score"], abs=1e-6)
        assert region.finding_type == structured_report.label_code(label)


def test_regions_and_captures_refer_to_the_slices_of_their_names(written):
    rows = written.prediction.result["slices"]
    names = [row["name"] for row in rows for _ in row["boxes"]]
    shown = top_slices(written.prediction.pictures, written.prediction.result["person"]["label"])
    captured = [capture.SourceImageSequence[0] for capture in written.captures]
    assert len(captured) == min(3, len(rows))
    regions = [region.roi.ContentSequence[0].ReferencedSOPSequence[0] for region in written.regions]
    references = [
        *zip(names, regions, strict=True),
        *zip((rows[i]["name"] for i in shown), captured, strict=True),
    ]
    for name, reference in references:
        source = written.source(name)
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        frame = int(name.rpartition("#")[2]) if "#" in name else None
        assert reference.get("ReferencedFrameNumber") == frame
    evidence = {uids[2] for uids in written.report.get_evidence(True)}
    assert evidence == {written.source(row["name"]).SOPInstanceUID for row in rows}


def test_objects_are_filed_under_patient_and_study_of_the_source(written):
    source = written.source(written.prediction.result["slices"][0]["name"])
    for made in (written.report, *written.captures):
        for keyword in PATIENT:
            assert (made.get(keyword) or "") == (source.get(keyword) or ""), keyword
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
        assert made.ContentQualification == "RESEARCH"
        assert "not for clinical use" in made.SeriesDescription
    assert written.report.Modality == "SR"
    assert len({capture.SeriesInstanceUID for capture in written.captures}) == 1


def test_the_report_says_what_result_json_says_of_the_person(written):
    person = written.prediction.result["person"]
    (group,) = written.report.content.get_image_measurement_groups()
    assert group.finding_type == structured_report.label_code(person["label"])
    measured = {
        measurement.name.meaning: measurement.value for measurement in group.get_measurements()
    }
    assert measured == pytest.approx(
        {f"Probability of {label}": p for label, p in person["probabilities"].items()}, abs=1e-6
    )
    assert _comments(written)[0].startswith("Research only, not for clinical use.")


def _comments(written: Written) -> list[str]:
    (group,) = written.report.content.get_image_measurement_groups()
    contents = group[0].ContentSequence
    return [content.value for content in contents if content.name.meaning == "Comment"]


def test_the_report_says_which_slices_were_taken_and_what_was_left_out(written):
    result = written.prediction.result
    source = written.source(result["slices"][0]["name"])
    assert _comments(written)[1:] == [
        f"SeriesInstanceUID of the slices taken: {source.SeriesInstanceUID}",
        *result["notes"],
        f"Files and slices left out: {len(result['excluded'])}",
    ]


def test_the_report_says_that_another_series_was_left_out(pipeline, phantoms, tmp_path):
    path, _ = _two_series(phantoms, tmp_path / "in")
    written = _write(pipeline, path, tmp_path / "dicom")
    comments = _comments(written)
    secrets = [value for key, value in PATIENT.items() if key != "PatientSex"]
    assert not any(secret in comment for secret in secrets for comment in comments)
    assert any("left out beside the series taken" in comment for comment in comments)
    assert any(comment.startswith("Files and slices left out: ") for comment in comments)


def _uids(folder: Path) -> dict[str, str]:
    """The UIDs that are the objects' own, by their place."""
    uids = {}
    for file in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(file)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        uids[f"{file.name} instance"] = dataset.SOPInstanceUID
        # One series is of the report, the other of all captures.
        uids[f"{dataset.Modality} series"] = dataset.SeriesInstanceUID
        for n, item in enumerate(dataset.iterall()):
            if item.keyword == "UID" and "capture" not in file.name:
                uids[f"{file.name} {n}"] = item.value
    return uids


def test_a_seed_gives_the_same_uids_again_and_another_seed_others(pipeline, series, tmp_path):
    prediction = pipeline.predict(series(), with_instances=True)

    def write(name: str, **seed: str) -> dict[str, str]:
        (tmp_path / name).mkdir()
        content = (prediction.result, prediction.pictures, prediction.instances)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(structured_report, "LESION_BOX_MIN_PROBABILITY", -1.0)
            files = write_objects(tmp_path / name, *content, **seed)
        assert files[0].name == "report.dcm"
        assert sorted(files) == sorted((tmp_path / name).iterdir())
        require_valid(tmp_path / name)
        return _uids(tmp_path / name)

    first = write("first", uid_seed="study 1, model 1")
    assert first == write("again", uid_seed="study 1, model 1")
    values = list(first.values())
    assert len(set(values)) == len(values) > 8
    assert all(pydicom.uid.UID(uid).is_valid for uid in values)
    (device,) = set(values) & set(write("other", uid_seed="study 2, model 1").values())
    unseeded = set(write("unseeded").values())
    assert set(values) & unseeded == {device}
    assert set(write("unseeded_again").values()) & unseeded == {device}


def test_the_report_names_device_and_algorithm_and_is_unverified(pipeline, series, tmp_path):
    written = _write(pipeline, series(), tmp_path / "dicom")
    report, model = written.report, written.prediction.result["model"]
    assert (report.VerificationFlag, report.CompletionFlag) == ("UNVERIFIED", "COMPLETE")
    assert report.PreliminaryFlag == "PRELIMINARY"
    (observer,) = report.content.get_observer_contexts()
    device = observer.observer_identifying_attributes
    assert device.name == f"drenet_jax {model['version']}"
    assert device.model_name == f"{model['name']}, step {model['step']}"
    texts = {
        (content.name.meaning, content.value)
        for content in report.content.get_image_measurement_groups()[0][0].ContentSequence
        if content.value_type == hd.sr.ValueTypeValues.TEXT
    }
    assert ("Algorithm Version", f"{model['version']}, step {model['step']}") in texts
    assert ("Algorithm Parameters", "temperature: 1.0") in texts
    # The path of the run may name a user.
    assert model["workdir"].encode() not in (written.folder / "report.dcm").read_bytes()
    again = _write(pipeline, tmp_path / "in", tmp_path / "again")
    assert again.report.SOPInstanceUID != report.SOPInstanceUID
    (other,) = again.report.content.get_observer_contexts()
    assert other.observer_identifying_attributes.uid == device.uid


def _store(folder: Path, orientation: Callable, **tags: object) -> Path:
    """Stores the slices otherwise; `tags` say how they lie now."""
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        pixels = orientation(dataset.pixel_array)
        dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.save_as(file)
    return folder


def test_regions_follow_slices_that_are_stored_transposed_or_upside_down(
    pipeline, series, phantoms, tmp_path
):
    size = 96
    to_canonical = _write(pipeline, series(), tmp_path / "upright")
    for name, orientation, cosines, back in (
        ("transposed", lambda p: p.T, [0, 1, 0, 1, 0, 0], lambda c: c[:, ::-1]),
        ("flipped", lambda p: p[::-1], [1, 0, 0, 0, -1, 0], lambda c: c * (1, -1) + (0, size)),
    ):
        folder = _copy(phantoms, tmp_path / f"{name}_in")
        _store(folder, orientation, ImageOrientationPatient=cosines)
        turned = _write(pipeline, folder, tmp_path / name)
        expected = _corners_by_slice(to_canonical)
        by_slice = _corners_by_slice(turned)
        assert expected.keys() == by_slice.keys()
        for slice_name, regions in by_slice.items():
            for was, corners in zip(expected[slice_name], regions, strict=True):
                now = back(corners)
                np.testing.assert_allclose(now.min(axis=0), was.min(axis=0), atol=1e-3)
                np.testing.assert_allclose(now.max(axis=0), was.max(axis=0), atol=1e-3)
        require_valid(turned.folder)


def _corners_by_slice(written: Written) -> dict[str, list[np.ndarray]]:
    corners = iter([region.roi.value for region in written.regions])
    return {
        row["name"]: [next(corners) for _ in row["boxes"]]
        for row in written.prediction.result["slices"]
    }


def test_captures_show_the_report_s_pictures_with_a_warning_below(written):
    shown = top_slices(written.prediction.pictures, written.prediction.result["person"]["label"])
    for i, capture in zip(shown, written.captures, strict=True):
        picture = composite(layers(written.prediction.pictures[i]), HEAT_OPACITY)
        pixels = capture.pixel_array
        height = picture.shape[0]
        np.testing.assert_array_equal(pixels[:height], picture)
        assert 20 < len(pixels) - height < 40
        assert pixels[height:].max() == 255
        assert capture.PatientOrientation == ["L", "P"]
        # What is burnt in identifies nobody.
        assert capture.BurnedInAnnotation == "NO"
        assert capture.PhotometricInterpretation == "RGB"


def test_captures_know_the_size_of_their_pixels(pipeline, series, tmp_path):
    folder = _store(
        series(),
        lambda pixels: pixels.T,
        ImageOrientationPatient=[0, 1, 0, 1, 0, 0],
        PixelSpacing=[4.0, 3.0],
    )
    written = _write(pipeline, folder, tmp_path / "dicom")
    rows_mm, columns_mm = written.captures[0].PixelSpacing
    assert rows_mm == pytest.approx(3.0 * 96 / 512)
    assert columns_mm == pytest.approx(4.0 * 96 / 512)


def test_a_slice_that_says_not_how_it_lies_gets_no_orientation(pipeline, tmp_path):
    path = write_dicom(
        tmp_path / "1.dcm",
        draw_chest(),
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        StudyInstanceUID=PATIENT["StudyInstanceUID"],
    )
    written = _write(pipeline, path, tmp_path / "dicom", lambda name: pydicom.dcmread(path))
    assert not written.captures[0].PatientOrientation
    assert "PixelSpacing" not in written.captures[0]
    require_valid(written.folder)


def test_boxes_below_the_report_s_score_are_left_out(pipeline, series, tmp_path):
    prediction = pipeline.predict(series(), with_instances=True)
    result = copy.deepcopy(prediction.result)
    for row in result["slices"]:
        row["boxes"][0]["score"] = LESION_BOX_MIN_PROBABILITY + 0.01
        row["boxes"][1]["score"] = LESION_BOX_MIN_PROBABILITY
    (tmp_path / "some").mkdir()
    write_objects(tmp_path / "some", result, prediction.pictures, prediction.instances)
    report = hd.sr.srread(tmp_path / "some" / "report.dcm")
    regions = report.content.get_planar_roi_measurement_groups()
    assert len(regions) == len(result["slices"])
    # A person without any is a report, too.
    for row in result["slices"]:
        row["boxes"] = []
    (tmp_path / "none").mkdir()
    write_objects(tmp_path / "none", result, prediction.pictures, prediction.instances)
    require_valid(tmp_path / "none")


@pytest.mark.parametrize("gone", ["removed", "emptied"])
def test_anonymised_files_give_valid_objects(gone, pipeline, series, tmp_path):
    folder = series(**PATIENT)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        for keyword in PATIENT.keys() - {"StudyInstanceUID"}:
            if gone == "removed":
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, None)
        dataset.PatientIdentityRemoved = "YES"
        method = pydicom.Dataset()
        method.CodeValue, method.CodingSchemeDesignator = "113100", "DCM"
        method.CodeMeaning = "Basic Application Confidentiality Profile"
        dataset.DeidentificationMethodCodeSequence = [method]
        dataset.save_as(file)
    written = _write(pipeline, folder, tmp_path / "dicom")
    for made in (written.report, *written.captures):
        assert made.PatientName == made.PatientID == made.StudyDate == ""
        assert made.PatientIdentityRemoved == "YES"
        assert made.DeidentificationMethod == method.CodeMeaning
    require_valid(written.folder)


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "MÜLLER^JÜRGEN"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "Иванов^Пётр"),
    ],
)
def test_names_of_every_script_survive(charset, name, pipeline, series, tmp_path):
    folder = series(SpecificCharacterSet=charset, PatientName=name)
    written = _write(pipeline, folder, tmp_path / "dicom")
    for made in (written.report, *written.captures):
        assert made.SpecificCharacterSet == "ISO_IR 192"
        assert str(made.PatientName) == name
    require_valid(written.folder)


def test_what_breaks_dicom_s_rules_is_passed_on_without_a_message(
    pipeline, series, tmp_path, capsys
):
    odd = {"PatientName": "Bono", "PatientID": "x" * 70, "StudyDate": "04.03.2021"}
    with pydicom.config.disable_value_validation():
        folder = series(**odd, PatientSex="female")
        written = _write(pipeline, folder, tmp_path / "dicom")
        assert {keyword: written.report.get(keyword) for keyword in odd} == odd
        assert written.captures[0].PatientSex == "female"
    printed = capsys.readouterr()
    assert "Bono" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("label", "scheme", "value"),
    [
        ("COVID-19", "SCT", "840539006"),
        ("covid_19", "SCT", "840539006"),
        ("bacterial", "SCT", "53084003"),
        ("Bacterial pneumonia", "SCT", "53084003"),
        ("healthy", "SCT", "17621005"),
        ("NORMAL", "SCT", "17621005"),
        ("cap", "99DRENETJAX", "L:cap"),
        ("abnormal", "99DRENETJAX", "L:abnormal"),
        ("肺炎", "99DRENETJAX", "L:肺炎"),
    ],
)
def test_labels_have_codes(label, scheme, value):
    code = structured_report.label_code(label)
    assert (code.scheme_designator, code.value) == (scheme, value)


def test_labels_of_any_length_give_valid_reports(pipeline, series, tmp_path):
    prediction = pipeline.predict(series(), with_instances=True)
    result = copy.deepcopy(prediction.result)
    labels = ["a\\b", "a label of more than sixteen letters", "x" * 200]
    result["person"] = {
        "label": labels[0],
        "probabilities": dict(zip(labels, (0.5, 0.3, 0.2), strict=True)),
        "n_slices": 1,
    }
    (tmp_path / "dicom").mkdir()
    pictures = [
        dataclasses.replace(picture, probabilities=result["person"]["probabilities"])
        for picture in prediction.pictures
    ]
    write_objects(tmp_path / "dicom", result, pictures, prediction.instances)
    require_valid(tmp_path / "dicom")
    report = hd.sr.srread(tmp_path / "dicom" / "report.dcm")
    (group,) = report.content.get_image_measurement_groups()
    assert len({measurement.name.value for measurement in group.get_measurements()}) == 3


def test_only_dicom_of_one_patient_can_be_filed(pipeline, series, tmp_path):
    folder = series(**PATIENT)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for picture in pipeline.predict(folder).pictures:
        cv2.imwrite(str(pictures / f"{picture.index:03d}.png"), picture.source)
    assert pipeline.predict(pictures).instances == ()
    with pytest.raises(InputError, match="no DICOM, whose patient and study are not known"):
        pipeline.predict(pictures, with_instances=True)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for file in other.iterdir():
        change(file, PatientID="HOSP-2")
    with pytest.raises(InputError, match="more than one patient") as error:
        pipeline.predict([folder, other], with_instances=True)
    assert "HOSP" not in str(error.value)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
def test_a_source_that_nothing_can_refer_to_is_refused(keyword, pipeline, series):
    folder = series(**PATIENT)
    for file in list(folder.iterdir()):
        dataset = pydicom.dcmread(file)
        delattr(dataset, keyword)
        dataset.save_as(folder / f"ERIKA_{file.name}", enforce_file_format=False)
        file.unlink()
    assert pipeline.predict(folder).result["slices"]
    with pytest.raises(InputError, match=f"without {keyword}") as error:
        pipeline.predict(folder, with_instances=True)
    assert "ERIKA" not in str(error.value)


def test_slices_with_one_instance_uid_are_refused_for_the_pacs_alone(pipeline, series):
    folder = series(**PATIENT)
    for file in folder.iterdir():
        change(file, SOPInstanceUID="1.2.3")
    assert pipeline.predict(folder).result["slices"]
    with pytest.raises(InputError, match="slices with the same SOPInstanceUID"):
        pipeline.predict(folder, with_instances=True)


def test_nothing_identifies_the_patient_unless_it_is_asked_for(series, ct_settings, pipeline):
    folder = series(**PATIENT)
    secrets = [value.encode() for key, value in PATIENT.items() if key != "PatientSex"]
    plain = pickle.dumps(prepare_person([folder], ct_settings))
    asked = pickle.dumps(prepare_person([folder], ct_settings, with_instances=True))
    for secret in secrets:
        assert secret not in plain
        assert secret in asked
    shown = repr(dataclasses.replace(pipeline.predict(folder, with_instances=True), pictures=()))
    assert "instances=" in shown
    assert not any(secret.decode() in shown for secret in secrets)


def test_without_highdicom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"pip install 'drenet_jax\[pacs\]'"):
        require_highdicom()


def test_predict_writes_both_folders_and_only_one_names_the_patient(
    series, tmp_path, command, trained
):
    folder = series(**PATIENT)
    for file in list(folder.iterdir()):
        file.rename(folder / f"ERIKA_{file.name}")
    done = command(
        "predict",
        f"--workdir={trained}",
        f"--input={folder}",
        f"--out={tmp_path / 'out'}",
        f"--dicom_out={tmp_path / 'dicom'}",
    )
    assert done.returncode == 0, done.stderr
    _require_named(tmp_path / "dicom" / "report.dcm")
    assert [file.name for file in sorted((tmp_path / "dicom").iterdir())] == [
        "capture_01.dcm",
        "capture_02.dcm",
        "capture_03.dcm",
        "report.dcm",
    ]
    output = (done.stdout + done.stderr).encode()
    texts = [output, *(file.read_bytes() for file in sorted((tmp_path / "out").iterdir()))]
    assert len(texts) == 3
    secrets = [value for key, value in PATIENT.items() if key != "PatientSex"]
    for secret in (*secrets, "MUSTERFRAU", "ERIKA", "OTTO", "1.2.276.0.7230010"):
        assert not any(secret.encode() in text for text in texts), secret


def _require_named(file: Path) -> None:
    # The test above can fail: what it seeks is in the files.
    assert b"MUSTERFRAU^ERIKA" in file.read_bytes()


def _refused(command, tmp_path, *flags: str) -> str:
    before = sorted(tmp_path.rglob("*"))
    done = command("predict", *flags)
    assert done.returncode == 2, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    (output,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return output


def test_predict_refuses_a_picture_for_the_pacs_and_writes_nothing(tmp_path, command, trained):
    cv2.imwrite(str(tmp_path / "1.png"), window(draw_chest(), -600, 1500))
    output = _refused(
        command,
        tmp_path,
        f"--workdir={trained}",
        f"--input={tmp_path / '1.png'}",
        f"--out={tmp_path / 'out'}",
        f"--dicom_out={tmp_path / 'dicom'}",
    )
    assert "1.png holds slices that are no DICOM" in output


def test_predict_keeps_its_two_folders_apart(tmp_path, command, trained):
    output = _refused(
        command,
        tmp_path,
        f"--workdir={trained}",
        f"--input={tmp_path}",
        f"--out={tmp_path / 'out'}",
        f"--dicom_out={tmp_path / 'out' / 'dicom'}",
    )
    assert "are nested" in output
