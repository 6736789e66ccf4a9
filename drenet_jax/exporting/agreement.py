"""Whether an exported model gives what JAX gives, and a lower precision what float32 gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import roc_auc_score

from drenet_jax.evaluation.decisions import DecisionRule, positive_class
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions
from drenet_jax.evaluation.predictor import Scorer
from drenet_jax.exporting.precision import PrecisionReport
from drenet_jax.models.checkpoint_metadata import Meta

if TYPE_CHECKING:
    from drenet_jax.data.prepared_data import PreparedData

# Of probabilities; of other outputs relative to their largest value.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two runtimes agree on the same slices.

    Attributes:
      n_slices: compared.
      n_other_boxes: slices with another box, where the scores of the proposals leave the choice
        open: they differ by less than `TOLERANCE`.
      largest_difference: of a probability, over the slices with the same boxes.
      problem: what does not agree, in a few words; '' if all does.
    """

    n_slices: int
    n_other_boxes: int
    largest_difference: float
    problem: str


def compare(expected: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> Agreement:
    """Compares what two runtimes give for the same slices.

    Args:
      expected: of JAX, as `SliceScorer` gives it.
      given: likewise, of the exported model.
    """
    n_slices = len(expected["logits"])
    same = np.array(
        [np.array_equal(a, b) for a, b in zip(expected["boxes"], given["boxes"], strict=True)]
    )
    problem = ""
    for i in np.flatnonzero(~same):
        gap = np.abs(expected["scores"][i] - given["scores"][i]).max()
        if not gap < TOLERANCE * max(1.0, np.abs(expected["scores"][i]).max()):
            problem = "other boxes are chosen, whose scores differ"
    for name, values in given.items():
        if values.shape != expected[name].shape:
            return Agreement(n_slices, int((~same).sum()), np.inf, f"the shape of {name} differs")
        a, b = expected[name][same], values[same]
        scale = 1.0 if "probabilities" in name else max(1.0, float(np.abs(a).max(initial=0)))
        difference = float(np.abs(a - b).max(initial=0)) / scale
        if not difference < TOLERANCE and not problem:
            problem = f"{name} differ by {difference:.1g}"
    probabilities = np.abs(expected["probabilities"][same] - given["probabilities"][same])
    return Agreement(n_slices, int((~same).sum()), float(probabilities.max(initial=0.0)), problem)


def compare_precisions(
    float32: Scorer, lower: Scorer, meta: Meta, rule: DecisionRule, data: PreparedData, split: str
) -> PrecisionReport:
    """Scores a split in both precisions.

    Args:
      float32, lower: the model's scorers, which need no variables.
      meta: of the model.
      rule: by which persons get their labels.
      data: prepared as the model's own.
      split: of it; it holds slices.
    """
    # Here, because a prediction that exports its model should not load TensorFlow.
    from drenet_jax.evaluation.evaluator import score_split

    slices: list[SlicePredictions] = []
    boxes: list[np.ndarray] = []
    for scorer in (float32, lower):
        kept: list[np.ndarray] = []

        def keep(_: Mapping, outputs: Mapping, kept: list[np.ndarray] = kept) -> None:
            kept.append(outputs["boxes"])

        scored, _ = score_split(scorer, {}, data, split, meta.config.data.fill, watch=keep)
        slices.append(scored)
        boxes.append(np.concatenate(kept))
    positive = positive_class(meta.labels, meta.config.evaluation.positive_label)
    persons = [person_predictions(scored, rule.aggregate, positive) for scored in slices]
    by_person = np.abs(persons[0].probabilities - persons[1].probabilities)
    labels = [np.array([rule.label_of(row) for row in p.probabilities]) for p in persons]
    aucs = [_auc(p.label == positive, p.probabilities[:, positive]) for p in persons]
    return PrecisionReport(
        data=data.name,
        split=split,
        n_persons=len(persons[0]),
        n_slices=len(slices[0]),
        same_boxes=float((boxes[0] == boxes[1]).all(axis=2).mean()) if boxes[0].size else None,
        largest_slice_difference=float(
            np.abs(slices[0].probabilities - slices[1].probabilities).max()
        ),
        largest_person_difference=float(by_person.max()),
        mean_person_difference=float(by_person.mean()),
        n_other_labels=int((labels[0] != labels[1]).sum()),
        auc_float32=aucs[0],
        auc=aucs[1],
    )


def _auc(is_positive: np.ndarray, score: np.ndarray) -> float | None:
    if is_positive.all() or not is_positive.any():
        return None
    return float(roc_auc_score(is_positive, score))
