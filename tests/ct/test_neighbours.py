"""Slices in order pass, others do not."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from drenet_jax.ct.neighbours import reason_not_in_order
from drenet_jax.phantoms.phantom import make_phantom


def _as_text(n):
    """The places of 1 to n when they are sorted as text: 1, 10, 100, 11, ..., 2, 20."""
    return sorted(range(n), key=lambda i: str(i + 1))


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    return make_phantom("COVID-19", 2, 192, "A").volume_hu.astype(np.float32)


@pytest.mark.parametrize("step", [1, 2, 4, 7])
def test_a_phantom_passes_from_both_ends(step, phantom):
    assert reason_not_in_order(list(phantom[::step])) == ""
    assert reason_not_in_order(list(phantom[::-step])) == ""


def test_noise_passes(phantom):
    noise = np.random.default_rng(0).normal(0, 150, phantom.shape).astype(np.float32)
    assert reason_not_in_order(list(phantom + noise)) == ""


@pytest.mark.parametrize("seed", range(4))
def test_a_shuffled_phantom_is_found(seed, phantom):
    order = np.random.default_rng(seed).permutation(len(phantom))
    assert "order" in reason_not_in_order(list(phantom[order]))


def test_parts_that_changed_places_and_missing_slices_are_found(phantom):
    n = len(phantom)
    first, second, third = np.split(phantom, [n // 3, 2 * n // 3])
    assert "follow" in reason_not_in_order([*first, *third, *second])
    missing = np.delete(phantom, range(n // 3, 2 * n // 3), axis=0)
    assert "missing" in reason_not_in_order(list(missing))


def test_of_a_few_slices_nothing_is_said(phantom):
    assert reason_not_in_order([]) == ""
    assert reason_not_in_order(list(phantom[[20, 10, 30, 5, 25]])) == ""


@pytest.mark.slow
@pytest.mark.parametrize("series", ["COVID-19/P001", "CAP/cap001", "Normal/normal001"])
def test_real_series(series, shared_data):
    files = [pydicom.dcmread(p) for p in (shared_data / "covid_ct_md" / series).iterdir()]
    files.sort(key=lambda file: float(file.ImagePositionPatient[2]))
    volume = np.stack(
        [file.pixel_array * file.RescaleSlope + file.RescaleIntercept for file in files]
    ).astype(np.float32)
    for step in (1, 2, 5, 10, 20):
        assert reason_not_in_order(list(volume[::step])) == ""
    assert reason_not_in_order(list(volume[::-1])) == ""
    assert reason_not_in_order(list(volume[_as_text(len(volume))])) != ""
    shuffled = volume[np.random.default_rng(0).permutation(len(volume))]
    assert reason_not_in_order(list(shuffled)) != ""
