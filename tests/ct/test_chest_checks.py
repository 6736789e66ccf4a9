"""A chest that does not lie as it should is refused; one that does is not."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from ct.conftest import write_dicom
from ct.test_volumes import write_nifti

from drenet_jax.ct import chest_checks, sampling
from drenet_jax.ct.discovery import open_series
from drenet_jax.ct.lungs import segmentation
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.sources import CtError
from drenet_jax.ct.window import window
from drenet_jax.phantoms.phantom import make_phantom

DATA = Path(__file__).parents[3] / "shared" / "data"
REAL_SERIES = ("CAP", "COVID-19", "Normal")

needs_data = pytest.mark.skipif(
    not DATA.exists(), reason=f"the real CT data are not in {DATA}; see README of shared/data"
)

TURNS = {
    "upright": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned by half": lambda image: image[::-1, ::-1],
    "transposed": lambda image: image.T,
    "turned to the left": lambda image: np.rot90(image),
    "turned to the right": lambda image: np.rot90(image, 3),
    "transposed the other way": lambda image: image[::-1, ::-1].T,
}
UPRIGHT = ("upright", "mirrored")
UPSIDE_DOWN = ("upside down", "turned by half")


def expected(orientation: str) -> str:
    if orientation in UPRIGHT:
        return ""
    return chest_checks._UPSIDE_DOWN if orientation in UPSIDE_DOWN else chest_checks._ON_ITS_SIDE


def turned(images, orientation: str) -> list[np.ndarray]:
    return [np.ascontiguousarray(TURNS[orientation](image)) for image in images]


def verdict(images) -> chest_checks.Verdict:
    return chest_checks.judge(images, segmentation.find_lungs_in_series(images, from_feet=True))


def picked(volume: np.ndarray) -> list[np.ndarray]:
    return [volume[i].astype(np.float32) for i in sampling.sample_uniform(len(volume), 15)]


@pytest.fixture(scope="module", params=[("healthy", 3, "A"), ("COVID-19", 4, "B")])
def volume(request) -> np.ndarray:
    label, seed, site = request.param
    return make_phantom(label, seed, 128, site).volume_hu


@pytest.mark.parametrize("orientation", TURNS)
def test_phantoms_are_refused_unless_upright(orientation, volume):
    images = turned(picked(volume), orientation)
    assert verdict(images) == chest_checks.Verdict(expected(orientation))
    pictures = [window(image, -600, 1500) for image in images]
    assert verdict(pictures) == chest_checks.Verdict(expected(orientation))


@pytest.mark.parametrize(("label", "seed"), itertools.product(("healthy", "bacterial"), range(6)))
def test_upright_phantoms_are_not_refused(label, seed):
    phantom = make_phantom(label, 100 + seed, 96, "AB"[seed % 2])
    images = picked(phantom.volume_hu)
    assert verdict(images) == chest_checks.Verdict()
    assert verdict([window(image, -600, 1500) for image in images]) == chest_checks.Verdict()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_chest_with_one_white_lung_is_not_refused(side, volume):
    images = []
    for image in picked(volume):
        white = segmentation.find_lungs(image)
        middle = image.shape[1] // 2
        white[:, slice(middle, None) if side == "right" else slice(0, middle)] = False
        image[cv2.dilate(white.view(np.uint8), np.ones((3, 3), np.uint8)) > 0] = 40
        images.append(image)
    assert verdict(images) == chest_checks.Verdict()


def test_a_heart_full_of_contrast_medium_is_not_taken_for_the_spine(volume):
    images = []
    for image in picked(volume):
        mask = segmentation.find_lungs(image)
        if mask.any():
            x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
            rows = slice(y + height // 5, y + round(0.7 * height))
            heart = image[rows, x + width // 3 : x + 2 * width // 3]
            heart[heart > 0] += 280
        images.append(image)
    assert verdict(images) == chest_checks.Verdict()
    assert verdict(turned(images, "upside down")) == chest_checks.Verdict(chest_checks._UPSIDE_DOWN)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", REAL_SERIES)
@needs_data
def test_real_series_are_refused_unless_upright(name, orientation):
    series = open_series(DATA / "covid_ct_md" / name)
    images = [series.read(i) for i in sampling.sample_uniform(len(series), 15)]
    assert verdict(turned(images, orientation)) == chest_checks.Verdict(expected(orientation))


@needs_data
def test_of_the_pictures_of_covid_ct_none_is_refused_and_few_are_noted():
    pictures = sorted((DATA / "covid_ct" / "images").iterdir())[::8]
    verdicts = []
    for path in pictures:
        (name,) = open_series(path).names
        image = open_series(path).read(0)
        verdicts.append(chest_checks.judge([image], [segmentation.find_lungs(image)]))
        assert not verdicts[-1].why, name
    assert len(verdicts) > 60
    assert sum(bool(verdict.note) for verdict in verdicts) <= 0.03 * len(verdicts)


def refusal(path, ct_settings) -> str:
    with pytest.raises(CtError) as raised:
        prepare_person([path], ct_settings)
    return raised.value.why


def test_an_identity_affine_over_an_array_of_another_order_is_refused(
    tmp_path, ct_settings, volume
):
    # [z, y, x] as NumPy has it of a DICOM series or of SimpleITK, and [y, x, z] of stacked slices.
    for i, order in enumerate([(0, 1, 2), (1, 2, 0)]):
        path = tmp_path / f"{i}.nii"
        write_nifti(path, volume.transpose(order), sform_mm=np.eye(3), pixdim=(1.0,) * 4)
        assert "slices" in (why := refusal(path, ct_settings))
        assert why in (
            chest_checks._ON_ITS_SIDE,
            chest_checks._UPSIDE_DOWN,
            chest_checks._NOT_AXIAL,
        )


def test_an_identity_affine_over_dicoms_axes_is_upside_down(tmp_path, ct_settings, volume):
    # To the left and to the back, where the affine says to the right and to the front.
    path = tmp_path / "ct.nii"
    write_nifti(path, volume.transpose(2, 1, 0), sform_mm=np.diag([2.5, 2.5, 5.0]))
    assert refusal(path, ct_settings) == chest_checks._UPSIDE_DOWN


def test_a_dicom_series_whose_header_lies_is_refused(tmp_path, ct_settings, volume):
    for i, hu in enumerate(volume):
        write_dicom(tmp_path / f"{i}.dcm", hu.T, 5.0 * i)
    assert refusal(tmp_path, ct_settings) == chest_checks._ON_ITS_SIDE


@pytest.mark.parametrize("orientation", ["transposed", "upside down"])
def test_pictures_saved_wrongly_are_refused(orientation, tmp_path, ct_settings, volume):
    for i, image in enumerate(turned(picked(volume), orientation)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), window(image, -600, 1500))
    assert refusal(tmp_path, ct_settings) == expected(orientation)
