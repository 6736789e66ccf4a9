from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from drenet_jax.ct.window import window


def test_the_ends_of_the_window_are_black_and_white_and_its_level_is_middle_grey():
    hu = np.array([[-1350, -600, 150]], np.float32)
    assert window(hu, -600, 1500).tolist() == [[0, 128, 255]]


def test_what_lies_outside_is_clipped():
    hu = np.array([[-3024, -1351, 151, 3071]], np.float32)
    assert window(hu, -600, 1500).tolist() == [[0, 0, 255, 255]]


@given(level=st.floats(-1000, 500), width=st.floats(1, 4000))
def test_every_hu_is_mapped_linearly(level, width):
    hu = np.arange(-1024, 3072, 7, dtype=np.float32)[None]
    wanted = np.clip((hu.astype(float) - (level - width / 2)) / width * 255, 0, 255)
    grey = window(hu, level, width)
    assert grey.dtype == np.uint8
    assert np.abs(grey - wanted).max() < 0.51


def test_integers_are_taken_too():
    hu = np.array([[-600]], np.int16)
    assert window(hu, -600, 1500).tolist() == [[128]]
