from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from drenet_jax.ct.prepared_series import filled
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.window import window
from drenet_jax.errors import InputError


@pytest.fixture
def settings(ct_settings):
    return dataclasses.replace(ct_settings, image_size_px=64)


@pytest.fixture
def write_picture(tmp_path, chest_hu):
    def write(name: str, size_px: int = 128, **chest):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), window(chest_hu(size_px, **chest), -600, 1500))
        return file

    return write


def whys(person) -> dict[str, str]:
    return {file.name: file.why for file in person.excluded}


def test_slices_with_at_least_half_of_the_largest_lung_are_kept(write_series, settings):
    # Areas go with the square of the scale: 0.6 is 36%, 0.8 is 64% of the largest.
    person = prepare_person([write_series([0.6, 0.8, 1.0, 0.8, 0.6])], settings)
    assert [slice_.kept for slice_ in person.picked] == [False, True, True, True, False]
    assert [slice_.index for slice_ in person.kept] == [1, 2, 3]
    assert person.n_slices == 5
    assert set(whys(person)) == {"000.dcm", "004.dcm"}
    assert "of the person's largest, below 50%" in whys(person)["000.dcm"]


def test_evenly_spaced_slices_are_picked(write_series, settings):
    settings = dataclasses.replace(settings, slices_per_person=3)
    person = prepare_person([write_series([1.0] * 7)], settings)
    assert [slice_.index for slice_ in person.picked] == [0, 2, 4]
    assert person.n_slices == 7


def test_the_crop_is_the_lungs_box(write_series, chest_hu, chest_lungs, settings):
    (slice_,) = prepare_person([write_series([1.0])], settings).picked
    y0, x0, y1, x1 = slice_.source_box
    rows, columns = (np.flatnonzero(slice_.source_mask.any(axis=axis)) for axis in (1, 0))
    assert (y0, y1) == (rows[0], rows[-1] + 1)
    assert (x0, x1) == (columns[0], columns[-1] + 1)
    wanted_rows = np.flatnonzero(chest_lungs().any(axis=1))
    assert abs(y0 - wanted_rows[0]) <= 1
    assert abs(y1 - wanted_rows[-1] - 1) <= 1
    assert np.array_equal(slice_.source, window(chest_hu(), -600, 1500))
    assert slice_.image.shape == slice_.lung_mask.shape == (64, 64)
    assert slice_.image.dtype == np.uint8
    assert slice_.lung_mask.dtype == bool
    for edge in (
        slice_.lung_mask[0],
        slice_.lung_mask[-1],
        slice_.lung_mask[:, 0],
        slice_.lung_mask[:, -1],
    ):
        assert edge.any()
    assert np.median(slice_.image[slice_.lung_mask]) == window(np.array([[-860]]), -600, 1500)
    assert np.array_equal(slice_.masked, slice_.image * slice_.lung_mask)


def test_single_images_are_kept_whatever_their_lung_area(write_picture, settings):
    paths = [write_picture("big.png"), write_picture("small.png", lung_scale=0.6)]
    person = prepare_person(paths, settings)
    assert [slice_.name for slice_ in person.kept] == ["big.png", "small.png"]
    assert [slice_.index for slice_ in person.kept] == [0, 1]
    assert person.excluded == ()


def test_single_images_may_differ_in_size(write_picture, settings):
    person = prepare_person([write_picture("a.png", 128), write_picture("b.png", 200)], settings)
    assert len(person.kept) == 2


def test_one_dicom_file_is_a_single_image(tmp_path, write_slice, chest_hu, settings):
    file = write_slice(tmp_path / "a.dcm", chest_hu())
    assert [slice_.name for slice_ in prepare_person([file], settings).kept] == ["a.dcm"]


