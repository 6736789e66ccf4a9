"""Tests of the bootstrap over persons."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from drenet_jax.evaluation.intervals import auc_of_draws, percentile_interval, person_draws


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


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 40),
    st.sampled_from([2, 5, 10**6]),  # few levels make ties
)
def test_the_auc_of_a_draw_is_scikit_learns_on_the_repeated_rows(seed, n, levels):
    random = np.random.default_rng(seed)
    is_positive = random.integers(0, 2, n).astype(bool)
    score = random.integers(0, levels, n) / levels
    patient_id = random.integers(0, n, n).astype(str)
    person, times = person_draws(patient_id, draws=7, seed=seed)
    got = auc_of_draws(is_positive, score, person, times)
    for auc, drawn in zip(got, times, strict=True):
        rows = np.repeat(np.arange(n), drawn[person].astype(int))
        if len(set(is_positive[rows])) < 2:
            assert np.isnan(auc)
        else:
            np.testing.assert_allclose(auc, roc_auc_score(is_positive[rows], score[rows]))


def test_the_auc_does_not_depend_on_how_draws_are_blocked(monkeypatch):
    random = np.random.default_rng(0)
    is_positive, score = random.random(50) < 0.5, random.random(50).round(1)
    person, times = person_draws(np.arange(50).astype(str), draws=11, seed=0)
    whole = auc_of_draws(is_positive, score, person, times)
    monkeypatch.setattr("drenet_jax.evaluation.intervals._BLOCK_WEIGHTS", 120)
    np.testing.assert_array_equal(whole, auc_of_draws(is_positive, score, person, times))


def test_no_rows_have_no_auc():
    nothing = np.array([], np.int64)
    assert np.isnan(auc_of_draws(nothing > 0, nothing * 1.0, nothing, np.zeros((3, 0)))).all()


def test_the_interval_holds_95_percent_of_the_draws():
    low, high = percentile_interval(np.arange(1001) / 1000)
    np.testing.assert_allclose((low, high), (0.025, 0.975))


def test_undefined_draws_are_left_out_of_the_interval():
    assert percentile_interval(np.array([0.5, 0.5, np.nan])) == (0.5, 0.5)


def test_more_undefined_draws_than_defined_ones_give_no_interval():
    assert percentile_interval(np.array([0.5, np.nan, np.nan])) is None
    assert percentile_interval(np.array([0.5, np.nan])) == (0.5, 0.5)
    assert percentile_interval(np.array([np.nan])) is None
