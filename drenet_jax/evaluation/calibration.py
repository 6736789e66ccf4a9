"""Calibration: temperature scaling, calibration error, and the model's validation record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from drenet_jax.evaluation.predictions import (
    SlicePredictions,
    person_predictions,
)

# Temperatures beyond these mean that the logits say nothing of how sure to be.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1 / 20, 20.0


def fit_temperature(
    logits: Float[np.ndarray, "slices classes"], label: Int[np.ndarray, " slices"]
) -> float | None:
    """The temperature T whose softmax(logits / T) has the lowest negative log-likelihood.

    Guo et al. 2017, On Calibration of Modern Neural Networks. It changes no slice's most probable
    class. To be fitted on validation slices, each of the same weight.

    Args:
      logits: of the model.
      label: the true classes.

    Returns:
      The temperature; None where none from 1/20 to 20 is best: with no slice, with every slice
      right (the lower the better), or with logits that are no better than chance.
    """
    from scipy.optimize import minimize_scalar

    if len(logits) == 0:
        return None

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits, label, float(np.exp(log_temperature)))

    ends = np.log(_MIN_TEMPERATURE), np.log(_MAX_TEMPERATURE)
    # In 1 / T the likelihood has a single optimum, so it has in log T.
    result = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-9})
    if result.fun >= min(loss(end) for end in ends):
        return None
    return float(np.exp(result.x))


def apply_temperature(
    logits: Float[np.ndarray, "slices classes"], temperature: float
) -> Float[np.ndarray, "slices classes"]:
    """softmax(logits / temperature) in float64."""
    return np.exp(_log_softmax(logits, temperature))


def negative_log_likelihood(
    logits: Float[np.ndarray, "slices classes"],
    label: Int[np.ndarray, " slices"],
    temperature: float = 1.0,
) -> float:
    """The mean over slices of -log of the true class's probability (cross-entropy, in nats).

    Args:
      logits: of the model, one slice or more.
      label: the true classes.
      temperature: see `fit_temperature`.
    """
    log_probability = _log_softmax(logits, temperature)
    return float(-np.take_along_axis(log_probability, label[:, None], axis=1).mean())


def reliability(
    is_true: Bool[np.ndarray, " cases"], score: Float[np.ndarray, " cases"], bins: int
) -> tuple[
    Float[np.ndarray, " filled_bins"],
    Float[np.ndarray, " filled_bins"],
    Int[np.ndarray, " filled_bins"],
]:
    """The points of a reliability diagram.

    Args:
      is_true: whether each case is positive.
      score: the probability of the positive class.
      bins: of equal width over 0 to 1, see `bin_of`.

    Returns:
      mean score, share of positive cases and number of cases of the bins that hold any.
    """
    bin_index = bin_of(score, bins)
    n = np.bincount(bin_index, minlength=bins)
    held = n > 0
    mean = np.bincount(bin_index, weights=score, minlength=bins)[held] / n[held]
    share = np.bincount(bin_index, weights=is_true, minlength=bins)[held] / n[held]
    return mean, share, n[held]


def bin_of(score: Float[np.ndarray, " cases"], bins: int) -> Int[np.ndarray, " cases"]:
    """The bin of each score: a bin holds its upper edge, the first its lower one too.

    As in Guo et al. 2017 and scikit-learn.
    """
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], score)


def _log_softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = np.asarray(logits, np.float64) / temperature
    return scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)


# Probabilities are binned by fifths: of the dozens of persons of a validation split, narrower
# parts would hold one or none.
_PARTS = 5


@dataclasses.dataclass(frozen=True)
class ValidationRecord:
    """Predictions of the validation patients, without their names.

    Attributes:
      label: [P] int, the true classes.
      probabilities: [P, C], of the persons.
      calibrated: [P, C], likewise at the temperature; None where there is none.
      aggregate: how slice probabilities were aggregated.
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
    ) -> ValidationRecord:
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
    def from_dict(cls, values: Mapping) -> ValidationRecord:
        calibrated = values["calibrated"]
        return cls(
            label=np.array(values["label"], np.int64),
            probabilities=np.array(values["probabilities"], np.float64),
            calibrated=None if calibrated is None else np.array(calibrated, np.float64),
            aggregate=values["aggregate"],
        )

    def observed_rate(
        self, label: int, probability: float, *, calibrated: bool, aggregate: str = "mean"
    ) -> dict | None:
        """How many patients with about the same predicted probability had the label.

        Args:
          label: the class.
          probability: the predicted probability, in 0..1.
          calibrated: whether that is at the temperature.
          aggregate: how it was aggregated from the slices'.

        Returns:
          {"from", "to"}: the fifth that holds the probability; {"n", "n_with_label"}: of the
          validation persons in it; {"low", "high"}: the exact 95% interval (Clopper and Pearson
          1934) of the share, None with n = 0. None if nothing is known, as of another aggregate:
          its probabilities are not comparable.
        """
        if aggregate != self.aggregate:
            return None
        known = self.calibrated if calibrated else self.probabilities
        if known is None:
            return None
        part = _part(np.array([probability]))[0]
        similar = _part(known[:, label]) == part
        n, n_with_label = int(similar.sum()), int((self.label[similar] == label).sum())
        low, high = _exact_interval(n_with_label, n) if n else (None, None)
        return {
            "from": float(part / _PARTS),
            "to": float((part + 1) / _PARTS),
            "n": n,
            "n_with_label": n_with_label,
            "low": low,
            "high": high,
        }


def _part(probability: Float[np.ndarray, " cases"]) -> Float[np.ndarray, " cases"]:
    """Which fifth; 1 belongs to the last."""
    return np.minimum(np.floor(probability * _PARTS), _PARTS - 1)


def _exact_interval(k: int, n: int) -> tuple[float, float]:
    """As `scipy.stats.binomtest(k, n).proportion_ci()`, without the import of scipy.stats, which
    would be a fifth of the time of a `predict`."""
    from scipy.special import betaincinv

    low = betaincinv(k, n - k + 1, 0.025) if k else 0.0
    high = betaincinv(k + 1, n - k, 0.975) if k < n else 1.0
    return float(low), float(high)