def test_kept_slices_come_in_hu_on_request(write_series, chest_hu, settings):
    folder = write_series([0.3, 1.0, 0.9])
    person = prepare_person([folder], settings, with_hu=True)
    assert [slice_.hu is not None for slice_ in person.picked] == [False, True, True]
    np.testing.assert_array_equal(person.kept[0].hu, np.rint(chest_hu()))
    assert person.kept[0].hu.dtype == np.int16
    (single,) = prepare_person([folder / "001.dcm"], settings, with_hu=True).kept
    np.testing.assert_array_equal(single.hu, person.kept[0].hu)
    assert all(slice_.hu is None for slice_ in prepare_person([folder], settings).picked)


def test_a_picture_in_a_window_has_no_hu(write_picture, settings):
    (slice_,) = prepare_person([write_picture("a.png")], settings, with_hu=True).kept
    assert slice_.hu is None
    assert slice_.pixel_aspect == 1


@pytest.mark.parametrize(
    ("spacing", "cosines", "aspect"),
    [
        ([0.9, 0.6], [1, 0, 0, 0, 1, 0], 1.5),
        ([0.9, 0.6], [0, 1, 0, 1, 0, 0], 1 / 1.5),
        (None, [1, 0, 0, 0, 1, 0], 1),
        ([0.9, 0.0], [1, 0, 0, 0, 1, 0], 1),
        ([90, 0.6], [1, 0, 0, 0, 1, 0], 1),
    ],
)
def test_the_aspect_of_a_pixel_is_that_of_the_upright_slice(
    spacing, cosines, aspect, tmp_path, write_slice, chest_hu, settings
):
    hu = chest_hu() if cosines[0] else chest_hu().T
    tags = {} if spacing is None else {"PixelSpacing": spacing}
    file = write_slice(tmp_path / "a.dcm", hu, ImageOrientationPatient=cosines, **tags)
    (slice_,) = prepare_person([file], settings).kept
    assert slice_.pixel_aspect == pytest.approx(aspect)


def test_a_folder_of_pictures_is_a_series(write_picture, settings):
    for i, scale in ((2, 1.0), (10, 0.5), (1, 0.9)):
        file = write_picture(f"person/im{i}.png", lung_scale=scale)
    person = prepare_person([file.parent], settings)
    assert [slice_.name for slice_ in person.picked] == ["im1.png", "im2.png", "im10.png"]
    assert [slice_.name for slice_ in person.kept] == ["im1.png", "im2.png"]


def test_a_slice_that_cannot_be_decoded_is_excluded_and_the_rest_goes_on(
    write_series, write_slice, chest_hu, settings
):
    folder = write_series([1.0] * 4)
    write_slice(folder / "001.dcm", chest_hu(), 5.0, PixelData=b"damaged!")
    person = prepare_person([folder], settings)
    assert [slice_.name for slice_ in person.kept] == ["000.dcm", "002.dcm", "003.dcm"]
    assert "cannot be decoded" in whys(person)["001.dcm"]
    assert str(folder) not in whys(person)["001.dcm"]


def test_a_bad_picture_among_single_images_is_excluded(write_picture, tmp_path, settings):
    (tmp_path / "notes.png").write_text("notes")
    person = prepare_person([write_picture("a.png"), tmp_path / "notes.png"], settings)
    assert [slice_.name for slice_ in person.kept] == ["a.png"]
    assert set(whys(person)) == {"notes.png"}


def test_a_person_without_lungs_is_no_error(tmp_path, settings):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), noise)
    person = prepare_person([tmp_path / "a.png"], settings)
    (slice_,) = person.picked
    assert person.kept == ()
    assert (slice_.image, slice_.lung_mask, slice_.source_box) == (None, None, None)
    assert not slice_.source_mask.any()
    assert whys(person) == {"a.png": "no lungs found"}


def test_gas_in_the_gut_is_no_lung(tmp_path, write_slice, settings):
    belly = np.full((128, 128), -1000, np.float32)
    cv2.ellipse(belly, (64, 62), (56, 42), 0, 0, 360, 40, cv2.FILLED)
    cv2.circle(belly, (50, 50), 7, -800, cv2.FILLED)
    for i in range(3):
        write_slice(tmp_path / f"{i}.dcm", belly, i)
    person = prepare_person([tmp_path], settings)
    assert set(whys(person).values()) == {"no lungs found"}


