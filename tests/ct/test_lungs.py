from __future__ import annotations

import cv2
import numpy as np
import pytest

from drenet_jax.ct.lungs import find_lungs, find_lungs_in_series
from drenet_jax.ct.phantom import make_phantom
from drenet_jax.ct.series import open_series
from drenet_jax.ct.slices import pick
from drenet_jax.ct.window import window


def dice(found: np.ndarray, wanted: np.ndarray) -> float:
    return 2 * np.count_nonzero(found & wanted) / (found.sum() + wanted.sum())


# Slices in HU


@pytest.mark.parametrize("size_px", [128, 512])
def test_lungs_are_found_without_trachea_and_table(chest_hu, chest_lungs, size_px):
    found = find_lungs(chest_hu(size_px))
    assert found.shape == (size_px, size_px)
    assert dice(found, chest_lungs(size_px)) > 0.96
    assert not found[:, size_px // 2].any()
    assert not found[round(size_px * 0.8) :].any()


def test_vessels_and_disease_at_the_wall_belong_to_the_lungs(chest_hu, chest_lungs):
    hu = chest_hu(256)
    cv2.circle(hu, (84, 120), 5, 60, cv2.FILLED)
    # Consolidation that breaks the outline at the chest wall.
    wall = np.zeros(hu.shape, np.uint8)
    cv2.circle(wall, (48, 130), 14, 1, cv2.FILLED)
    hu[(wall > 0) & (hu < -500)] = 30
    assert dice(find_lungs(hu), chest_lungs(256)) > 0.95


def test_padding_outside_the_field_is_no_matter(chest_hu):
    hu = chest_hu(256)
    y, x = np.mgrid[:256, :256]
    outside = (x - 128) ** 2 + (y - 128) ** 2 > 126**2
    padded = np.where(outside, np.float32(-1024), hu)
    assert np.array_equal(find_lungs(padded), find_lungs(hu))


def test_air_everywhere_and_tissue_everywhere_hold_no_lungs():
    for value in (-1000, 40):
        assert not find_lungs(np.full((64, 64), value, np.float32)).any()


@pytest.mark.parametrize("label", ["healthy", "COVID-19"])
def test_phantom_lungs_are_found(label):
    phantom = make_phantom(label, 5, 128, "A")
    areas = phantom.lung_mask.sum(axis=(1, 2))
    full = np.flatnonzero(areas > 0.5 * areas.max())[::4]
    found = [find_lungs(phantom.volume_hu[i].astype(np.float32)) for i in full]
    assert min(dice(m, phantom.lung_mask[i]) for m, i in zip(found, full, strict=True)) > 0.9


# Series


def test_lungs_white_with_disease_are_found_by_their_neighbours(chest_hu, chest_lungs):
    slices = [chest_hu(256) for _ in range(3)]
    slices[1][(slices[1] < -500) & (np.arange(256) < 128)] = 20
    one_lung = find_lungs(slices[1])
    assert one_lung.sum() < 0.6 * chest_lungs(256).sum()
    both = find_lungs_in_series(slices, from_feet=False)[1]
    assert dice(both, chest_lungs(256)) > 0.95


def test_a_lobe_white_to_the_apex_is_found_from_below(chest_hu, chest_lungs):
    slices = [chest_hu(256) for _ in range(4)]
    rows = np.arange(256)[:, None]
    for one in slices[1:]:
        # All of the lung's width is white, between aerated lung in front and behind.
        one[(one < -500) & (np.arange(256) < 120) & (rows > 90) & (rows < 150)] = 20
    wanted = chest_lungs(256)
    alone = find_lungs_in_series(slices, from_feet=False)
    together = find_lungs_in_series(slices, from_feet=True)
    assert dice(alone[-1], wanted) < 0.85
    assert min(dice(one, wanted) for one in together) > 0.93


def test_the_dome_of_the_diaphragm_stays_out(chest_hu):
    slices = [chest_hu(256) for _ in range(3)]
    for one, radius in zip(slices, (40, 25, 0), strict=True):
        dome = np.zeros(one.shape, np.uint8)
        cv2.circle(dome, (80, 115), radius, 1, cv2.FILLED)
        one[(dome > 0) & (one < -500)] = 60
    with_help = find_lungs_in_series(slices, from_feet=True)
    assert not with_help[0][115, 80]
    assert with_help[2][115, 80]


def test_no_slices_give_no_masks():
    assert find_lungs_in_series([], from_feet=True) == []


# Pictures


@pytest.mark.parametrize(
    ("level_hu", "width_hu"), [(-600, 1500), (-500, 900), (-700, 1000), (40, 400)]
)
def test_the_window_of_a_picture_need_not_be_known(chest_hu, chest_lungs, level_hu, width_hu):
    picture = window(chest_hu(256), level_hu, width_hu)
    assert dice(find_lungs(picture), chest_lungs(256)) > 0.93


def test_a_frame_and_letters_are_no_matter(chest_hu, chest_lungs):
    picture = window(chest_hu(256), -600, 1500)
    cv2.putText(picture, "L 12", (4, 250), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    framed = cv2.copyMakeBorder(picture, 12, 12, 12, 12, cv2.BORDER_CONSTANT, value=255)
    assert dice(find_lungs(framed)[12:-12, 12:-12], chest_lungs(256)) > 0.95


def test_a_picture_may_be_cut_at_the_lungs(chest_hu, chest_lungs):
    rows, columns = slice(64, 190), slice(46, 210)
    picture = np.ascontiguousarray(window(chest_hu(256), -600, 1500)[rows, columns])
    assert dice(find_lungs(picture), chest_lungs(256)[rows, columns]) > 0.93


def landscape(rng: np.random.Generator) -> np.ndarray:
    picture = np.repeat(np.linspace(235, 150, 300, dtype=np.float32)[:, None], 400, axis=1)
    ridge = 140 + cv2.GaussianBlur(rng.normal(size=(1, 400)) * 300, (0, 0), 20)[0]
    picture[np.arange(300)[:, None] > ridge] = 90
    picture[220:] = 60
    cv2.circle(picture, (90, 60), 25, 255, cv2.FILLED)
    for x in (60, 150, 320):
        cv2.ellipse(picture, (x, 200), (20, 50), 0, 0, 360, 25, cv2.FILLED)
    return picture + rng.normal(size=picture.shape) * 6


def text_page() -> np.ndarray:
    page = np.full((400, 300), 255, np.uint8)
    for y in range(30, 400, 18):
        cv2.putText(page, "words and more words", (15, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 0, 1)
    return page


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("what", ["noise", "soft noise", "uniform", "landscape", "text", "tiny"])
def test_what_is_no_chest_is_refused(what, negative):
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (300, 400)).astype(np.uint8)
    soft = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 8), None, 0, 255, cv2.NORM_MINMAX)
    picture = {
        "noise": noise,
        "soft noise": soft,
        "uniform": np.full((300, 400), 90, np.uint8),
        "landscape": np.clip(landscape(rng), 0, 255).astype(np.uint8),
        "text": text_page(),
        "tiny": noise[:1, :3],
    }[what]
    assert not find_lungs(255 - picture if negative else picture).any()


