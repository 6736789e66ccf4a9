"""Slices of two stacks in one folder: those of one are taken, or none."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from ct.conftest import draw_chest, write_dicom
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from drenet_jax.ct.discovery import open_series
from drenet_jax.ct.sources import CtError

SIZE_PX = 64


def chests(n: int, spacing_mm: float, person: int) -> list[np.ndarray]:
    """n slices of one person: lungs grow and shrink along the body, and a scanner's noise."""
    rng = np.random.default_rng(person)
    # No slice above the widest one is like one below it: the lungs grow slowly and end at once.
    heights = np.minimum(0.3 + np.arange(n) * spacing_mm / 100, 0.9)
    scales = (1.5 - 0.3 * person) * (1 - heights**2) * (heights + 0.4)
    # Persons lie differently on the table: their bodies overlap by two thirds.
    return [
        np.roll(draw_chest(SIZE_PX, lung_scale=scale), 9 * person, 1)
        + rng.normal(0, 8, (SIZE_PX,) * 2)
        for scale in scales
    ]


IDENTIFIERS = {
    "PatientID": lambda stack, i: f"P{stack}{i}",
    "StudyInstanceUID": lambda stack, i: generate_uid(entropy_srcs=["study", stack, str(i)]),
    "SeriesInstanceUID": lambda stack, i: generate_uid(entropy_srcs=["series", stack, str(i)]),
    "FrameOfReferenceUID": lambda stack, i: generate_uid(entropy_srcs=["frame", stack, str(i)]),
    "SeriesNumber": lambda stack, i: (ord(stack) - 64) * 100 + (i if i != "" else 0),
    "AcquisitionNumber": lambda stack, i: (ord(stack) - 64) * 100 + (i if i != "" else 0),
}
MODES = ("shared", "own", "deleted", "per slice")