def test_every_picked_slice_is_kept_or_excluded(write_series, settings):
    person = prepare_person([write_series([0.3, 0.7, 1.0, 0.75, 0.2])], settings)
    assert {slice_.name for slice_ in person.kept}.isdisjoint(whys(person))
    assert {slice_.name for slice_ in person.picked} == {
        slice_.name for slice_ in person.kept
    } | set(whys(person))


# The caller's mistakes


def test_pictures_of_different_sizes_are_no_series(write_picture, settings):
    folder = write_picture("person/1.png", 128).parent
    write_picture("person/2.png", 200)
    with pytest.raises(InputError, match=r"different sizes \(1\.png and 2\.png\)"):
        prepare_person([folder], settings)


def test_several_series_of_one_person_are_each_picked_and_cropped(
    tmp_path, write_slice, chest_hu, settings
):
    for name, scales in (("first", [0.6, 1.0, 1.0]), ("second", [0.5, 0.8, 0.8])):
        for i, scale in enumerate(scales):
            write_slice(tmp_path / name / f"{i}.dcm", chest_hu(lung_scale=scale), i)
    person = prepare_person([tmp_path / "first", tmp_path / "second"], settings)
    assert person.n_slices == 6
    # Each series has its own largest lung.
    assert [slice_.name for slice_ in person.kept] == ["1/1.dcm", "1/2.dcm", "2/1.dcm", "2/2.dcm"]
    assert set(whys(person)) == {"1/0.dcm", "2/0.dcm"}


def test_a_series_beside_single_images_is_no_fault(write_picture, write_series, tmp_path, settings):
    folder = write_series([1.0, 1.0])
    (tmp_path / "empty").mkdir()
    paths = [folder, write_picture("a.png"), tmp_path / "empty"]
    person = prepare_person(paths, settings)
    assert [slice_.name for slice_ in person.kept] == ["1/000.dcm", "1/001.dcm", "a.png"]
    assert whys(person) == {"empty": "an empty folder"}


def test_a_missing_path_is_refused_among_good_ones(write_picture, tmp_path, settings):
    with pytest.raises(InputError, match=r"gone\.png does not exist"):
        prepare_person([write_picture("1.png"), tmp_path / "gone.png"], settings)


def test_a_colour_photograph_alone_is_refused(tmp_path, settings):
    cv2.imwrite(str(tmp_path / "beach.png"), np.full((99, 99, 3), (200, 120, 10), np.uint8))
    with pytest.raises(InputError, match=r"beach\.png is a colour picture"):
        prepare_person([tmp_path / "beach.png"], settings)


# Fill


def test_the_fill_depends_on_the_seed_and_the_picture_only(write_series, settings):
    first, second = prepare_person([write_series([1.0, 0.8])], settings).kept
    fill = filled(first, settings, 1)
    assert np.array_equal(fill[first.lung_mask], first.image[first.lung_mask])
    assert np.array_equal(fill, filled(first, settings, 1))
    renamed = dataclasses.replace(first, name="other", index=77)
    assert np.array_equal(fill, filled(renamed, settings, 1))
    assert not np.array_equal(fill, filled(first, settings, 2))
    assert not np.array_equal(fill, filled(second, settings, 1))


