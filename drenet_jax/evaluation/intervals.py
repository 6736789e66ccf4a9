"""95% confidence intervals by bootstrap over persons (DESIGN 3.7)."""

from __future__ import annotations

import numpy as np

# The percentiles between which 95% of the draws lie.
_PERCENTILES = (2.5, 97.5)

# Draws are worked through in blocks of so many weights, which keeps them in the cache.
_BLOCK_WEIGHTS = 1 << 20


def person_draws(patient_id: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws persons with replacement; a person's slices go with the person.

    The draws depend on the set of persons and the seed, not on the order or the number of the rows:
    slices and persons of one cohort, or two models on one split, are judged on the same draws.

    Args:
      patient_id: [N] str, the person of each row.
      draws: how many samples of P persons to draw from the P persons.
      seed: of the draws.

    Returns:
      person: [N] int, each row's place among the P persons.
      times: [draws, P] float64, how many times each person was drawn.
    """
    assert draws >= 1, draws
    persons, person = np.unique(patient_id, return_inverse=True)
    n = len(persons)
    if n == 0:
        return person, np.zeros((draws, 0))
    # To draw n times with replacement, and to count who came up, is one multinomial sample.
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    return person, times.astype(np.float64)


def auc_of_draws(
    is_positive: np.ndarray, score: np.ndarray, person: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """The area under the ROC curve of each draw, ties counted half, as scikit-learn has it.

    Args:
      is_positive: [N] bool.
      score: [N] float, higher is more positive.
      person: [N] int, each row's person (see `person_draws`).
      times: [D, P] float, how many times each person was drawn.

    Returns:
      [D] float64; NaN where a draw holds one class only.
    """
    auc = np.full(len(times), np.nan)
    if len(score) == 0:
        return auc
    order = np.argsort(score, kind="stable")
    positive, rank, person = is_positive[order], score[order], person[order]
    # Rows of equal score stand together; the pairs within count half.
    starts = np.flatnonzero(np.r_[True, rank[1:] != rank[:-1]])
    block = max(1, _BLOCK_WEIGHTS // len(score))
    for first in range(0, len(times), block):
        weight = times[first : first + block, person]
        tied_positive = np.add.reduceat(weight * positive, starts, axis=1)
        tied_negative = np.add.reduceat(weight * ~positive, starts, axis=1)
        below = np.cumsum(tied_negative, axis=1) - tied_negative
        won = np.sum(tied_positive * (below + tied_negative / 2), axis=1)
        pairs = tied_positive.sum(axis=1) * tied_negative.sum(axis=1)
        np.divide(won, pairs, out=auc[first : first + block], where=pairs > 0)
    return auc


def percentile_interval(values: np.ndarray) -> tuple[float, float] | None:
    """The 95% percentile interval of [D] draws; NaN draws (undefined) are left out.

    Returns:
      (low, high), or None where more than half of the draws are undefined: what is left would be a
      selection of the draws that suit the metric.
    """
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values) or len(defined) == 0:
        return None
    low, high = np.percentile(defined, _PERCENTILES)
    return float(low), float(high)
