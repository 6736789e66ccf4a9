"""Values that are no HU, and no window that shows the lungs, are put right or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from ct.conftest import draw_chest, draw_lungs, write_dicom
from ct.test_volumes import LPS, steps_mm, stored, to_ras, write_nifti

from drenet_jax.ct import hu_checks, sampling
from drenet_jax.ct.discovery import open_series
from drenet_jax.ct.lungs import segmentation
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.sources import CtError
from drenet_jax.ct.window import window
from drenet_jax.phantoms.phantom import make_phantom

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.exists(), reason=f"the real CT data are not in {DATA}; see README of shared/data"
)

N = 4
CHEST = draw_chest()


def lung_window(hu: np.ndarray) -> np.ndarray:
    return window(hu.astype(np.float32), -600, 1500)


def write_pngs(folder: Path, images) -> Path:
    for i, image in enumerate(images):
        assert cv2.imwrite(str(folder / f"{i}.png"), image)
    return folder


def write_volume(path: Path, hu: np.ndarray, dtype: type, **options) -> Path:
    array = stored(hu, *LPS).astype(dtype)
    write_nifti(path, array, sform_mm=to_ras(steps_mm(*LPS)), **options)
    return path


def sources(path: Path, ct_settings) -> list[np.ndarray]:
    return [slice_.source for slice_ in prepare_person([path], ct_settings).kept]


def assert_is(path: Path, hu, ct_settings) -> None:
    slices = sources(path, ct_settings)
    assert len(slices) == len(hu)
    for slice_, expected in zip(slices, hu, strict=True):
        np.testing.assert_array_equal(slice_, lung_window(expected))


def assert_refused(path: Path, text: str, ct_settings) -> None:
    with pytest.raises(CtError) as raised:
        prepare_person([path], ct_settings)
    assert text in raised.value.why


# Integers with and without a sign


@pytest.mark.parametrize("padding_hu", [-1000, -2000, -3024])
def test_hu_wrapped_into_unsigned_pngs_are_unwrapped(padding_hu, tmp_path, ct_settings):
    hu = CHEST.copy()
    hu[:6] = padding_hu
    wrapped = hu.astype(np.int16).view(np.uint16)
    assert wrapped.max() > 60_000
    write_pngs(tmp_path, [wrapped] * N)
    assert_is(tmp_path, [np.maximum(hu, -1024)] * N, ct_settings)


def test_hu_wrapped_into_an_unsigned_volume_are_unwrapped(tmp_path, ct_settings):
    hu = np.stack([CHEST] * N)
    path = write_volume(tmp_path / "ct.nii", hu.astype(np.int16).view(np.uint16), np.uint16)
    assert_is(path, hu, ct_settings)


def test_bone_of_twelve_bits_that_was_given_a_sign_is_put_back(tmp_path, ct_settings):
    hu = CHEST.copy()
    hu[84:88, 62:67] = 1400  # in the spine
    hu[:4] = -2000  # padding at the edge stays padding
    raw = (np.maximum(hu, -1024) + 1024).astype(np.int32)
    signed = np.where(raw >= 2048, raw - 4096, raw) - 1024
    assert signed.min() < -2000
    signed[:4] = -2000
    np.testing.assert_array_equal(hu_checks.unwrapped(signed.astype(np.float32)), hu)
    path = write_volume(tmp_path / "ct.nii", np.stack([signed] * N), np.int16)
    assert_is(path, [np.maximum(hu, -1024)] * N, ct_settings)


def test_metal_and_its_shadows_are_left_as_they_are():
    hu = CHEST.copy()
    hu[84:88, 62:67] = 3071
    hu[86, 70:74] = -1500
    np.testing.assert_array_equal(hu_checks.unwrapped(hu), hu)


# Offset and scale


def test_pngs_of_hu_and_1000_are_known_from_those_of_hu_and_1024(tmp_path, ct_settings):
    noise = np.random.default_rng(0).normal(0, 12, CHEST.shape)
    hu = np.round(np.where(CHEST < -900, CHEST + noise, CHEST))
    for offset in (1000, 1024):
        folder = tmp_path / str(offset)
        folder.mkdir()
        write_pngs(folder, [np.maximum(hu + offset, 0).astype(np.uint16)] * N)
        prepared = prepare_person([folder], ct_settings)
        assert prepared.notes == (("the pictures hold HU + 1000",) if offset == 1000 else ())
        for slice_ in prepared.kept:
            expected = lung_window(np.maximum(hu, -offset))
            np.testing.assert_array_equal(slice_.source, expected)


def test_pngs_of_hu_and_1000_without_noise_are_known_by_their_muscle(tmp_path, ct_settings):
    write_pngs(tmp_path, [(CHEST + 1000).astype(np.uint16)] * N)
    assert_is(tmp_path, [CHEST] * N, ct_settings)


def padded(hu: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:128, :128]
    return np.where((x - 64) ** 2 + (y - 64) ** 2 > 64**2, np.float32(-2000), hu)


WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "1000 added, and padding": lambda hu: padded(hu + 1000),
    "1024 added, and padding": lambda hu: padded(hu + 1024),
    "1000 taken away": lambda hu: hu - 1000,
    "200 added": lambda hu: hu + 200,
    "200 taken away": lambda hu: hu - 200,
    "doubled": lambda hu: 2 * hu,
    "halved": lambda hu: hu / 2,
    "halved, and padding": lambda hu: padded(hu / 2),
    "tenfold": lambda hu: 10 * hu,
    "twelve bits without a sign": lambda hu: np.where(hu < 0, hu + 4096, hu),
    "stretched to twelve bits": lambda hu: (hu - hu.min()) / np.ptp(hu) * 4095 - 1024,
    "a window from 0 to 1": lambda hu: lung_window(hu) / 255,
    "a window from 0 to 255": lambda hu: lung_window(hu).astype(np.float32),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_that_are_no_hu_are_refused(name, tmp_path, ct_settings):
    wrong = WRONG[name](CHEST).round(3)
    path = write_volume(tmp_path / "ct.nii", np.stack([wrong] * N), np.float32)
    assert_refused(path, "no HU of a chest", ct_settings)
    with np.errstate(invalid="ignore"):
        write_dicom(tmp_path / "0.dcm", np.clip(wrong, -32768, 32767))
    assert_refused(tmp_path / "0.dcm", "no HU of a chest", ct_settings)


@pytest.mark.parametrize("name", [name for name in WRONG if "200" not in name])
def test_values_of_phantoms_that_are_no_hu_are_refused(name):
    images = phantom_slices("bacterial", 7)
    wrong = [np.maximum(WRONG[name](hu), -1024).astype(np.float32) for hu in images]
    reason = hu_checks.reason_not_hu(wrong)
    reason = reason or hu_checks.reason_not_lung_hu(
        wrong, segmentation.find_lungs_in_series(wrong, from_feet=True)
    )
    assert "no HU of a chest" in reason


def phantom_slices(label: str, seed: int) -> list[np.ndarray]:
    volume = make_phantom(label, seed, 128, "AB"[seed % 2]).volume_hu
    return [volume[i].astype(np.float32) for i in sampling.sample_uniform(len(volume), 15)]


@pytest.mark.parametrize("label", ["COVID-19", "bacterial", "healthy"])
@pytest.mark.parametrize("seed", [0, 1])
def test_phantoms_have_hu(label, seed):
    images = phantom_slices(label, seed)
    masks = segmentation.find_lungs_in_series(images, from_feet=True)
    assert hu_checks.reason_not_hu(images) == hu_checks.reason_not_lung_hu(images, masks) == ""
    for image in images:
        assert hu_checks.reason_not_hu([image]) == ""
        # A calibration that is a little off, and contrast medium.
        assert hu_checks.reason_not_hu([image + 15]) == hu_checks.reason_not_hu([image - 15]) == ""


def test_white_lungs_and_metal_have_hu(tmp_path):
    white = np.where(draw_lungs(), np.float32(20), CHEST)
    white[40:50, 60:70] = 3071
    assert hu_checks.reason_not_hu([white]) == ""


@needs_data
@pytest.mark.parametrize("name", ["CAP", "COVID-19", "Normal"])
def test_real_series_have_hu_and_show_their_lungs_in_a_window(name):
    series = open_series(DATA / "covid_ct_md" / name)
    images = [series.read(i) for i in sampling.sample_uniform(len(series), 15)]
    masks = segmentation.find_lungs_in_series(images, from_feet=True)
    assert hu_checks.reason_not_hu(images) == hu_checks.reason_not_lung_hu(images, masks) == ""
    assert hu_checks.restored_hu(images)[1] == ""
    (restored_hu, note) = hu_checks.restored_hu([np.maximum(image - 24, -1024) for image in images])
    assert note == "the pictures hold HU + 1000"
    np.testing.assert_array_equal(restored_hu[7], np.maximum(images[7], -1000))
    for level, width, expected in (
        (-600, 1500, ""),
        (-500, 1000, ""),
        (-200, 2400, ""),
        (40, 400, "a soft-tissue window"),
        (-160, 1000, "a soft-tissue window"),
    ):
        pictures = [window(image, level, width) for image in images]
        assert_window(pictures, expected)
        if not expected:
            assert_window([255 - picture for picture in pictures], "greys are inverted")
    assert_window([to_8_bits(image) for image in images], "brighter in some than in others")


def to_8_bits(hu: np.ndarray) -> np.ndarray:
    return ((hu - hu.min()) / np.ptp(hu) * 255).astype(np.uint8)


def assert_window(pictures, expected: str) -> None:
    masks = segmentation.find_lungs_in_series(pictures, from_feet=False)
    reason = hu_checks.reason_not_windowed(pictures, masks)
    assert expected in reason
    assert bool(expected) == bool(reason)


# Windows


def test_a_soft_tissue_window_is_refused(tmp_path, ct_settings):
    write_pngs(tmp_path, [window(CHEST, 40, 400)] * N)
    assert_refused(tmp_path, "a soft-tissue window (91% of the lungs black", ct_settings)


def test_a_single_picture_in_a_soft_tissue_window_is_refused(tmp_path, ct_settings):
    write_pngs(tmp_path, [window(CHEST, 40, 400)])
    assert_refused(tmp_path / "0.png", "a soft-tissue window", ct_settings)


def test_inverted_greys_are_refused(tmp_path, ct_settings):
    pictures = [255 - lung_window(hu) for hu in phantom_slices("healthy", 2)]
    write_pngs(tmp_path, pictures)
    assert_refused(tmp_path, "greys are inverted", ct_settings)
    assert_refused(tmp_path / "7.png", "greys are inverted", ct_settings)


def test_pictures_of_16_bits_that_are_each_stretched_are_refused(tmp_path, ct_settings):
    pictures = []
    for i, hu in enumerate(phantom_slices("healthy", 2)[3:11]):
        hu[60:62, 60:62] = 700 + 40 * i  # the brightest value is another in each
        pictures.append(((hu - hu.min()) / np.ptp(hu) * 65535).astype(np.uint16))
    write_pngs(tmp_path, pictures)
    assert_refused(tmp_path, "pictures", ct_settings)


def test_pictures_of_8_bits_that_are_each_stretched_are_refused(tmp_path, ct_settings):
    pictures = []
    for i, hu in enumerate(phantom_slices("healthy", 2)[3:11]):
        hu[60:62, 60:62] = 700 + 60 * i
        pictures.append(to_8_bits(hu))
    write_pngs(tmp_path, pictures)
    assert_refused(tmp_path, "brighter in some than in others", ct_settings)


@needs_data
def test_of_the_pictures_of_covid_ct_those_in_a_soft_tissue_window_are_refused():
    reasons = []
    for path in sorted((DATA / "covid_ct" / "images").iterdir())[::6]:
        image = open_series(path).read(0)
        mask = segmentation.find_lungs(image)
        why = hu_checks.reason_not_windowed([image], [mask])
        reasons.append(why)
        if why:
            assert "a soft-tissue window" in why
            assert np.median(image[mask]) <= 4
    assert len(reasons) > 80
    assert sum(map(bool, reasons)) <= 0.08 * len(reasons)
