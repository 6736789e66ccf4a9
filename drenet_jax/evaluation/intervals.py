"""95% confidence intervals by bootstrap over persons (DESIGN 3.7)."""

from __future__ import annotations

import statistics

import numpy as np

NORMAL = statistics.NormalDist()
# A normal variable lies within so many standard deviations with a probability of 95%.
Z_95 = NORMAL.inv_cdf(0.975)

# Leaving out one group of persons after the other tells the skewness well enough with so many.
_MAX_GROUPS = 500

# Figures nearer than this are equal: the same ratio, computed in another order.
_EQUAL = 1e-12


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


def all_but_one(n: int) -> np.ndarray:
    """[J, n] float64, how many times each of n persons counts when one after the other is left out.

    Of more than 500 persons, one of 500 groups after the other.
    """
    groups = min(n, _MAX_GROUPS)
    return 1.0 - (np.arange(n) % max(groups, 1) == np.arange(groups)[:, None])


def bca_interval(
    value: float, drawn: np.ndarray, left_out: np.ndarray
) -> tuple[float, float] | None:
    """The bias-corrected and accelerated 95% interval (BCa; Efron 1987).

    Plain percentiles of the draws lie too low where a figure is near 1: of a person AUC of 0.95 in
    cohorts of 80 persons, 92% of such intervals hold the true one, of 30 persons 87%; of BCa's 96%
    and 92% (tests/evaluation/test_coverage.py has the first).

    Args:
      value: the figure of the whole sample.
      drawn: [D] float, the figure of each bootstrap draw; NaN (undefined) is left out.
      left_out: [J] float, the figure when one person after the other is left out (`all_but_one`);
        NaN is left out.

    Returns:
      (low, high), or None for the reasons of `why_no_interval`.
    """
    if why_no_interval(value, drawn):
        return None
    drawn = drawn[~np.isnan(drawn)]
    below, above = np.mean(drawn < value - _EQUAL), np.mean(drawn > value + _EQUAL)
    bias = NORMAL.inv_cdf((1 + below - above) / 2)
    acceleration = _acceleration(left_out[~np.isnan(left_out)])
    ends = []
    for z in (-Z_95, Z_95):
        moved = bias + z
        ends.append(NORMAL.cdf(bias + moved / (1 - acceleration * moved)))
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def calibration_interval(value: float, drawn: np.ndarray) -> tuple[float, float] | None:
    """The 95% interval of an expected calibration error: the pivotal bootstrap of its square.

    The error of a sample lies above that of the population, since noise in a bin counts as error,
    and that of a draw above the sample's: of a well calibrated model, percentiles of the draws hold
    it in 0% and BCa in 1% to 43% of cohorts of 30 to 300 persons. Squares of noise add up, so the
    square's excess of a draw over the sample is about that of the sample over the population, and
    is taken off: 96% to 99% then, and 84% to 94% of a badly calibrated one.

    Args:
      value: the error of the whole sample.
      drawn: [D] float, that of each bootstrap draw; NaN is left out.

    Returns:
      (low, high), or None for the first two reasons of `why_no_interval`.
    """
    if why_no_interval(value, drawn, one_sided=True):
        return None
    low, high = np.nanquantile(drawn**2, (0.025, 0.975))
    return max(0.0, 2 * value**2 - high) ** 0.5, max(value**2, 2 * value**2 - low) ** 0.5


def why_no_interval(value: float, drawn: np.ndarray, *, one_sided: bool = False) -> str:
    """Why [D] draws tell no interval, in words for the reader of a report; "" where they do.

    More than half of them are undefined: the rest would be a selection that suits the metric. Or
    all are alike: one value would hold the truth in 0%, not in 95% of cases. Or, unless `one_sided`
    draws are expected, all lie on one side of the value.
    """
    defined = drawn[~np.isnan(drawn)]
    if 2 * len(defined) < len(drawn) or not len(defined):
        return f"undefined in {len(drawn) - len(defined)} of {len(drawn)} bootstrap draws"
    if np.ptp(defined) <= _EQUAL:
        return "every bootstrap draw gives the same value, which tells nothing of its error"
    if one_sided or (defined.min() <= value + _EQUAL and defined.max() >= value - _EQUAL):
        return ""
    return "every bootstrap draw lies on the same side of the value"


def _acceleration(left_out: np.ndarray) -> float:
    """The skewness of the influence of single persons, over 6."""
    if len(left_out) == 0:
        return 0.0
    influence = left_out.mean() - left_out
    spread = np.sum(influence**2)
    if spread < len(left_out) * _EQUAL**2:
        return 0.0
    return float(np.sum(influence**3) / (6 * spread**1.5))