def test_the_fill_is_the_same_in_another_process(write_series, settings):
    folder = write_series([1.0])
    code = (
        "import hashlib\n"
        "from drenet_jax.ct.prepared_series import filled\n"
        "from drenet_jax.ct.preprocess import prepare_person\n"
        "from drenet_jax.ct.settings import CtSettings\n"
        f"settings = CtSettings.from_dict({settings.to_dict()!r})\n"
        f"(one,) = prepare_person([{str(folder)!r}], settings).kept\n"
        "print(hashlib.sha256(filled(one, settings, 4).tobytes()).hexdigest())\n"
    )
    (slice_,) = prepare_person([folder], settings).kept
    here = hashlib.sha256(filled(slice_, settings, 4).tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


# Real series


@pytest.mark.parametrize(
    "name",
    [
        "covid_ct_md/CAP/cap001",
        "covid_ct_md/COVID-19/P001",
        "covid_ct_md/Normal/normal001",
        "authors_demo/COVID-19/person001",
        "authors_demo/non-COVID-19/person003",
    ],
)
def test_real_persons_keep_the_middle_of_their_chest(shared_data, ct_settings, name):
    person = prepare_person([shared_data / name], ct_settings)
    kept = [place for place, slice_ in enumerate(person.picked) if slice_.kept]
    assert 7 <= len(kept) <= 14
    assert kept == list(range(kept[0], kept[-1] + 1))
    assert len(person.picked) == min(15, person.n_slices)
    for slice_ in person.kept:
        assert slice_.image.shape == (448, 448)
        assert 0.3 < slice_.lung_mask.mean() < 0.9


def test_a_series_that_shows_the_lungs_goes_before_one_of_the_abdomen(
    tmp_path, write_slice, chest_hu, settings
):
    abdomen = chest_hu(lung_scale=0.0, trachea=False)
    for i in range(12):
        tags = {"SeriesInstanceUID": "1.2.3", "SeriesNumber": 2, "InstanceNumber": i}
        write_slice(tmp_path / "in" / f"a{i}", abdomen, 5.0 * i, **tags)
    for i in range(9):
        tags = {"SeriesInstanceUID": "1.2.4", "SeriesNumber": 3, "InstanceNumber": i}
        write_slice(tmp_path / "in" / f"b{i}", chest_hu(), 5.0 * i, **tags)
    person = prepare_person([tmp_path / "in"], settings)
    assert {slice_.name[0] for slice_ in person.kept} == {"b"}
    assert person.n_slices == 9
    assert "left out beside the series taken: series 2 of 12 slices" in person.notes
    assert any("does not show the lungs" in note for note in person.notes)
    # The one that was asked for is taken, though.
    person = prepare_person([tmp_path / "in"], settings, series_uid="1.2.3")
    assert person.kept == ()


def test_the_field_of_view_of_both_lungs_goes_before_that_of_one(
    tmp_path, write_slice, chest_hu, settings
):
    for i in range(9):
        tags = {"SeriesInstanceUID": "1.2.3", "PixelSpacing": [2.6, 2.6], "InstanceNumber": i}
        write_slice(tmp_path / "in" / f"a{i}", chest_hu(), 5.0 * i, **tags)
        tags |= {"SeriesInstanceUID": "1.2.4", "PixelSpacing": [1.3, 1.3], "SliceThickness": 1}
        one_lung = cv2.resize(chest_hu()[20:84, 4:68], (128, 128))
        write_slice(tmp_path / "in" / f"b{i}", one_lung, 5.0 * i, **tags)
    assert {slice_.name[0] for slice_ in prepare_person([tmp_path / "in"], settings).kept} == {"a"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("p1/{}.png", "p2/{}.png"),
        ("anna_{}.png", "bea_{}.png"),
        ("IM-0001-{}.png", "IM-0002-{}.png"),
    ],
)
def test_pictures_of_two_series_are_refused(tmp_path, write_picture, settings, first, second):
    source = write_picture("x.png").read_bytes()
    for pattern in (first, second):
        for i in range(4):
            file = tmp_path / "in" / pattern.format(f"{i:03d}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(source)
    with pytest.raises(InputError, match="name the folder of one series"):
        prepare_person([tmp_path / "in"], settings)


def test_one_dicom_file_beside_many_pictures_is_refused(
    tmp_path, write_picture, write_slice, chest_hu, settings
):
    source = write_picture("x.png").read_bytes()
    write_slice(tmp_path / "in" / "a.dcm", chest_hu())
    for i in range(5):
        (tmp_path / "in" / f"{i}.png").write_bytes(source)
    with pytest.raises(InputError, match="5 pictures beside 1 DICOM slices"):
        prepare_person([tmp_path / "in"], settings)
