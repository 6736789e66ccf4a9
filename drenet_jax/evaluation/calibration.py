"""Whether a probability of 0.8 holds in 80% of cases, and one number that mends it."""

from __future__ import annotations

import numpy as np

# Temperatures beyond these mean that the logits say nothing of how sure to be.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1 / 20, 20.0


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float | None:
    """The temperature T whose softmax(logits / T) has the lowest negative log-likelihood.

    Guo et al. 2017, On Calibration of Modern Neural Networks. It changes no slice's most probable
    class. To be fitted on validation slices, each of the same weight.

    Args:
      logits: [N, C] float.
      label: [N] int, the true classes.

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
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-9})
    if found.fun >= min(loss(end) for end in ends):
        return None
    return float(np.exp(found.x))


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature), [N, C] float64; 1 leaves the model's own probabilities."""
    return np.exp(_log_softmax(logits, temperature))


def negative_log_likelihood(
    logits: np.ndarray, label: np.ndarray, temperature: float = 1.0
) -> float:
    """The mean over slices of -log of the true class's probability (cross-entropy, in nats).

    Args:
      logits: [N, C] float, N at least 1.
      label: [N] int.
      temperature: see `fit_temperature`.
    """
    log_probability = _log_softmax(logits, temperature)
    return float(-np.take_along_axis(log_probability, label[:, None], axis=1).mean())


def brier_score(is_true: np.ndarray, score: np.ndarray) -> float:
    """The mean squared difference of probability [N] and truth [N] (Brier 1950); N at least 1."""
    return float(np.mean((np.asarray(score, np.float64) - is_true) ** 2))


def expected_calibration_error(is_true: np.ndarray, score: np.ndarray, bins: int) -> float:
    """The mean over cases of |share that is true - mean probability| of the case's bin.

    Naeini et al. 2015; Guo et al. 2017.

    Args:
      is_true: [N] bool, N at least 1.
      score: [N] float, the probability of being true.
      bins: of equal width over 0 to 1, see `bin_of`.
    """
    mean, share, n = reliability(is_true, score, bins)
    return float(np.sum(n * np.abs(share - mean)) / np.sum(n))


def reliability(
    is_true: np.ndarray, score: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points of a reliability diagram.

    Args:
      is_true: [N] bool, whether each case is positive.
      score: [N] float, the probability of the positive class.
      bins: of equal width over 0 to 1, see `bin_of`.

    Returns:
      mean score, share of positive cases and number of cases, [B'] each, of the bins that hold any.
    """
    place = bin_of(score, bins)
    n = np.bincount(place, minlength=bins)
    held = n > 0
    mean = np.bincount(place, weights=score, minlength=bins)[held] / n[held]
    share = np.bincount(place, weights=is_true, minlength=bins)[held] / n[held]
    return mean, share, n[held]


def bin_of(score: np.ndarray, bins: int) -> np.ndarray:
    """[N] int, the bin of each score: a bin holds its upper edge, the first its lower one too.

    So has it Guo et al. 2017, and scikit-learn.
    """
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], score)


def _log_softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = np.asarray(logits, np.float64) / temperature
    return scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)
