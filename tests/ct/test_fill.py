from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from drenet_jax.ct.fill import draw_fill, fill_blank, map_dtype

SIDES = st.integers(2, 12)


@st.composite
def crops(draw):
    shape = draw(st.tuples(SIDES, SIDES))
    image = draw(arrays(np.uint8, shape))
    return image, draw(arrays(bool, shape))


def fill_one_by_one(image, mask, copies, seed):
    """The same by its definition: whole copies laid over each other, then the lungs on top."""
    height, width = image.shape
    generator = np.random.default_rng(seed)
    shifts_y = generator.integers(-(height // 2), height // 2 + 1, size=copies)
    shifts_x = generator.integers(-(width // 2), width // 2 + 1, size=copies)
    filled = np.zeros_like(image)
    for dy, dx in zip(shifts_y, shifts_x, strict=True):
        for y, x in np.argwhere(mask):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                filled[y + dy, x + dx] = image[y, x]
    filled[mask] = image[mask]
    return filled


@given(crop=crops(), copies=st.integers(0, 6), seed=st.integers(0, 99))
def test_later_copies_lie_over_earlier_ones_and_the_lungs_over_all(crop, copies, seed):
    image, mask = crop
    wanted = fill_one_by_one(image, mask, copies, (seed,))
    assert np.array_equal(fill_blank(image, mask, copies, (seed,)), wanted)


@given(crop=crops(), copies=st.integers(0, 6))
def test_inside_the_lungs_the_image_is_untouched(crop, copies):
    image, mask = crop
    before = image.copy()
    filled = fill_blank(image, mask, copies, (1, 2))
    assert np.array_equal(filled[mask], image[mask])
    assert np.array_equal(image, before)


def test_no_copies_give_the_masked_crop(rng):
    image, mask = rng.integers(1, 256, (8, 9)).astype(np.uint8), rng.random((8, 9)) < 0.5
    assert np.array_equal(fill_blank(image, mask, 0, (0,)), image * mask)


@given(crop=crops(), copies=st.integers(0, 6))
def test_the_map_numbers_the_lungs_the_copies_and_what_no_copy_covers(crop, copies):
    image, mask = crop
    copy_map, shifts_px = draw_fill(mask, copies, (4,))
    assert np.array_equal(copy_map == 0, mask)
    assert shifts_px.shape == (copies + 2, 2)
    assert not shifts_px[[0, -1]].any()
    for number in range(1, copies + 1):
        y, x = np.nonzero(copy_map == number)
        assert mask[y - shifts_px[number, 0], x - shifts_px[number, 1]].all()
    filled = fill_blank(np.full_like(image, 9), mask, copies, (4,))
    assert np.array_equal(filled == 0, copy_map == copies + 1)


@pytest.mark.parametrize(("copies", "dtype"), [(0, "u1"), (254, "u1"), (255, "u2"), (300, "u2")])
def test_the_map_takes_two_bytes_only_where_one_is_not_enough(copies, dtype):
    assert map_dtype(copies) == dtype
    assert draw_fill(np.zeros((4, 4), bool), copies, (0,)).copy_map.max() == copies + 1


def test_the_seed_decides_the_fill(rng):
    image, mask = rng.integers(1, 256, (64, 64)).astype(np.uint8), rng.random((64, 64)) < 0.5
    first = fill_blank(image, mask, 40, (7, 1))
    assert np.array_equal(first, fill_blank(image, mask, 40, np.random.SeedSequence((7, 1))))
    assert not np.array_equal(first, fill_blank(image, mask, 40, (7, 2)))


def test_forty_copies_fill_nearly_all_of_a_lung_shaped_blank():
    y, x = np.mgrid[:448, :448]
    mask = ((x - 110) / 100) ** 2 + ((y - 224) / 215) ** 2 < 1
    mask |= mask[:, ::-1]
    image = np.full(mask.shape, 80, np.uint8)
    assert np.mean(fill_blank(image, mask, 40, (3,)) == 0) < 0.02


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
