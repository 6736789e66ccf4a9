"""Tests of the bootstrap over persons."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.statistics import bca

from drenet_jax.evaluation.statistics import (
    all_but_one,
    bca_interval,
    calibration_interval,
    person_draws,
    reason_no_interval,
)


def test_every_draw_has_as_many_persons_as_the_cohort():
    person, times = person_draws(np.array(["b", "a", "b", "c"]), draws=50, seed=0)
    assert person.tolist() == [1, 0, 1, 2]
    assert times.shape == (50, 3)
    assert (times.sum(axis=1) == 3).all()


def test_draws_are_those_of_drawing_with_replacement():
    _, times = person_draws(np.arange(20).astype(str), draws=20000, seed=0)
    # A person is missed by a draw with probability (1 - 1/20)^20.
    np.testing.assert_allclose((times == 0).mean(), (1 - 1 / 20) ** 20, atol=0.003)
    np.testing.assert_allclose(times.mean(axis=0), 1, atol=0.03)


def test_draws_depend_on_the_persons_and_the_seed_only():
    of_persons = person_draws(np.array(["a", "b", "c"]), draws=9, seed=3)[1]
    of_slices = person_draws(np.array(["c", "c", "a", "b", "a"]), draws=9, seed=3)[1]
    other_seed = person_draws(np.array(["a", "b", "c"]), draws=9, seed=4)[1]
    np.testing.assert_array_equal(of_persons, of_slices)
    assert (of_persons != other_seed).any()


def test_one_person_after_the_other_is_left_out():
    assert all_but_one(3).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert all_but_one(0).shape == (0, 0)


def test_of_many_persons_groups_are_left_out_each_person_once():
    left = all_but_one(1234)
    assert left.shape == (500, 1234)
    np.testing.assert_array_equal((left == 0).sum(axis=0), 1)
    assert set((left == 0).sum(axis=1).tolist()) == {2, 3}


def means(values, seed=0, draws=400):
    """The mean of some persons' values: of all, of draws, and with one left out."""
    n = len(values)
    _, times = person_draws(np.arange(n).astype(str), draws, seed)
    # person_draws puts persons in the order of their names.
    in_order = values[np.argsort(np.arange(n).astype(str))]
    without = all_but_one(n)
    return (
        in_order.mean(),
        times @ in_order / n,
        without @ in_order / without.sum(axis=1),
        [np.repeat(np.arange(n), drawn.astype(int)) for drawn in times],
        in_order,
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(4, 30), st.booleans())
def test_the_interval_is_bca_as_it_is_defined(seed, n, binary):
    random = np.random.default_rng(seed)
    values = (random.random(n) < 0.7) * 1.0 if binary else random.exponential(1, n)
    value, drawn, left_out, samples, in_order = means(values, seed, draws=80)
    got = bca_interval(value, drawn, left_out)
    if np.ptp(values) == 0:
        assert got is None
    else:
        wanted = bca(lambda sample: np.mean(in_order[list(sample)]), n, samples)
        assert got == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("n", [25, 800])  # 800: in groups
def test_the_interval_is_scipys(n):
    values = np.random.default_rng(0).exponential(1, n)
    value, drawn, left_out, _, _ = means(values, draws=20000)
    scipys = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = scipys.high - scipys.low
    assert bca_interval(value, drawn, left_out) == pytest.approx(tuple(scipys), abs=0.03 * width)


def test_without_bias_and_skewness_it_is_the_percentiles():
    drawn = np.arange(1001) / 1000
    symmetric = np.array([0.4, 0.5, 0.6])
    np.testing.assert_allclose(bca_interval(0.5, drawn, symmetric), (0.025, 0.975), atol=1e-9)


def test_undefined_draws_are_left_out_of_the_interval():
    drawn = np.r_[np.arange(1001) / 1000, [np.nan] * 900]
    left_out = np.array([0.4, np.nan, 0.5, 0.6])
    np.testing.assert_allclose(bca_interval(0.5, drawn, left_out), (0.025, 0.975), atol=1e-9)


@pytest.mark.parametrize(
    ("drawn", "why"),
    [
        ([0.5, np.nan, np.nan, 0.4, np.nan], "undefined in 3 of 5 bootstrap draws"),
        ([np.nan, np.nan], "undefined in 2 of 2 bootstrap draws"),
        ([0.5, 0.5, np.nan], "every bootstrap draw gives the same value"),
        ([0.6, 0.7, 0.8], "every bootstrap draw lies on the same side"),
        ([0.1, 0.2, 0.3], "every bootstrap draw lies on the same side"),
    ],
)
def test_where_there_is_no_interval_it_says_why(drawn, why):
    drawn = np.array(drawn)
    assert bca_interval(0.5, drawn, np.array([0.4, 0.5, 0.6])) is None
    assert reason_no_interval(0.5, drawn).startswith(why)


def test_half_of_the_draws_are_enough():
    assert bca_interval(0.5, np.array([0.4, 0.6, np.nan, np.nan]), np.array([])) is not None
    assert reason_no_interval(0.5, np.array([0.4, 0.6, np.nan, np.nan])) == ""


def test_a_single_person_that_matters_does_not_break_the_interval():
    left_out = np.r_[0.1, np.full(50, 0.5)]
    low, high = bca_interval(0.5, np.linspace(0.3, 0.55, 500), left_out)
    assert 0.3 <= low < high <= 0.55


def test_the_calibration_interval_takes_the_bias_of_the_draws_off():
    # All draws above the value, as they are where the model is calibrated.
    drawn = np.linspace(0.06, 0.10, 1001)
    low, high = calibration_interval(0.05, drawn)
    assert low == 0
    assert high == pytest.approx(0.05)
    # 2 * 0.2^2 less the squares of the percentiles.
    drawn = np.linspace(0.15, 0.26, 1001)
    ends = np.quantile(drawn, (0.975, 0.025))
    np.testing.assert_allclose(
        calibration_interval(0.2, drawn), np.sqrt(2 * 0.2**2 - ends**2), atol=1e-4
    )
    assert calibration_interval(0.2, np.array([0.2, 0.2])) is None
    assert calibration_interval(0.2, np.array([0.2, np.nan, np.nan])) is None
