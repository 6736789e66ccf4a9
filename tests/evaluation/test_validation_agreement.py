"""The training loop's validation and the evaluation say the same of the same checkpoint."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics

from drenet_jax.data.prepared_data import open_data
from drenet_jax.evaluation.calibration import fit_temperature
from drenet_jax.evaluation.decisions import MetricSettings, positive_class
from drenet_jax.evaluation.evaluation_files import evaluation_metrics
from drenet_jax.evaluation.evaluator import score_split
from drenet_jax.evaluation.predictions import person_predictions
from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.models.checkpoints import Checkpoints


def test_the_figures_kept_with_the_checkpoint_are_those_of_its_evaluation(trained):
    predictor = Predictor.load(trained)
    config = predictor.meta.config
    data = open_data(config.data.dir)
    positive = positive_class(data.labels, config.evaluation.positive_label)
    slices, logits = score_split(
        predictor.scorer, predictor.variables, data, "validation", config.data.fill
    )
    metrics = evaluation_metrics(
        slices,
        person_predictions(slices),
        split="validation",
        positive=positive,
        settings=MetricSettings.from_config(config.evaluation),
    )
    with Checkpoints.of(trained, flag="--workdir") as checkpoints:
        kept = checkpoints.metrics(checkpoints.best_step)
    logged = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])["validation"]
    # The log has the monitor of the proposals besides.
    assert 0 <= logged.pop("boxes_on_lungs") <= 1
    assert kept == logged
    assert metrics["person"]["auc"]["value"] == pytest.approx(kept["auc"], abs=1e-12)
    p = slices.probabilities / slices.probabilities.sum(axis=1, keepdims=True)
    log_loss = sklearn.metrics.log_loss(slices.label, p, labels=np.arange(len(data.labels)))
    assert kept["cross_entropy"] == pytest.approx(log_loss, rel=1e-4)
    temperature = fit_temperature(logits, slices.label)
    if temperature is None:
        assert kept["temperature"] is None
    else:
        assert kept["temperature"] == pytest.approx(temperature, rel=1e-3)
