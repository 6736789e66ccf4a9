"""Tests of the comparison of two models on the same persons."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.statistics import bca, delong_covariance
from sklearn.metrics import roc_auc_score

from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.predictions import PersonPredictions, SlicePredictions
from drenet_jax.evaluation.statistics import (
    PairedTest,
    delong,
    holm,
    mcnemar,
    paired_bootstrap,
    person_draws,
)


def two_models(seed: int, n: int, levels: int):
    """Truth, and the correlated scores of two models."""
    random = np.random.default_rng(seed)
    truth = np.r_[True, True, False, False, random.random(n) < 0.5]
    common = truth + random.normal(0, 1, n + 4)
    scores = [np.round(levels * (common + random.normal(0, 1, n + 4))) for _ in range(2)]
    return truth, *scores


def auc_and_variance(truth, scores):
    """Of the test against scores that are all equal, whose AUC is 0.5 without variance."""
    test = delong(truth, scores, np.zeros(len(truth)))
    half = 0 if test.low is None else (test.high - test.low) / 2
    return 0.5 + test.difference, (half / scipy.stats.norm.ppf(0.975)) ** 2


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([1, 3, 10**6]))
def test_delong_is_that_of_the_definition(seed, n, levels):
    truth, a, b = two_models(seed, n, levels)
    auc, covariance = delong_covariance([a[truth], b[truth]], [a[~truth], b[~truth]])
    for scores, wanted, variance in zip((a, b), auc, covariance.diagonal(), strict=True):
        assert auc_and_variance(truth, scores) == pytest.approx((wanted, variance), abs=1e-12)
        assert wanted == pytest.approx(roc_auc_score(truth, scores))
    test = delong(truth, a, b)
    error = np.sqrt(max(0, np.array([1, -1]) @ covariance @ np.array([1, -1])))
    if error < 1e-9:
        assert test.low is None
        return
    z = (auc[0] - auc[1]) / error
    assert test.difference == pytest.approx(auc[0] - auc[1], abs=1e-12)
    assert test.p_value == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=1e-9)
    half = scipy.stats.norm.ppf(0.975) * error
    assert (test.low, test.high) == pytest.approx(
        (test.difference - half, test.difference + half), abs=1e-9
    )


def test_delong_by_hand():
    # Positive 3 and 1, negative 2 and 0: placements 1, 1/2 and 1/2, 1; AUC 3/4. The variance of
    # (1, 1/2) is 1/8, over 2 cases 1/16, twice.
    assert auc_and_variance(np.arange(4) < 2, np.array([3.0, 1, 2, 0])) == pytest.approx(
        (0.75, 0.125)
    )


def test_a_model_against_itself_and_against_its_own_ranks_differs_by_nothing():
    truth, a, _ = two_models(0, 30, 5)
    for other in (a, np.exp(a / 50)):
        test = delong(truth, a, other)
        assert (test.difference, test.p_value, test.low) == (0, 1, None)
        assert test.why == "both models rank the cases alike"


def test_delong_says_what_is_undefined_and_why():
    one_class = delong(np.array([True, True]), np.array([1.0, 2]), np.array([2.0, 1]))
    assert one_class == PairedTest(None, None, None, None, "only one class present")
    single = delong(np.array([True, False, False]), np.array([2.0, 1, 0]), np.array([0.0, 1, 2]))
    assert (single.difference, single.p_value) == (1, None)
    assert single.why == "fewer than two cases of a class"
    opposite = delong(np.arange(4) < 2, np.array([1.0, 1, 0, 0]), np.array([0.0, 0, 1, 1]))
    assert (opposite.difference, opposite.p_value) == (1, None)
    assert opposite.why == "the difference is the same in every case"
    assert json.loads(json.dumps(opposite.to_dict()))["why"] == opposite.why
    assert "why" not in delong(*two_models(0, 30, 5)).to_dict()


def test_delongs_p_values_are_even_where_models_are_equally_good():
    p = [delong(*two_models(seed, 60, 10**6)).p_value for seed in range(400)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def correct(both: int, only_a: int, only_b: int, neither: int):
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


@pytest.mark.parametrize("only_a", [0, 1, 5, 12])
@pytest.mark.parametrize("only_b", [0, 3, 12])
def test_few_discordant_persons_are_tested_by_the_exact_binomial(only_a, only_b):
    p_value = mcnemar(*correct(20, only_a, only_b, 5)).p_value
    if only_a + only_b == 0:
        assert p_value == 1
    else:
        exact = scipy.stats.binomtest(only_a, only_a + only_b, 0.5).pvalue
        assert p_value == pytest.approx(exact)


def test_many_discordant_persons_are_tested_by_chi_squared():
    # Agresti, Categorical Data Analysis, table 10.1 (approval of the prime minister): 794, 150, 86
    # and 570 of 1600. (150 - 86)^2 / 236 = 17.36; with Edwards' correction 63^2 / 236 = 16.82.
    test = mcnemar(*correct(794, 150, 86, 570))
    assert test.p_value == pytest.approx(scipy.stats.chi2.sf(63**2 / 236, 1))
    assert test.p_value == pytest.approx(4.1e-5, rel=0.01)
    assert test.difference == pytest.approx(0.04)
    # There, by Wald: 0.04 +- 1.96 * 0.0095.
    assert (test.low, test.high) == pytest.approx((0.0214, 0.0586), abs=5e-4)


def test_25_discordant_persons_are_many():
    exact = scipy.stats.binomtest(7, 24, 0.5).pvalue
    assert mcnemar(*correct(0, 7, 17, 0)).p_value == pytest.approx(exact)
    assert mcnemar(*correct(0, 7, 18, 0)).p_value == pytest.approx(scipy.stats.chi2.sf(4, 1))
    assert mcnemar(*correct(0, 13, 13, 0)).p_value == pytest.approx(scipy.stats.chi2.sf(1 / 26, 1))


def test_the_interval_of_the_accuracies_by_hand():
    # Bonett and Price with 9 and 1 of 48: shares 10/50 and 2/50.
    test = mcnemar(*correct(30, 9, 1, 8))
    assert test.difference == pytest.approx(8 / 48)
    half = 1.959964 * np.sqrt((0.24 - 0.16**2) / 50)
    assert (test.low, test.high) == pytest.approx((0.16 - half, 0.16 + half))
    assert mcnemar(*correct(0, 3, 0, 0)).high == 1
    assert mcnemar(*correct(0, 0, 3, 0)).low == -1


def test_models_that_are_right_on_the_same_persons_still_have_an_interval():
    test = mcnemar(*correct(30, 0, 0, 5))
    assert (test.difference, test.p_value) == (0, 1)
    assert test.low == pytest.approx(-test.high)
    assert test.high > 0.05


def test_nobody_gives_no_test():
    assert mcnemar(np.zeros(0, bool), np.zeros(0, bool)) == PairedTest(
        None, None, None, None, "there are no cases"
    )


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_what_is_undefined():
    assert holm([0.03, None, 0.02]) == [pytest.approx(0.04), None, pytest.approx(0.04)]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1, 1]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_the_plain_and_bonferronis_p_values_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for plain, own in zip(p_values, adjusted, strict=True):
        assert plain <= own <= min(1, len(p_values) * plain)
    in_order = [own for _, own in sorted(zip(p_values, adjusted, strict=True))]
    assert in_order == sorted(adjusted)


def predictions(kind, seed: int, n: int = 24, per_person: int = 2):
    truth, *scores = two_models(seed, n - 4, 10**6)
    repeat = per_person if kind is SlicePredictions else 1
    label = np.repeat((~truth).astype(np.int64), repeat)
    patient_id = np.repeat([f"p{i}" for i in range(n)], repeat)
    several = []
    for m, score in enumerate(scores):
        noise = np.random.default_rng(seed + m).normal(0, 1, n * repeat)
        p = 1 / (1 + np.exp(0.5 - np.repeat(score, repeat) / 10**6 - noise))
        common = {
            "labels": ("COVID-19", "healthy"),
            "patient_id": patient_id,
            "site": np.full(n * repeat, ""),
            "label": label,
            "probabilities": np.stack([p, 1 - p], axis=1),
        }
        if kind is SlicePredictions:
            places = np.arange(n * repeat)
            own = {"slice_name": places.astype(str), "slice_index": places}
        else:
            own = {"n_slices": np.ones(n, np.int64)}
        several.append(kind(**common, **own))
    return several


@pytest.mark.parametrize("kind", [SlicePredictions, PersonPredictions])
def test_differences_are_those_of_the_same_persons_drawn_for_both(kind):
    a, b = predictions(kind, 3)
    draws = 60
    got = paired_bootstrap(a, b, 0, MetricSettings(bootstrap_draws=draws, bootstrap_seed=4))
    person, times = person_draws(a.patient_id, draws, 4)

    def difference(persons, metric):
        rows = np.concatenate([np.flatnonzero(person == drawn) for drawn in persons])
        truth = a.label[rows] == 0
        scores = [model.probabilities[rows, 0] for model in (a, b)]
        if metric == "auc":
            of_both = [roc_auc_score(truth, s) if len(set(truth)) == 2 else np.nan for s in scores]
        else:
            of_both = [np.mean(truth == (s >= 0.5)) for s in scores]
        return of_both[0] - of_both[1]

    n = times.shape[1]
    samples = [np.repeat(np.arange(n), drawn.astype(int)) for drawn in times]
    for metric in ("auc", "accuracy"):
        low, high = bca(lambda persons, metric=metric: difference(persons, metric), n, samples)
        assert got[metric]["value"] == pytest.approx(difference(range(n), metric))
        assert (got[metric]["low"], got[metric]["high"]) == pytest.approx((low, high)), metric


def test_swapping_the_models_turns_the_differences_round():
    a, b = predictions(PersonPredictions, 5)
    settings_ = MetricSettings(bootstrap_draws=300)
    forward, backward = paired_bootstrap(a, b, 0, settings_), paired_bootstrap(b, a, 0, settings_)
    for name, metric in forward.items():
        assert metric["value"] == pytest.approx(-backward[name]["value"]), name
        if metric["low"] is not None:
            assert metric["low"] == pytest.approx(-backward[name]["high"], abs=1e-9), name


def test_a_model_against_itself_has_differences_of_0_and_no_interval():
    a, _ = predictions(SlicePredictions, 1)
    for metric in paired_bootstrap(a, a, 0, MetricSettings(bootstrap_draws=50)).values():
        assert metric["value"] == 0
        assert metric["low"] is None
        assert metric["why"].startswith("every bootstrap draw gives the same value")


def test_models_on_other_persons_are_our_own_mistake():
    a, b = predictions(SlicePredictions, 1)
    with pytest.raises(AssertionError):
        paired_bootstrap(a, b.of(b.patient_id != "p0"), 0, MetricSettings())


def test_the_paired_interval_is_narrower_than_that_of_two_cohorts():
    a, b = predictions(PersonPredictions, 2, n=200)
    paired = paired_bootstrap(a, b, 0, MetricSettings())["auc"]
    test = delong(a.label == 0, a.probabilities[:, 0], b.probabilities[:, 0])
    assert paired["high"] - paired["low"] == pytest.approx(test.high - test.low, rel=0.1)
    apart = sum(auc_and_variance(a.label == 0, model.probabilities[:, 0])[1] for model in (a, b))
    assert test.high - test.low < 2 * 1.96 * np.sqrt(apart)
