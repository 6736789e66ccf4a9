from __future__ import annotations

import shutil

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from drenet_jax.ct.arrays import PADDING_HU
from drenet_jax.ct.discovery import open_series
from drenet_jax.ct.sources import UnreadableSlice, natural
from drenet_jax.errors import InputError

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
OTHER_SERIES = generate_uid(entropy_srcs=["another series"])


def flat(value: float, shape: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.full(shape, value, np.float32)


def why(series, name: str) -> str:
    (reason,) = [file.why for file in series.excluded if file.name == name]
    return reason


# Order


def test_order_follows_the_slice_normal_not_the_file_name(tmp_path, write_slice):
    for name, place in (("1", 30), ("2", -10), ("10", 20), ("a", 0)):
        write_slice(tmp_path / f"{name}.dcm", flat(0), place, InstanceNumber=-place)
    assert open_series(tmp_path).names == ("2.dcm", "a.dcm", "10.dcm", "1.dcm")


@pytest.mark.parametrize("orientation", [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, -1, 0]])
def test_the_first_slice_is_at_the_feet_wherever_the_normal_points(
    tmp_path, write_slice, orientation
):
    for name, place in (("head", 300), ("feet", -200), ("chest", 10)):
        write_slice(tmp_path / name, flat(0), place, ImageOrientationPatient=orientation)
    assert open_series(tmp_path).names == ("feet", "chest", "head")


def test_tilted_slices_are_ordered_along_their_normal(tmp_path, write_slice):
    # The gantry leans by 30 degrees; the table goes up as it moves, so z alone would mislead.
    tilt = [1, 0, 0, 0, np.sqrt(3) / 2, -0.5]
    for name, y, z in (("b", 0, 0), ("a", -30, -5), ("c", 40, 2)):
        write_slice(
            tmp_path / name, flat(0), ImagePositionPatient=[0, y, z], ImageOrientationPatient=tilt
        )
    assert open_series(tmp_path).names == ("a", "b", "c")


def test_pictures_are_in_natural_order(tmp_path):
    for name in ("im10.png", "im2.png", "im1.png"):
        cv2.imwrite(str(tmp_path / name), flat(9).astype(np.uint8))
    series = open_series(tmp_path)
    assert series.names == ("im1.png", "im2.png", "im10.png")
    assert series.are_pictures
    assert series.read(0).dtype == np.uint8


def test_the_real_series_are_ordered_by_z(shared_data):
    folder = shared_data / "covid_ct_md" / "CAP" / "cap001"
    series = open_series(folder)
    # Its names hold the PatientID, so files are called by their numbers in natural order.
    files = sorted(folder.iterdir(), key=lambda file: natural(file.name))
    places = [
        pydicom.dcmread(files[int(name[-4:]) - 1], specific_tags=["SliceLocation"]).SliceLocation
        for name in series.names
    ]
    assert series.is_renamed
    assert len(places) == 168
    assert places == sorted(places)
    assert series.excluded == ()


# Pixels


def test_stored_values_become_hu(tmp_path, write_slice):
    file = write_slice(tmp_path / "a.dcm", flat(500), RescaleSlope=2, RescaleIntercept=-1024)
    hu = open_series(file).read(0)
    assert hu.dtype == np.float32
    assert np.all(hu == -24)


def test_padding_becomes_air(tmp_path, write_slice):
    pixels = flat(40)
    pixels[0, :4] = (-3024, -2000, -1500, 3000)
    file = write_slice(tmp_path / "a.dcm", pixels, PixelPaddingValue=3000)
    hu = open_series(file).read(0)
    assert np.all(hu[0, :4] == PADDING_HU)
    assert np.all(hu[1:] == 40)


def test_a_range_of_padding_becomes_air(tmp_path, write_slice):
    pixels = flat(40)
    pixels[0, :3] = (2990, 2995, 3000)
    file = write_slice(
        tmp_path / "a.dcm", pixels, PixelPaddingValue=3000, PixelPaddingRangeLimit=2990
    )
    assert np.all(open_series(file).read(0)[0, :3] == PADDING_HU)


def test_only_the_asked_slice_is_decoded(tmp_path, write_slice):
    write_slice(tmp_path / "a.dcm", flat(7), 0)
    write_slice(tmp_path / "b.dcm", flat(8), 1, PixelData=b"too short!")
    series = open_series(tmp_path)
    assert np.all(series.read(0) == 7)
    with pytest.raises(UnreadableSlice, match=r"b\.dcm is a DICOM file that cannot be decoded"):
        series.read(1)


