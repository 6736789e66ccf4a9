"""Scoring of the validation split during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import ml_collections
import numpy as np
from jaxtyping import UInt8

from drenet_jax import parallel
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
from drenet_jax.models.checkpoints import NOT_VALIDATED
from drenet_jax.models.slice_scorer import SliceScorer
from drenet_jax.training.proposal_monitor import areas_of_boxes
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
      boxes_on_lungs: share of the area of the slices' K boxes that lies on lungs; None: no boxes.
    """

    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=lambda: NOT_VALIDATED)
    record: ValidationRecord | None = None
    picture: UInt8[np.ndarray, "height width 3"] | None = None
    boxes_on_lungs: float | None = None

    @property
    def logged(self) -> dict[str, float | None]:
        """What the log of the run keeps of it."""
        boxes = {} if self.boxes_on_lungs is None else {"boxes_on_lungs": self.boxes_on_lungs}
        return {**self.metrics, **boxes}


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
    areas = np.zeros(2)

    def look_at_boxes(batch: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        nonlocal areas
        areas += areas_of_boxes(outputs["boxes"], batch["lung_mask"])
        if not pictures and len(batch["image"]):
            shown = (batch["image"], outputs["boxes"], outputs["scores"])
            pictures.append(proposal_grid(*(array[:_PICTURED] for array in shown)))

    slices, logits = score_split(
        scorer, replicated.weights, data, "validation", config.data.fill, watch=look_at_boxes
    )
    aggregate = MetricSettings.from_config(config.evaluation).aggregate
    persons = person_predictions(slices, aggregate, positive)
    metrics = classification_metrics(persons.label, persons.probabilities, data.labels, positive)
    temperature = fit_temperature(logits, slices.label)
    on_lungs, of_boxes = parallel.gather_rows(areas[None, None]).sum(axis=0)
    return Validation(
        metrics={
            "auc": metrics["auc"],
            "cross_entropy": negative_log_likelihood(logits, slices.label),
            "temperature": temperature,
        },
        record=ValidationRecord.of(slices, logits, temperature, aggregate, positive),
        picture=next(iter(pictures), None),
        boxes_on_lungs=float(on_lungs / of_boxes) if of_boxes else None,
    )
