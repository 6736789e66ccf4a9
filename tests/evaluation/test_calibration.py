"""Tests of the temperature and of the figures of calibration."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from drenet_jax.evaluation.calibration import (
    apply_temperature,
    bin_of,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.metrics import classification_metrics


def calibrated_cases(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn with their softmax."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, classes))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (random.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    return logits, label


def calibration_metrics(truth, score, bins=10):
    """The Brier score and the calibration error of a positive class."""
    probabilities = np.stack([score, 1 - score], axis=1)
    settings_ = MetricSettings(calibration_bins=bins)
    metrics = classification_metrics(np.where(truth, 0, 1), probabilities, ("a", "b"), 0, settings_)
    return metrics["brier"], metrics["ece"]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_logits_that_were_scaled_is_found(classes, temperature):
    logits, label = calibrated_cases(20000, classes)
    assert fit_temperature(logits * temperature, label) == pytest.approx(temperature, rel=0.05)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 4))
def test_no_temperature_is_better_and_the_likelihood_is_scikit_learns(seed, n, classes):
    random = np.random.default_rng(seed)
    logits, label = random.normal(0, 2, (n, classes)), random.integers(0, classes, n)
    every = np.geomspace(0.05, 20, 100)
    losses = [negative_log_likelihood(logits, label, t) for t in every]
    fitted = fit_temperature(logits, label)
    if fitted is None:
        assert np.argmin(losses) in (0, len(every) - 1)
    else:
        best = negative_log_likelihood(logits, label, fitted)
        assert best <= min(losses) + 1e-9
        p = apply_temperature(logits, fitted)
        assert best == pytest.approx(sklearn.metrics.log_loss(label, p, labels=range(classes)))


def test_slices_that_are_all_right_have_no_temperature():
    assert fit_temperature(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) is None


def test_logits_that_are_worse_than_chance_have_no_temperature():
    assert fit_temperature(np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([1, 0])) is None


def test_no_slices_and_equal_logits_have_no_temperature():
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, np.int64)) is None
    assert fit_temperature(np.ones((4, 2)), np.array([0, 1, 1, 0])) is None


def test_a_temperature_leaves_the_order_of_the_classes_and_1_the_softmax():
    logits, _ = calibrated_cases(50, 3)
    np.testing.assert_array_equal(
        apply_temperature(logits, 2.5).argmax(axis=1), logits.argmax(axis=1)
    )
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(apply_temperature(logits, 1), softmax)
    np.testing.assert_allclose(apply_temperature(logits, 0.1).sum(axis=1), 1)


def test_large_float32_logits_do_not_overflow():
    logits = np.array([[3e4, -3e4], [100, 99]], np.float32)
    p = apply_temperature(logits, 0.05)
    np.testing.assert_allclose(p, [[1, 0], [1, np.exp(-20)]], rtol=1e-6)
    assert np.isfinite(negative_log_likelihood(logits, np.array([1, 1]), 0.05))


def test_a_fitted_temperature_improves_the_calibration_of_other_slices():
    logits, label = calibrated_cases(4000, 2, seed=1)
    overconfident, half = 3 * logits, 2000
    temperature = fit_temperature(overconfident[:half], label[:half])
    errors = [
        calibration_metrics(label[half:] == 0, apply_temperature(overconfident[half:], t)[:, 0])[1]
        for t in (1, temperature)
    ]
    assert errors[1] < 0.4 * errors[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.sampled_from([1, 5, 10, 15]))
def test_calibration_figures_are_scikit_learns(seed, n, bins):
    random = np.random.default_rng(seed)
    score, truth = random.random(n), random.random(n) < 0.4
    assert calibration_metrics(truth, score)[0] == pytest.approx(
        sklearn.metrics.brier_score_loss(truth, score, pos_label=True, labels=[False, True])
    )
    mean, share, held = reliability(truth, score, bins)
    share_wanted, mean_wanted = calibration_curve(truth, score, n_bins=bins)
    np.testing.assert_allclose(mean, mean_wanted)
    np.testing.assert_allclose(share, share_wanted)
    assert held.sum() == n
    of_case = np.minimum((score * bins).astype(int), bins - 1)
    wanted = 0.0
    for bin_index in set(of_case.tolist()):
        own = of_case == bin_index
        wanted += own.mean() * abs(truth[own].mean() - score[own].mean())
    assert calibration_metrics(truth, score, bins)[1] == pytest.approx(wanted)


def test_the_calibration_error_by_hand():
    # Bin 0.2 to 0.4: two cases, mean 0.3, half of them true. Bin 0.8 to 1: mean 0.95, all true.
    truth = np.array([True, False, True, True])
    score = np.array([0.25, 0.35, 0.9, 1.0])
    assert calibration_metrics(truth, score, 5)[1] == pytest.approx((0.2 + 0.05) / 2)


def test_a_bin_holds_its_upper_edge_and_the_first_its_lower_one_too():
    score = np.array([0, 0.1, 0.1001, 0.2, 0.3, 0.7, 0.9, 0.9001, 1.0])
    assert bin_of(score, 10).tolist() == [0, 0, 1, 1, 2, 6, 8, 9, 9]
    assert bin_of(score, 1).tolist() == [0] * 9


def test_certain_and_right_probabilities_are_perfectly_calibrated():
    truth = np.array([True, False, True])
    assert calibration_metrics(truth, truth * 1.0) == (0, 0)
