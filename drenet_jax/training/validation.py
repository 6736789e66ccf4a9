"""Scoring of the validation split during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_collections
import numpy as np
from jaxtyping import UInt8

from drenet_jax.data.prepared_data import PreparedData
from drenet_jax.evaluation.calibration import (
    ValidationRecord,
    fit_temperature,
    negative_log_likelihood,
)
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.evaluator import score_split
from drenet_jax.evaluation.metrics import classification_metrics
from drenet_jax.evaluation.predictions import person_predictions
from drenet_jax.evaluation.predictor import SliceScorer
from drenet_jax.models.checkpoints import NOT_VALIDATED
from drenet_jax.training.run_log import proposal_grid
from drenet_jax.training.state import TrainState

# Validation slices in the picture of the proposals.
_PICTURED = 9


@dataclasses.dataclass(frozen=True, eq=False)
class Validation:
    """The result of scoring the validation split.

    Attributes:
      metrics: the patients' AUC, the cross-entropy of the slices and their temperature.
      record: scores and labels of the patients.
      picture: RGB grid of some slices with their proposals.
    """

    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=lambda: NOT_VALIDATED)
    record: ValidationRecord | None = None
    picture: UInt8[np.ndarray, "height width 3"] | None = None


def validate(
    config: ml_collections.ConfigDict,
    scorer: SliceScorer,
    replicated: TrainState,
    data: PreparedData,
    positive: int,
) -> Validation:
    """Scores the validation split, if it holds slices."""
    if not data.n_slices["validation"]:
        return Validation()
    pictures: list[np.ndarray] = []

    def draw(images: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        if not pictures and len(images):
            shown = (images, outputs["boxes"], outputs["scores"])
            pictures.append(proposal_grid(*(array[:_PICTURED] for array in shown)))

    variables = {"params": replicated.params, "batch_stats": replicated.batch_stats}
    slices, logits = score_split(
        scorer, variables, data, "validation", config.data.fill, watch=draw
    )
    aggregate = MetricSettings.from_config(config.evaluation).aggregate
    persons = person_predictions(slices, aggregate, positive)
    metrics = classification_metrics(persons.label, persons.probabilities, data.labels, positive)
    temperature = fit_temperature(logits, slices.label)
    return Validation(
        metrics={
            "auc": metrics["auc"],
            "cross_entropy": negative_log_likelihood(logits, slices.label),
            "temperature": temperature,
        },
        record=ValidationRecord.of(slices, logits, temperature, aggregate, positive),
        picture=next(iter(pictures), None),
    )