# Real slices


@pytest.mark.parametrize("name", ["CAP/cap001", "COVID-19/P001", "Normal/normal001"])
def test_no_slice_between_two_full_ones_is_lost(shared_data, name):
    series = open_series(shared_data / "covid_ct_md" / name)
    images = [series.read(index) for index in pick(len(series), 15)]
    masks = find_lungs_in_series(images, from_feet=True)
    areas = np.array([mask.mean() for mask in masks])
    full = np.flatnonzero(areas >= 0.5 * areas.max())
    assert 0.18 < areas.max() < 0.36
    assert 7 <= len(full) <= 12
    assert np.array_equal(full, np.arange(full[0], full[-1] + 1))
    for index in full:
        mask = masks[index]
        assert np.median(images[index][mask]) < -700
        left, right = np.array_split(mask, 2, axis=1)
        assert min(left.sum(), right.sum()) > 0.3 * max(left.sum(), right.sum())


def test_lungs_are_found_in_all_pictures_of_the_authors(shared_data):
    files = sorted((shared_data / "authors_demo").rglob("*.jpg"))
    assert len(files) == 25
    for file in files:
        mask = find_lungs(open_series(file).read(0))
        # Letters and the table lie in the lowest sixth, the arms at the sides.
        assert 0.05 < mask.mean() < 0.35, file.name
        assert not mask[-mask.shape[0] // 6 :].any(), file.name


def test_nearly_all_single_slices_of_covid_ct_are_taken(shared_data):
    files = sorted((shared_data / "covid_ct" / "images").iterdir())[::7]
    shares = np.array([find_lungs(open_series(file).read(0)).mean() for file in files])
    assert np.mean(shares > 0) >= 0.95
    assert np.all(shares < 0.7)