def identifier(keyword: str, mode: str, stack: str, i: int) -> object:
    make = IDENTIFIERS[keyword]
    if mode == "deleted":
        return None
    return {"shared": make("A", ""), "own": make(stack, ""), "per slice": make(stack, i)}[mode]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How two stacks are mixed."""

    n_slices: tuple[int, int]
    spacing_mm: float
    offset_mm: float
    is_reversed: bool
    modes: dict[str, str]
    has_numbers: bool
    order: list[int]


@st.composite
def mixtures(draw) -> Mixture:
    n_slices = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    spacing_mm = draw(st.sampled_from([1.0, 2.5, 5.0]))
    offset = draw(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0, 3.0, 3.5, n_slices[0] + 0.0]))
    return Mixture(
        n_slices=n_slices,
        spacing_mm=spacing_mm,
        offset_mm=offset * spacing_mm,
        is_reversed=draw(st.booleans()),
        modes={keyword: draw(st.sampled_from(MODES)) for keyword in IDENTIFIERS},
        has_numbers=draw(st.booleans()),
        order=draw(st.permutations(range(sum(n_slices)))),
    )


def write_mixture(folder: Path, mixture: Mixture) -> dict[str, str]:
    """Writes it; returns the stack of each file."""
    stack_of, files = {}, iter(mixture.order)
    for stack, n, person in (("A", mixture.n_slices[0], 0), ("B", mixture.n_slices[1], 1)):
        pictures = chests(n, mixture.spacing_mm, person)
        if stack == "B" and mixture.is_reversed:
            pictures = pictures[::-1]
        for i, hu in enumerate(pictures):
            name = f"{next(files):03d}.dcm"
            place_mm = i * mixture.spacing_mm + (mixture.offset_mm if stack == "B" else 0.0)
            tags = {
                keyword: identifier(keyword, mode, stack, i)
                for keyword, mode in mixture.modes.items()
            }
            written = {keyword: value for keyword, value in tags.items() if value is not None}
            if mixture.has_numbers:
                written["InstanceNumber"] = i + 1
            if tags["SeriesInstanceUID"] is None:
                written["SeriesInstanceUID"] = None
            write_dicom(folder / name, hu, place_mm, **written)
            stack_of[name] = stack
    return stack_of


@given(mixture=mixtures())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_slices_of_one_stack_are_taken_or_none(mixture):
    with tempfile.TemporaryDirectory() as folder:
        stack_of = write_mixture(Path(folder), mixture)
        try:
            series = open_series(Path(folder))
        except CtError:
            return
        # Two or three slices far from each other may be of anybody.
        assume(len(series) > 3 or mixture.offset_mm <= 10)
        assert len({stack_of[name] for name in series.names}) == 1
        # Nothing is dropped without a word.
        assert {*series.names, *(file.name for file in series.excluded)} == set(stack_of)


@given(
    mixture=mixtures(),
    keyword=st.sampled_from(["PatientID", "StudyInstanceUID", "SeriesInstanceUID"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_one_identifier_is_enough_to_take_a_whole_stack(mixture, keyword):
    n_slices = tuple(max(8, n) for n in mixture.n_slices)
    mixture = dataclasses.replace(
        mixture,
        n_slices=n_slices,
        modes={**mixture.modes, keyword: "own"},
        order=list(np.random.default_rng(0).permutation(sum(n_slices))),
    )
    with tempfile.TemporaryDirectory() as folder:
        stack_of = write_mixture(Path(folder), mixture)
        series = open_series(Path(folder))
        (stack,) = {stack_of[name] for name in series.names}
        assert len(series) == n_slices["AB".index(stack)] == max(n_slices)
        assert {*series.names, *(file.name for file in series.excluded)} == set(stack_of)
        assert any("left out" in note for note in series.notes)


@given(mixture=mixtures())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_stack_alone_is_taken_whole_whatever_its_identifiers(mixture):
    n = max(8, sum(mixture.n_slices))
    mixture = dataclasses.replace(mixture, n_slices=(n, 0), order=mixture.order or list(range(n)))
    with tempfile.TemporaryDirectory() as folder:
        stack_of = write_mixture(
            Path(folder), dataclasses.replace(mixture, order=list(range(n))[::-1])
        )
        series = open_series(Path(folder))
        assert set(series.names) == set(stack_of)
        places = [-int(name[:3]) for name in series.names]
        assert places == sorted(places)


# Kinds of mixtures, one by one


def write(folder: Path, name: str, hu: np.ndarray, place_mm: float, **tags: object) -> None:
    write_dicom(folder / f"{name}.dcm", hu, place_mm, **tags)


def first_letters(series) -> set[str]:
    return {name[0] for name in series.names}


def test_two_patients_4_mm_apart_under_one_series_uid_are_parted(tmp_path):
    for stack, person, offset_mm, patient in (("a", 0, 0.0, "A"), ("b", 1, 4.0, "B")):
        for i, hu in enumerate(chests(8, 5.0, person)):
            write(tmp_path, f"{stack}{i}", hu, 5.0 * i + offset_mm, PatientID=patient)
    series = open_series(tmp_path)
    assert first_letters(series) == {"a"}
    assert len(series) == 8
    assert (
        "left out of the series taken: 8 slices, each of another patient than the slices that "
        "are taken" in series.notes
    )


@pytest.mark.parametrize("offset_mm", [2.5, 4.0, 5.0, 40.0])
def test_two_patients_that_no_header_distinguishes_are_refused(tmp_path, offset_mm):
    for stack, person, start_mm in (("a", 0, 0.0), ("b", 1, offset_mm)):
        for i, hu in enumerate(chests(8, 5.0, person)):
            write(tmp_path, f"{stack}{i}", hu, 5.0 * i + start_mm)
    with pytest.raises(CtError, match=r"put the files of one series alone into a folder"):
        open_series(tmp_path)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("AcquisitionNumber", (1, 2)),
        ("TemporalPositionIdentifier", (1, 2)),
        ("FrameOfReferenceUID", ("1.2.3", "1.2.4")),
        ("StudyInstanceUID", ("1.2.3", "1.2.4")),
        ("PatientName", ("A^B", "C^D")),
        ("ConvolutionKernel", ("B70f", "B30f")),
        ("SliceThickness", (1.0, 5.0)),
        ("PixelSpacing", ([0.7, 0.7], [0.8, 0.8])),
        ("SeriesNumber", (3, 4)),
        ("ImageType", (["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "MIP"])),
    ],
)
@pytest.mark.parametrize("uid", ["1.2.3.4", ""])
@pytest.mark.parametrize("offset_mm", [0.0, 2.5])
def test_phases_and_reconstructions_are_parted(tmp_path, keyword, values, uid, offset_mm):
    for stack, start_mm, value in zip("ab", (0.0, offset_mm), values, strict=True):
        for i, hu in enumerate(chests(7, 5.0, 0)):
            tags = {keyword: value, "SeriesInstanceUID": uid}
            write(tmp_path, f"{stack}{i}", hu, 5.0 * i + start_mm, **tags)
    series = open_series(tmp_path)
    assert first_letters(series) == {"a"}
    assert len(series) == 7
    assert len(series.excluded) == 7
    assert any("left out of the series taken: 7 slices" in note for note in series.notes)


@pytest.mark.parametrize(
    "keyword",
    [
        "SeriesInstanceUID",
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "AcquisitionNumber",
        "AcquisitionTime",
        "PatientID",
        "SeriesNumber",
    ],
)
def test_an_identifier_that_varies_from_slice_to_slice_parts_nothing(tmp_path, keyword):
    for i in range(30):
        value = f"1200{i:02d}" if "Time" in keyword else str(i) if "Number" in keyword else f"1.{i}"
        write(tmp_path, f"{i}", chests(30, 2.0, 0)[i], 2.0 * i, **{keyword: value})
    series = open_series(tmp_path)
    assert series.names == tuple(f"{i}.dcm" for i in range(30))


@pytest.mark.parametrize(
    "keyword", ["SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "AcquisitionNumber"]
)
@pytest.mark.parametrize("n_copies", [1, 3])
def test_a_file_that_is_there_again_hides_no_identifier_that_varies(tmp_path, keyword, n_copies):
    for i, hu in enumerate(chests(20, 2.0, 0)):
        value = str(i) if "Number" in keyword else f"1.2.{i}"
        write(tmp_path, f"{i:02d}", hu, 2.0 * i, **{keyword: value})
    for i in range(n_copies):
        shutil.copyfile(tmp_path / "07.dcm", tmp_path / f"copy{i}.dcm")
    series = open_series(tmp_path)
    assert series.names == tuple(f"{i:02d}.dcm" for i in range(20))
    assert [file.why for file in series.excluded] == (
        ["at the same place as another slice: 07.dcm"] * n_copies
    )


def test_identifiers_that_vary_every_few_slices_part_nothing(tmp_path):
    for i, hu in enumerate(chests(24, 2.0, 0)):
        tags = {"SeriesInstanceUID": f"1.2.{i // 4}", "StudyInstanceUID": "" if i < 3 else f"1.{i}"}
        write(tmp_path, f"{i:02d}", hu, 2.0 * i, **tags)
    assert len(open_series(tmp_path)) == 24


@pytest.mark.parametrize(
    "tags",
    [
        {"PatientID": ("P1", "")},
        {"PatientName": ("DOE^JOHN", "Doe^John^^^")},
        {"PatientSex": ("M", "O")},
        {"SeriesInstanceUID": ("1.2.3", "1.2.4")},
        {"ConvolutionKernel": ("B70f", "")},
        {"PixelSpacing": ([0.7, 0.7], [])},
        {"FrameOfReferenceUID": ("1.2.3", "1.2.4"), "StudyDate": ("20200101", "20200102")},
    ],
)
def test_a_scan_that_is_counted_throughout_is_not_halved(tmp_path, tags):
    for i, hu in enumerate(chests(20, 5.0, 0)):
        values = {keyword: values[i // 10] for keyword, values in tags.items()}
        write(tmp_path, f"{i:02d}", hu, 5.0 * i, InstanceNumber=20 - i, **values)
    assert len(open_series(tmp_path)) == 20


def test_another_series_beside_slices_of_which_each_has_its_own(tmp_path):
    for i, hu in enumerate(chests(20, 2.0, 0)):
        write(tmp_path, f"a{i:02d}", hu, 2.0 * i, SeriesInstanceUID=f"1.2.{i}")
    for i in range(3):
        write(tmp_path, f"b{i}", chests(20, 2.0, 0)[i], 2.0 * i + 1, SeriesInstanceUID="1.3.1")
    series = open_series(tmp_path)
    assert first_letters(series) == {"a"}
    assert len(series) == 20


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "StudyInstanceUID", "SeriesDescription"])
def test_an_identifier_that_was_changed_in_some_slices_parts_nothing(tmp_path, keyword):
    for i, hu in enumerate(chests(20, 2.0, 0)):
        write(
            tmp_path, f"{i:02d}", hu, 2.0 * i, **{keyword: "1.2.4" if i in (3, 4, 11) else "1.2.3"}
        )
    series = open_series(tmp_path)
    assert len(series) == 20
    assert any("differ within the slices that are taken" in note for note in series.notes)


def test_two_patients_one_behind_the_other_are_not_joined(tmp_path):
    for i in range(20):
        hu = chests(20, 5.0, i // 12)[i]
        write(
            tmp_path, f"{'ab'[i // 12]}{i}", hu, 5.0 * i, InstanceNumber=i, PatientID=f"P{i // 12}"
        )
    series = open_series(tmp_path)
    assert first_letters(series) == {"a"}
    assert len(series) == 12


@pytest.mark.parametrize("n_series", [2, 3, 4])
def test_several_reconstructions_of_two_acquisitions_each_are_parted(tmp_path, n_series):
    for number in range(n_series):
        for i, hu in enumerate(chests(12, 5.0, 0)):
            tags = {
                "SeriesInstanceUID": f"1.2.{number}",
                "AcquisitionNumber": 1 + i // 6,
                "ConvolutionKernel": "B70f" if number == 1 else "B30f",
            }
            write(tmp_path, f"{number}{i}", hu, 5.0 * i, **tags)
    series = open_series(tmp_path)
    assert first_letters(series) == {"1"}
    assert len(series) == 12


def test_single_slices_of_several_patients_are_refused(tmp_path):
    for i, place_mm in enumerate((-310.0, -150.0, 0.0, 160.0)):
        tags = {"PatientID": f"P{i}", "SeriesInstanceUID": f"1.2.{i}"}
        write(tmp_path, f"{i}", chests(4, 5.0, 0)[i], place_mm, **tags)
    with pytest.raises(CtError, match="4 slices of which each names another patient"):
        open_series(tmp_path)


@pytest.mark.parametrize("n_slices", [1, 2, 5, 8])
def test_a_folder_of_a_few_slices_of_many_patients_is_refused(tmp_path, n_slices):
    for patient in range(4):
        for i, hu in enumerate(chests(n_slices, 5.0, patient % 2)):
            tags = {"PatientID": f"P{patient}", "SeriesInstanceUID": f"1.2.{patient}"}
            place_mm = 5.0 * i + 60.0 * patient
            write(tmp_path, f"{patient}{i}", hu, place_mm, **tags)
    with pytest.raises(CtError, match="patient"):
        open_series(tmp_path)


def test_a_slice_with_a_wrong_position_is_left_out(tmp_path):
    pictures = chests(24, 2.0, 0)
    for i, hu in enumerate(pictures):
        write(tmp_path, f"{i:02d}", hu, 2.0 * i, InstanceNumber=i)
    for place_mm in (5000.0, 5001.3, -900.0):
        write(tmp_path, "12", pictures[12], place_mm, InstanceNumber=12)
        series = open_series(tmp_path)
        assert series.names == tuple(f"{i:02d}.dcm" for i in range(24) if i != 12)
        assert [(file.name, file.why) for file in series.excluded] == [
            ("12.dcm", "far from all other slices: a wrong position")
        ]


def test_acquisitions_that_follow_each_other_are_one_stack(tmp_path):
    for i, hu in enumerate(chests(12, 5.0, 0)):
        write(tmp_path, f"{i}", hu, 5.0 * i, AcquisitionNumber=1 + i // 4, KVP=100 + i // 6 * 20)
    assert len(open_series(tmp_path)) == 12


def test_two_acquisitions_far_from_each_other_are_one_stack_with_a_note(tmp_path):
    for i, hu in enumerate(chests(12, 5.0, 0)):
        place_mm = 5.0 * i + (100.0 if i >= 7 else 0.0)
        write(tmp_path, f"{i:02d}", hu, place_mm, AcquisitionNumber=1 + i // 7, InstanceNumber=i)
    series = open_series(tmp_path)
    assert len(series) == 12
    assert series.notes[0].startswith("20 slices missing")


def test_acquisitions_that_overlap_and_cover_a_part_each_are_refused(tmp_path):
    for acquisition in range(4):
        for i, hu in enumerate(chests(7, 5.0, 0)):
            place_mm = 5.0 * (5 * acquisition + i)
            write(tmp_path, f"{acquisition}{i}", hu, place_mm, AcquisitionNumber=acquisition)
    with pytest.raises(CtError, match="28 slices of acquisitions that overlap each other"):
        open_series(tmp_path)


def test_the_original_goes_before_a_projection_with_more_slices(tmp_path):
    for i, hu in enumerate(chests(6, 5.0, 0)):
        write(tmp_path, f"a{i}", hu, 5.0 * i)
    for i, hu in enumerate(chests(12, 2.5, 0)):
        tags = {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"], "SeriesInstanceUID": "1.2.3"}
        write(tmp_path, f"b{i}", hu, 2.5 * i, **tags)
    series = open_series(tmp_path)
    assert first_letters(series) == {"a"}
    assert (
        "a stack of 6 slices is taken, not one of 12: its slices are original, not derived"
        in series.notes
    )
    (derived,) = {note for note in open_series(tmp_path, "1.2.3").notes if "derived" in note}
    assert derived == "the slices are derived (MIP), not those that the scanner made"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"SliceThickness": 5.0}, {"SliceThickness": 1.25}),
        ({"ConvolutionKernel": "STANDARD"}, {"ConvolutionKernel": "LUNG"}),
        ({"ConvolutionKernel": "Br36f"}, {"ConvolutionKernel": "Bl57f"}),
        ({"ConvolutionKernel": "FC08"}, {"ConvolutionKernel": "FC52"}),
        ({"ConvolutionKernel": "B"}, {"ConvolutionKernel": "YC"}),
    ],
)
def test_thin_slices_and_lung_kernels_are_preferred(tmp_path, first, second):
    # The better one has one slice less, and comes second by its names and its number.
    for i, hu in enumerate(chests(10, 2.5, 0)):
        write(tmp_path, f"a{i}", hu, 2.5 * i, SeriesInstanceUID="1.2.3", SeriesNumber=2, **first)
    for i, hu in enumerate(chests(9, 2.5, 0)):
        write(tmp_path, f"b{i}", hu, 2.5 * i, SeriesInstanceUID="1.2.4", SeriesNumber=3, **second)
    series = open_series(tmp_path)
    assert first_letters(series) == {"b"}
    assert any("a stack of 9 slices is taken, not one of 10" in note for note in series.notes)


def test_a_few_thin_slices_do_not_replace_a_chest(tmp_path):
    for i, hu in enumerate(chests(10, 5.0, 0)):
        write(tmp_path, f"a{i}", hu, 5.0 * i, SeriesInstanceUID="1.2.3", SliceThickness=5)
    for i, hu in enumerate(chests(12, 1.0, 0)):
        write(tmp_path, f"b{i}", hu, 1.0 * i, SeriesInstanceUID="1.2.4", SliceThickness=1)
    assert first_letters(open_series(tmp_path)) == {"a"}


def test_rounding_of_the_orientation_parts_nothing(tmp_path):
    for i, hu in enumerate(chests(20, 2.5, 0)):
        # Around a border of rounding to two places.
        sin = 0.005 + (i - 10) * 4e-6
        orientation = [1, 0, 0, 0, float(np.sqrt(1 - sin**2)), sin]
        write(tmp_path, f"{i:02d}", hu, 2.5 * i, ImageOrientationPatient=orientation)
    series = open_series(tmp_path)
    assert series.names == tuple(f"{i:02d}.dcm" for i in range(20))
    assert not series.excluded
    assert not series.notes


def test_a_copy_3_micrometres_off_is_a_copy(tmp_path):
    pictures = chests(6, 5.0, 0)
    for i, hu in enumerate(pictures):
        write(tmp_path, f"{i}", hu, 5.0 * i)
    write(tmp_path, "9", pictures[2], 10.003)
    series = open_series(tmp_path)
    assert series.names == tuple(f"{i}.dcm" for i in range(6))
    assert [(file.name, file.why) for file in series.excluded] == [
        ("9.dcm", "at the same place as another slice: 2.dcm")
    ]
    assert not series.notes


def test_every_file_twice_is_the_series_once(tmp_path):
    for i, hu in enumerate(chests(6, 5.0, 0)):
        write(tmp_path / "first", f"{i}", hu, 5.0 * i)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    series = open_series(tmp_path)
    assert series.names == tuple(f"first/{i}.dcm" for i in range(6))
    assert [(file.name, file.why) for file in series.excluded] == [
        (f"second/{i}.dcm", f"at the same place as another slice: first/{i}.dcm") for i in range(6)
    ]


@pytest.mark.parametrize("keyword", ["PixelSpacing", "Rows", "ImagePositionPatient"])
def test_pictures_of_two_frames_of_the_body_are_parted(tmp_path, keyword):
    for i, hu in enumerate(chests(6, 5.0, 0)):
        write(tmp_path, f"a{i}", hu, 5.0 * i)
        tags = {
            "PixelSpacing": {"PixelSpacing": [0.8, 0.8]},
            "Rows": {},
            "ImagePositionPatient": {"ImagePositionPatient": [-120, -150, 5.0 * i + 2.5]},
        }[keyword]
        if i < 5:
            write(tmp_path, f"b{i}", hu[:-8] if keyword == "Rows" else hu, 5.0 * i + 2.5, **tags)
    series = open_series(tmp_path)
    assert first_letters(series) == {"a"}
    assert len(series) == 6
    assert len(series.excluded) == 5


def test_different_slices_at_one_place_are_refused_by_name(tmp_path):
    for i, hu in enumerate(chests(6, 5.0, 0)):
        write(tmp_path, f"{i}", hu, 5.0 * i)
    write(tmp_path, "9", chests(6, 5.0, 1)[2], 10.0)
    with pytest.raises(
        CtError, match=r"different slices at the same place \(2\.dcm and 9\.dcm first"
    ):
        open_series(tmp_path)


def test_a_damaged_copy_does_not_hide_the_good_slice(tmp_path):
    pictures = chests(4, 5.0, 0)
    for i, hu in enumerate(pictures):
        write(tmp_path, f"{i}", hu, 5.0 * i)
    write(tmp_path, "00", pictures[2], 10.0, PixelData=b"cut off!")
    series = open_series(tmp_path)
    assert series.names == ("0.dcm", "1.dcm", "2.dcm", "3.dcm")
    (damaged,) = series.excluded
    assert damaged.name == "00.dcm"
    assert "cannot be decoded" in damaged.why


def test_a_real_series_without_numbers_is_one_and_two_are_refused(shared_data, tmp_path):
    for name, folder in (("a", "CAP/cap001"), ("b", "COVID-19/P001")):
        files = sorted((shared_data / "covid_ct_md" / folder).iterdir())
        headers = [pydicom.dcmread(file) for file in files]
        headers.sort(key=lambda header: header.ImagePositionPatient[2])
        for i, header in enumerate(headers[40:90:2]):
            for keyword in (
                "PatientID",
                "PatientSex",
                "StudyInstanceUID",
                "StudyDate",
                "SeriesInstanceUID",
                "SeriesDescription",
                "FrameOfReferenceUID",
                "AcquisitionNumber",
                "AcquisitionDate",
                "AcquisitionTime",
                "InstanceNumber",
            ):
                if keyword in header:
                    delattr(header, keyword)
            header.PixelSpacing = [0.7, 0.7]
            shift_mm = 2.0 if name == "b" else 0.0
            header.ImagePositionPatient = [-150, -150, 4.0 * i + shift_mm]
            for target in (name, "both"):
                (tmp_path / target).mkdir(exist_ok=True)
                header.save_as(tmp_path / target / f"{name}{i:02d}.dcm")
    for name in "ab":
        assert len(open_series(tmp_path / name)) == 25
        for i in (9, 10, 11, 12):
            (tmp_path / name / f"{name}{i:02d}.dcm").unlink()
        series = open_series(tmp_path / name)
        assert len(series) == 21
        assert series.notes[0].startswith("4 slices missing (spacing 4.0 mm, up to 20.0 mm")
    with pytest.raises(CtError, match="50 slices of two or more stacks that take turns"):
        open_series(tmp_path / "both")


@pytest.mark.parametrize("offset_mm", [1.0, 4.0])
def test_two_patients_numbered_anew_as_one_are_refused_where_their_places_part_them(
    tmp_path, offset_mm
):
    slices = [
        (5.0 * i + start_mm, name, hu)
        for name, person, start_mm in (("a", 0, 0.0), ("b", 1, offset_mm))
        for i, hu in enumerate(chests(8, 5.0, person))
    ]
    for number, (place_mm, name, hu) in enumerate(sorted(slices, key=lambda slice_: slice_[0])):
        write(tmp_path, f"{name}{number}", hu, place_mm, InstanceNumber=number + 1)
    with pytest.raises(CtError, match="16 slices of two or more stacks that take turns"):
        open_series(tmp_path)


def test_an_uneven_series_that_is_numbered_is_one(tmp_path):
    places_mm = [0, 5, 10, 12, 14, 24, 25, 40]
    pictures = chests(41, 1.0, 0)
    for number, place_mm in enumerate(places_mm):
        write(tmp_path, f"{number}", pictures[place_mm], place_mm, InstanceNumber=number + 1)
    assert len(open_series(tmp_path)) == 8
