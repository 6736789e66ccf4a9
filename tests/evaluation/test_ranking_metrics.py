"""Tests of the figures of the ROC and precision-recall curves, of many draws at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from drenet_jax.evaluation.metrics import (
    ranking_metrics,
    recall_at,
)
from drenet_jax.evaluation.statistics import person_draws

SPECIFICITIES = (0.5, 0.8, 0.9, 0.95)


def of_sample(is_positive, score, specificities):
    person, times = np.zeros(len(score), np.int64), np.ones((1, 1))
    values = ranking_metrics(is_positive, score, person, times, specificities)
    return {name: value[0] for name, value in values.items()}


def recall_by_trying(is_positive, score, specificity):
    """Every threshold, from one that nothing passes."""
    best = 0.0
    for threshold in {*score.tolist(), np.inf}:
        passed = score >= threshold
        if np.mean(~passed[~is_positive]) >= specificity - 1e-9:
            best = max(best, passed[is_positive].mean())
    return best


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 40),
    st.sampled_from([2, 5, 10**6]),  # few levels make ties
)
def test_the_figures_of_a_draw_are_those_of_the_repeated_rows(seed, n, levels):
    random = np.random.default_rng(seed)
    is_positive = random.integers(0, 2, n).astype(bool)
    score = random.integers(0, levels, n) / levels
    patient_id = random.integers(0, n, n).astype(str)
    person, times = person_draws(patient_id, draws=4, seed=seed)
    got = ranking_metrics(is_positive, score, person, times, SPECIFICITIES)
    for d, drawn in enumerate(times):
        rows = np.repeat(np.arange(n), drawn[person].astype(int))
        truth, own = is_positive[rows], score[rows]
        wanted = dict.fromkeys(got, np.nan)
        if truth.any():
            wanted["average_precision"] = average_precision_score(truth, own)
        if truth.any() and not truth.all():
            wanted["auc"] = roc_auc_score(truth, own)
            wanted |= {recall_at(s): recall_by_trying(truth, own, s) for s in SPECIFICITIES}
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name][d], value, atol=1e-12, err_msg=name)


def test_figures_do_not_depend_on_how_draws_are_blocked(monkeypatch):
    random = np.random.default_rng(0)
    is_positive, score = random.random(50) < 0.5, random.random(50).round(1)
    person, times = person_draws(np.arange(50).astype(str), draws=11, seed=0)
    whole = ranking_metrics(is_positive, score, person, times, SPECIFICITIES)
    monkeypatch.setattr("drenet_jax.evaluation.metrics._BLOCK_WEIGHTS", 120)
    blocked = ranking_metrics(is_positive, score, person, times, SPECIFICITIES)
    for name in whole:
        np.testing.assert_array_equal(whole[name], blocked[name])


def test_no_rows_have_no_figures():
    nothing = np.array([], np.int64)
    values = ranking_metrics(nothing > 0, nothing * 1.0, nothing, np.zeros((3, 0)), (0.9,))
    assert all(np.isnan(value).all() for value in values.values())


def test_a_specificity_that_is_reached_exactly_counts():
    # One of ten negative cases above: 0.9 to the bit is not what 1 - 1/10 gives.
    score = np.array([0.95, 0.9, 0.8, *np.linspace(0.1, 0.5, 9)])
    is_positive = np.array([True, False, True] + [False] * 9)
    values = of_sample(is_positive, score, (0.9, 0.95))
    assert values["recall_at_specificity_0.90"] == 1
    assert values["recall_at_specificity_0.95"] == 0.5


def test_a_tie_of_all_reaches_no_specificity_but_is_defined():
    values = of_sample(np.array([True, False]), np.array([0.5, 0.5]), (0.8,))
    assert values == {
        "auc": 0.5,
        "average_precision": 0.5,
        "recall_at_specificity_0.80": 0,
    }


@pytest.mark.parametrize(
    ("specificity", "name"),
    [(0.8, "0.80"), (0.95, "0.95"), (0.99, "0.99"), (0.995, "0.995"), (0.9999, "0.9999")],
)
def test_each_specificity_has_a_name_of_its_own(specificity, name):
    assert recall_at(specificity) == f"recall_at_specificity_{name}"
