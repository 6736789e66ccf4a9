"""Pictures whose EXIF turns them: upright for the model, as stored for boxes."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from ct.conftest import draw_chest
from PIL import Image, ImageOps

from drenet_jax.ct.discovery import open_series
from drenet_jax.ct.image_files import read_orientation, read_picture
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.window import window

ORIENTATION = 0x0112
CHEST = window(draw_chest()[:120], -600, 1500)
CHEST[50:62, 30:44] = 200  # not mirrored


def stored_as(image: np.ndarray, orientation: int) -> np.ndarray:
    """The rows and columns that a file with this EXIF orientation stores of an upright image."""
    for i in range(8):
        other = np.rot90(image.T if i >= 4 else image, i % 4)
        if np.array_equal(np.asarray(shown(Image.fromarray(other), orientation)), image):
            return np.ascontiguousarray(other)
    raise AssertionError(orientation)


def shown(picture: Image.Image, orientation: int) -> Image.Image:
    """What a viewer shows, by Pillow."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stream = io.BytesIO()
    picture.save(stream, "png", exif=exif)
    return ImageOps.exif_transpose(Image.open(stream))


def write(path: Path, image: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    quality = {"quality": 100} if path.suffix == ".jpg" else {}
    Image.fromarray(stored_as(image, orientation)).save(path, exif=exif, **quality)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_and_boxes_stay_those_of_the_file(
    orientation, suffix, tmp_path, ct_settings
):
    for i in range(3):
        write(tmp_path / f"{i}{suffix}", CHEST, orientation)
    in_file = cv2.imread(str(tmp_path / f"0{suffix}"), cv2.IMREAD_UNCHANGED)
    assert in_file.shape == stored_as(CHEST, orientation).shape
    prepared = prepare_person([tmp_path], ct_settings)
    assert len(prepared.kept) == 3
    note = "3 pictures were turned as EXIF says; boxes are in pixels as the files store them"
    assert prepared.notes == (() if orientation == 1 else (note,))
    for slice_ in prepared.kept:
        np.testing.assert_allclose(slice_.source, CHEST, atol=0 if suffix == ".png" else 8)
        assert slice_.file_size == in_file.shape
        y0, x0, y1, x1 = slice_.file_box
        top, left, bottom, right = slice_.source_box
        np.testing.assert_array_equal(
            slice_.orientation.to_canonical(in_file[y0:y1, x0:x1]),
            slice_.source[top:bottom, left:right],
        )


def test_a_series_may_hold_pictures_that_are_turned_in_different_ways(tmp_path, ct_settings):
    for i, orientation in enumerate((1, 6, 8, 3)):
        write(tmp_path / f"{i}.png", CHEST, orientation)
    prepared = prepare_person([tmp_path], ct_settings)
    for slice_ in prepared.kept:
        np.testing.assert_array_equal(slice_.source, CHEST)
    assert [slice_.file_size for slice_ in prepared.kept] == [(120, 128), (128, 120)] + [
        (128, 120),
        (120, 128),
    ]
    assert prepared.notes[0].startswith("3 pictures were turned")


def test_a_single_picture_is_turned_too(tmp_path, ct_settings):
    path = write(tmp_path / "a.jpg", CHEST, 6)
    prepared = prepare_person([path], ct_settings)
    assert prepared.kept[0].file_size == (128, 120)
    assert prepared.kept[0].source.shape == (120, 128)
    assert "1 picture was turned as EXIF says" in prepared.notes[0]


def test_exif_that_is_damaged_or_says_nothing_turns_nothing(tmp_path):
    data = write(tmp_path / "a.jpg", CHEST, 6).read_bytes()
    at = data.index(b"Exif")
    for damaged in (data[: at + 6] + bytes(20) + data[at + 26 :], data.replace(b"Exif", b"exif")):
        assert not any(read_orientation(damaged))
        assert read_picture(damaged).shape == (128, 120)
    assert not any(read_orientation(write(tmp_path / "b.png", CHEST, 1).read_bytes()))


def test_the_turn_is_known_without_reading_the_slice_again(tmp_path):
    path = write(tmp_path / "a.png", CHEST, 8)
    series = open_series(path)
    assert tuple(series.orientation_of(0)) == (True, True, False)
    np.testing.assert_array_equal(series.read(0), CHEST)