def test_lossless_jpeg_is_decoded(shared_data):
    series = open_series(shared_data / "covid_ct_md" / "COVID-19" / "P001")
    hu = series.read(74)
    assert hu.shape == (512, 512)
    assert hu.min() >= PADDING_HU
    assert np.median(hu[200:300, 120:160]) < -700


def test_a_grey_picture_with_coloured_marks_is_read_as_grey(tmp_path):
    picture = np.full((100, 100, 4), 120, np.uint8)
    picture[40:60, 40:60] = (0, 0, 255, 255)
    cv2.imwrite(str(tmp_path / "marked.png"), picture)
    grey = open_series(tmp_path / "marked.png").read(0)
    assert grey.shape == (100, 100)
    assert grey.dtype == np.uint8
    assert grey[0, 0] == 120


def test_a_colour_photograph_is_refused(tmp_path):
    photograph = np.zeros((100, 100, 3), np.uint8)
    photograph[:50] = (235, 180, 120)
    photograph[50:] = (60, 160, 90)
    cv2.imwrite(str(tmp_path / "beach.jpg"), photograph)
    with pytest.raises(UnreadableSlice, match=r"beach\.jpg is a colour picture, no CT slice"):
        open_series(tmp_path / "beach.jpg").read(0)


@pytest.mark.parametrize(("offset", "values"), [(1024, (24, 3000)), (32768, (31768, 34000))])
def test_hu_in_sixteen_bits_are_read(tmp_path, offset, values):
    picture = np.full((64, 64), values[0], np.uint16)
    picture[10:50, 10:50] = values[1]
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    hu = open_series(tmp_path / "a.png").read(0)
    assert hu.dtype == np.float32
    assert (hu[0, 0], hu[20, 20]) == (values[0] - offset, values[1] - offset)


def test_a_window_in_sixteen_bits_becomes_eight(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), ramp)
    picture = open_series(tmp_path / "a.png").read(0)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, np.round(ramp / 257))


def test_sixteen_bits_of_unknown_scale_are_refused_rather_than_guessed(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 8), 20_000, np.uint16))
    with pytest.raises(UnreadableSlice, match="16 bits that is neither HU nor in a window"):
        open_series(tmp_path / "a.png").read(0)


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png"])
def test_a_picture_that_was_cut_off_is_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    file = tmp_path / name
    cv2.imwrite(str(file), noise)
    file.write_bytes(file.read_bytes()[:1500])
    with pytest.raises(UnreadableSlice, match="cannot be decoded"):
        open_series(file).read(0)


# What is no slice


