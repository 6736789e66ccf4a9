"""The observed rate of the validation record."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats

import drenet_jax
from drenet_jax.evaluation.calibration import ValidationRecord
from drenet_jax.evaluation.predictions import SlicePredictions
from drenet_jax.models.checkpoints import Checkpoints


def _experience(probabilities, label, calibrated=None):
    both = [np.stack([p, 1 - p], axis=1) for p in map(np.array, (probabilities, calibrated or []))]
    return ValidationRecord(np.array(label), both[0], both[1] if calibrated else None)


def test_persons_of_the_same_fifth_are_counted():
    known = _experience([0.05, 0.81, 0.9, 1.0, 0.79, 0.8], [0, 0, 1, 0, 0, 1])
    rate = known.observed_rate(0, 0.95, calibrated=False)
    assert (rate["from"], rate["to"], rate["n"], rate["n_with_label"]) == (0.8, 1.0, 4, 2)
    expected = scipy.stats.binomtest(2, 4).proportion_ci(method="exact")
    assert (rate["low"], rate["high"]) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("k", "n"), [(0, 3), (3, 3), (7, 9), (1, 200)])
def test_the_interval_is_the_exact_one(k, n):
    known = _experience([0.5] * n, [0] * k + [1] * (n - k))
    rate = known.observed_rate(0, 0.5, calibrated=False)
    expected = scipy.stats.binomtest(k, n).proportion_ci(method="exact")
    assert (rate["low"], rate["high"]) == pytest.approx((expected.low, expected.high))


def test_nobody_with_such_a_score_is_said_and_not_guessed():
    rate = _experience([0.1], [1]).observed_rate(0, 0.7, calibrated=False)
    assert rate["n"] == 0
    assert rate["low"] is None
    assert rate["high"] is None


def test_a_calibrated_score_is_compared_with_calibrated_ones():
    known = _experience([0.9, 0.9], [0, 1], calibrated=[0.5, 0.5])
    assert known.observed_rate(0, 0.5, calibrated=True)["n"] == 2
    assert known.observed_rate(0, 0.5, calibrated=False)["n"] == 0
    assert _experience([0.9], [0]).observed_rate(0, 0.9, calibrated=True) is None


def test_it_is_of_persons_not_of_slices_and_survives_json():
    n = 4
    slices = SlicePredictions(
        labels=("a", "b"),
        patient_id=np.array(["p", "p", "q", "q"]),
        slice_name=np.array(["1", "2", "1", "2"]),
        slice_index=np.arange(n),
        site=np.array([""] * n),
        label=np.array([0, 0, 1, 1]),
        probabilities=np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.4, 0.6]]),
    )
    known = ValidationRecord.of(slices, np.log(slices.probabilities), 2.0)
    np.testing.assert_allclose(known.probabilities[:, 0], [0.7, 0.3])
    root = np.sqrt(slices.probabilities)
    cool = root / root.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(known.calibrated, [cool[:2].mean(0), cool[2:].mean(0)])
    again = ValidationRecord.from_dict(json.loads(json.dumps(known.to_dict())))
    np.testing.assert_array_equal(again.calibrated, known.calibrated)
    np.testing.assert_array_equal(again.label, known.label)


def test_a_run_keeps_it_with_its_checkpoint_and_names_its_training_persons(trained, phantoms):
    pipeline = drenet_jax.load(trained)
    with Checkpoints.of(trained, flag="--workdir") as checkpoints:
        kept = checkpoints.validation(checkpoints.best_step)
    n = sum(pipeline.predictor.meta.trained_on["splits"]["validation"].values())
    assert len(kept["label"]) == n > 0
    assert sum(pipeline.predictor.meta.trained_on["splits"]["train"].values()) == 6
    assert pipeline.predictor.meta.trained_on["sites"] == ["A"]
    result = pipeline.person(next((phantoms / "dicom").iterdir()))
    assert result["model"]["trained_on"] == pipeline.predictor.meta.trained_on
    rate = result["person"]["validation"]
    assert (
        rate["from"] <= result["person"]["probabilities"][result["person"]["label"]] <= rate["to"]
    )
