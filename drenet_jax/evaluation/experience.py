"""How often a model was right about persons of whom it said what it says now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from drenet_jax.evaluation.calibration import apply_temperature
from drenet_jax.evaluation.persons import SlicePredictions, person_predictions

# Probabilities are told apart by fifths: of the dozens of persons of a validation split, narrower
# parts would hold one or none.
_PARTS = 5


@dataclasses.dataclass(frozen=True)
class Experience:
    """What a model said of the validation persons; their names are not kept.

    Attributes:
      label: [P] int, the true classes.
      probabilities: [P, C], of the persons.
      calibrated: [P, C], likewise at the temperature; None where there is none.
      aggregate: how the persons' probabilities were made of the slices'.
    """

    label: np.ndarray
    probabilities: np.ndarray
    calibrated: np.ndarray | None
    aggregate: str = "mean"

    @classmethod
    def of(
        cls,
        slices: SlicePredictions,
        logits: np.ndarray,
        temperature: float | None,
        aggregate: str = "mean",
        positive: int | None = None,
    ) -> Experience:
        """From the predictions and logits [N, C] of the validation slices."""
        persons = person_predictions(slices, aggregate, positive)
        calibrated = None
        if temperature is not None:
            cool = dataclasses.replace(slices, probabilities=apply_temperature(logits, temperature))
            calibrated = person_predictions(cool, aggregate, positive).probabilities
        return cls(persons.label, persons.probabilities, calibrated, aggregate)

    def to_dict(self) -> dict:
        """Fit for JSON."""
        return {
            "label": self.label.tolist(),
            "probabilities": self.probabilities.tolist(),
            "calibrated": None if self.calibrated is None else self.calibrated.tolist(),
            "aggregate": self.aggregate,
        }

    @classmethod
    def from_dict(cls, values: Mapping) -> Experience:
        calibrated = values["calibrated"]
        return cls(
            label=np.array(values["label"], np.int64),
            probabilities=np.array(values["probabilities"], np.float64),
            calibrated=None if calibrated is None else np.array(calibrated, np.float64),
            # Checkpoints of earlier versions had the mean only.
            aggregate=values.get("aggregate", "mean"),
        )

    def of_such_a_score(
        self, label: int, probability: float, *, calibrated: bool, aggregate: str = "mean"
    ) -> dict | None:
        """How many persons of whom the model said about the same had the label.

        Args:
          label: the class.
          probability: what the model says now, in 0..1.
          calibrated: whether that is at the temperature.
          aggregate: how it was made of the slices'.

        Returns:
          {"from", "to"}: the fifth that holds the probability; {"n", "n_with_label"}: of the
          validation persons in it; {"low", "high"}: the exact 95% interval (Clopper and Pearson
          1934) of the share, None with n = 0. None if nothing is known, as of another aggregate:
          its probabilities are not comparable.
        """
        if aggregate != self.aggregate:
            return None
        told = self.calibrated if calibrated else self.probabilities
        if told is None:
            return None
        part = _part(np.float64(probability))
        alike = _part(told[:, label]) == part
        n, n_with_label = int(alike.sum()), int((self.label[alike] == label).sum())
        low, high = _exact_interval(n_with_label, n) if n else (None, None)
        return {
            "from": float(part / _PARTS),
            "to": float((part + 1) / _PARTS),
            "n": n,
            "n_with_label": n_with_label,
            "low": low,
            "high": high,
        }


def _part(probability: np.ndarray) -> np.ndarray:
    """Which fifth; 1 belongs to the last."""
    return np.minimum(np.floor(probability * _PARTS), _PARTS - 1)


def _exact_interval(k: int, n: int) -> tuple[float, float]:
    # scipy.stats would take half a second to import.
    from scipy.special import betaincinv

    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, 0.025))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 0.975))
    return low, high