def test_each_file_that_is_no_slice_is_excluded_with_a_reason(tmp_path, write_slice):
    for i in range(3):
        write_slice(tmp_path / f"{i}.dcm", flat(0), i)
    write_slice(tmp_path / "scout.dcm", flat(0), 9, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(tmp_path / "mr.dcm", flat(0), 9, Modality="MR")
    write_slice(tmp_path / "report.dcm", flat(0), 9, Rows=None)
    write_slice(tmp_path / "frames.dcm", flat(0), 9, NumberOfFrames=4)
    write_slice(tmp_path / "dose.dcm", flat(0), 9, SOPClassUID=SECONDARY_CAPTURE)
    write_slice(tmp_path / "lost.dcm", flat(0), 9, ImagePositionPatient=None)
    write_slice(tmp_path / "raw.dcm", flat(0), 9, RescaleIntercept=None, PixelRepresentation=0)
    write_slice(tmp_path / "coronal.dcm", flat(0), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    write_slice(tmp_path / "colour.dcm", flat(0), 9, PhotometricInterpretation="RGB")
    write_slice(tmp_path / "small.dcm", flat(0, (4, 4)), 9)
    write_slice(tmp_path / "copy.dcm", flat(0), 2)
    write_slice(tmp_path / "other.dcm", flat(0), 9, SeriesInstanceUID=OTHER_SERIES)
    (tmp_path / "notes.dcm").write_text("These are notes.")
    (tmp_path / "README").write_text("read me")
    (tmp_path / "nothing").touch()
    cv2.imwrite(str(tmp_path / "thumb.png"), flat(0).astype(np.uint8))
    good = (tmp_path / "0.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(good[: good.index(b"1.2.840.10008.5.1.4.1.1.2") + 10])

    series = open_series(tmp_path)
    assert series.names == ("0.dcm", "1.dcm", "2.dcm")
    assert "localizer" in why(series, "scout.dcm")
    assert "no CT (modality MR)" in why(series, "mr.dcm")
    assert "without an image" in why(series, "report.dcm")
    assert "without the place of each" in why(series, "frames.dcm")
    assert why(series, "dose.dcm") == "a secondary capture"
    assert "without position" in why(series, "lost.dcm")
    assert "no HU" in why(series, "raw.dcm")
    assert "a coronal slice" in why(series, "coronal.dcm")
    assert "not grey" in why(series, "colour.dcm")
    assert "another size" in why(series, "small.dcm")
    assert "same place as another slice: 2.dcm" in why(series, "copy.dcm")
    assert "another series than the one that is taken" in why(series, "other.dcm")
    assert "no DICOM file in spite of its name" in why(series, "notes.dcm")
    assert "not DICOM, PNG" in why(series, "README")
    assert "empty file" in why(series, "nothing")
    assert "beside a DICOM series" in why(series, "thumb.png")
    assert why(series, "cut.dcm")
    assert len(series.excluded) == 17


def test_of_several_series_the_one_with_most_slices_is_taken(tmp_path, write_slice):
    for i in range(2):
        write_slice(tmp_path / "first" / f"{i}", flat(0), i, SeriesInstanceUID=OTHER_SERIES)
    for i in range(3):
        write_slice(tmp_path / "second" / f"{i}", flat(0), i)
    series = open_series(tmp_path)
    assert series.names == ("second/0", "second/1", "second/2")
    assert {file.name for file in series.excluded} == {"first/0", "first/1"}
    assert series.notes == (
        "left out beside the series taken: series without a number of 2 slices",
    )


def test_the_caller_may_take_another_series(tmp_path, write_slice):
    for i in range(2):
        tags = {"SeriesInstanceUID": OTHER_SERIES, "SeriesNumber": 3}
        write_slice(tmp_path / "first" / f"{i}", flat(0), i, **tags)
    for i in range(3):
        write_slice(tmp_path / "second" / f"{i}", flat(0), i, SeriesNumber=2)
    series = open_series(tmp_path, OTHER_SERIES)
    assert series.names == ("first/0", "first/1")
    assert series.notes == ("left out beside the series taken: series 2 of 3 slices",)
    with pytest.raises(
        InputError,
        match=r"series 2 of 3 slices, series 3 of 2 slices\); check --series_uid",
    ):
        open_series(tmp_path, "1.2.3")


def test_files_without_preamble_are_read(tmp_path, write_slice):
    file = write_slice(tmp_path / "a", flat(5))
    file.write_bytes(file.read_bytes()[132:])
    assert np.all(open_series(file).read(0) == 5)


def test_long_headers_are_read(tmp_path, write_slice):
    for i in range(2):
        write_slice(tmp_path / f"{i}.dcm", flat(0), i, LongCodeValue="long " * 30_000)
    assert open_series(tmp_path).names == ("0.dcm", "1.dcm")


def test_a_single_file_needs_no_position(tmp_path, write_slice):
    file = write_slice(tmp_path / "a.dcm", flat(5), ImagePositionPatient=None)
    assert open_series(file).names == ("a.dcm",)


# The caller's mistakes


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(InputError, match="gone does not exist"):
        open_series(tmp_path / "gone")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="is an empty folder"):
        open_series(tmp_path)


def test_a_text_file_called_dcm_is_refused_alone_and_in_a_folder(tmp_path):
    file = tmp_path / "a.dcm"
    file.write_text("not a picture " * 50)
    with pytest.raises(InputError, match=r"a\.dcm is no DICOM file in spite of its name"):
        open_series(file)
    with pytest.raises(InputError, match=r"holds no CT slice \(a\.dcm: no DICOM file"):
        open_series(tmp_path)


def test_a_damaged_real_file_does_not_hide_the_others(shared_data, tmp_path):
    source = shared_data / "covid_ct_md" / "Normal" / "normal001"
    names = sorted((file.name for file in source.iterdir()), key=natural)[:3]
    for name in names:
        shutil.copyfile(source / name, tmp_path / name)
    (tmp_path / names[2]).write_bytes((source / names[2]).read_bytes()[:40_000])
    series = open_series(tmp_path)
    # The names hold the PatientID.
    assert sorted(series.names) == ["file 0001", "file 0002", "file 0003"]
    for index, name in enumerate(series.names):
        if name == "file 0003":
            # Another decoder than the one we name makes up what is missing.
            with pytest.raises(UnreadableSlice, match="cannot be decoded"):
                series.read(index)
        else:
            assert series.read(index).shape == (512, 512)
