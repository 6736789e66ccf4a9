"""Whether 95% intervals hold the truth in 95% of cohorts: simulations of cohorts that are known.

A slice's score is normal: the person's own level, in common for all slices of the person, and the
slice's. Of two slices or two persons the difference is normal too, so the true AUC is known.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.metrics import ranking_metrics
from drenet_jax.evaluation.predictions import PersonPredictions, SlicePredictions
from drenet_jax.evaluation.statistics import (
    all_but_one,
    bca_interval,
    delong,
    metrics_with_intervals,
    paired_bootstrap,
    person_draws,
)

COHORTS, PERSONS, SLICES, DRAWS = 500, 80, 8, 2000


def scores_of(random: np.random.Generator, true_auc: float, slices: int):
    """Whether each of PERSONS is positive, and [PERSONS, slices] scores."""
    # The variances of a person's and of a slice's level are 1 and 1.
    shift = norm.ppf(true_auc) * np.sqrt(2 * (1 + 1))
    is_positive = random.random(PERSONS) < 0.5
    person = shift * is_positive + random.normal(0, 1, PERSONS)
    return is_positive, person[:, None] + random.normal(0, 1, (PERSONS, slices))


def auc_intervals(is_positive, score, patient_id, seed):
    """The library's interval, and that of plain percentiles, of the same draws."""
    person, times = person_draws(patient_id, DRAWS, seed)
    value, drawn, left_out = (
        ranking_metrics(is_positive, score, person, weights, ())["auc"]
        for weights in (np.ones((1, times.shape[1])), times, all_but_one(times.shape[1]))
    )
    return bca_interval(value[0], drawn, left_out), tuple(np.quantile(drawn, (0.025, 0.975)))


@pytest.mark.slow
@pytest.mark.parametrize("true_auc", [0.8, 0.9])
def test_the_bootstrap_over_persons_covers_and_over_slices_does_not(true_auc, capsys):
    random = np.random.default_rng(0)
    held = {"persons": 0, "slices": 0}
    for seed in range(COHORTS):
        is_positive, score = scores_of(random, true_auc, SLICES)
        truth, score = np.repeat(is_positive, SLICES), score.ravel()
        person = np.repeat(np.arange(PERSONS), SLICES).astype(str)
        for name, unit in (("persons", person), ("slices", np.arange(len(score)).astype(str))):
            low, high = auc_intervals(truth, score, unit, seed)[0]
            held[name] += low <= true_auc <= high
    share = {name: n / COHORTS for name, n in held.items()}
    with capsys.disabled():
        print(f"\nslices, true AUC {true_auc}: intervals that hold it, by bootstrap over {share}")
    assert 0.93 <= share["persons"] <= 0.97
    assert share["slices"] < 0.8


@pytest.mark.slow
def test_the_interval_of_persons_covers_where_percentiles_fall_short(capsys):
    random = np.random.default_rng(0)
    true_auc, held = 0.95, np.zeros(2)
    for seed in range(4 * COHORTS):
        is_positive, score = scores_of(random, true_auc, 1)
        person = np.arange(PERSONS).astype(str)
        intervals = auc_intervals(is_positive, score[:, 0], person, seed)
        held += [low <= true_auc <= high for low, high in intervals]
    bca, percentile = held / (4 * COHORTS)
    with capsys.disabled():
        print(f"\npersons, true AUC {true_auc}: BCa {bca}, percentiles {percentile}")
    assert 0.93 <= bca <= 0.97
    assert percentile < 0.93


@pytest.mark.slow
def test_delongs_and_the_paired_bootstraps_interval_of_no_difference_cover(capsys):
    random = np.random.default_rng(0)
    held, rejected = {"delong": 0, "bootstrap": 0}, 0
    settings = MetricSettings(bootstrap_draws=DRAWS)
    for _ in range(COHORTS):
        is_positive, score = scores_of(random, 0.9, 1)
        both = [
            persons_with(is_positive, score[:, 0] + random.normal(0, 1, PERSONS)) for _ in range(2)
        ]
        test = delong(is_positive, *(model.probabilities[:, 0] for model in both))
        difference = paired_bootstrap(*both, 0, settings)["auc"]
        held["delong"] += test.low <= 0 <= test.high
        held["bootstrap"] += difference["low"] <= 0 <= difference["high"]
        rejected += test.p_value < 0.05
    share = {name: n / COHORTS for name, n in held.items()}
    with capsys.disabled():
        print(f"\ndifferences of AUCs of equally good models: intervals that hold 0 {share}")
    assert all(0.92 <= covered <= 0.98 for covered in share.values())
    assert rejected == COHORTS - held["delong"]


def persons_with(is_positive, score) -> PersonPredictions:
    p = 1 / (1 + np.exp(-score))
    return PersonPredictions(
        labels=("COVID-19", "healthy"),
        patient_id=np.arange(len(score)).astype(str),
        site=np.full(len(score), ""),
        label=np.where(is_positive, 0, 1),
        n_slices=np.ones(len(score), np.int64),
        probabilities=np.stack([p, 1 - p], axis=1),
    )


def test_metrics_with_intervals_gives_the_interval_that_the_simulations_try():
    is_positive, score = scores_of(np.random.default_rng(0), 0.9, SLICES)
    p = 1 / (1 + np.exp(-score.ravel()))
    person = np.repeat(np.arange(PERSONS), SLICES).astype(str)
    slices = SlicePredictions(
        labels=("COVID-19", "healthy"),
        patient_id=person,
        slice_name=person,
        slice_index=np.arange(len(p)),
        site=np.full(len(p), ""),
        label=np.repeat(np.where(is_positive, 0, 1), SLICES),
        probabilities=np.stack([p, 1 - p], axis=1),
    )
    auc = metrics_with_intervals(slices, 0, MetricSettings(bootstrap_draws=DRAWS))["auc"]
    wanted, _ = auc_intervals(slices.label == 0, p, person, MetricSettings().bootstrap_seed)
    assert (auc["low"], auc["high"]) == pytest.approx(wanted, abs=1e-12)
