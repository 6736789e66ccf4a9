"""Two models on the same persons: differences with 95% intervals, and tests of them.

Each difference is the first model's figure less the second's. DeLong's and McNemar's tests take
their cases as independent: give them persons, never slices.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from drenet_jax.evaluation.intervals import NORMAL, Z_95
from drenet_jax.evaluation.metrics import Metric, Predictions, Resampled
from drenet_jax.evaluation.settings import MetricSettings

# From so many cases on that one model alone has right, the chi-squared test holds (McNemar's usual
# rule, as in statsmodels' documentation and most textbooks).
_EXACT_BELOW = 25

# Variances of differences of AUCs below this are rounding: of n cases of each kind, two AUCs that
# differ at all have one of 1 / (4 n^4) or more.
_NO_VARIANCE = 1e-24


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """A difference with its 95% interval and the two-sided p-value of "there is none".

    Attributes:
      difference: the first model's figure less the second's; None where undefined, as all below.
      low, high: of the interval.
      p_value: not adjusted, see `holm`.
      why: what is undefined and why; empty where nothing is.
    """

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    why: str = ""

    def to_dict(self) -> dict:
        """Fit for JSON; `why` only where something is undefined."""
        values = dataclasses.asdict(self)
        return values if self.why else {k: v for k, v in values.items() if k != "why"}


def delong(is_positive: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray) -> PairedTest:
    """DeLong's test of two AUCs on the same cases (DeLong, DeLong and Clarke-Pearson 1988).

    Args:
      is_positive: [N] bool.
      scores_a, scores_b: [N] float, higher is more positive.
    """
    is_positive = np.asarray(is_positive, bool)
    n_positive, n_negative = int(is_positive.sum()), int((~is_positive).sum())
    if not n_positive or not n_negative:
        return PairedTest(None, None, None, None, "only one class present")
    of_a, of_b = _placements(is_positive, scores_a), _placements(is_positive, scores_b)
    # The mean of the positive cases' placements is the AUC.
    difference = float(of_a[is_positive].mean() - of_b[is_positive].mean())
    if min(n_positive, n_negative) < 2:
        return PairedTest(difference, None, None, None, "fewer than two cases of a class")
    variance = _variance_of_mean(of_a - of_b, is_positive)
    if variance < _NO_VARIANCE:
        if abs(difference) < np.sqrt(_NO_VARIANCE):
            return PairedTest(0.0, None, None, 1.0, "both models rank the cases alike")
        return PairedTest(difference, None, None, None, "the difference is the same in every case")
    error = float(np.sqrt(variance))
    return PairedTest(
        difference,
        difference - Z_95 * error,
        difference + Z_95 * error,
        _two_sided(difference / error),
    )


def delong_variance(is_positive: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """An AUC and DeLong's estimate of its variance; two or more cases of each kind are needed."""
    is_positive = np.asarray(is_positive, bool)
    placements = _placements(is_positive, scores)
    return float(placements[is_positive].mean()), _variance_of_mean(placements, is_positive)


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> PairedTest:
    """McNemar's test of two accuracies on the same cases.

    With fewer than 25 cases that one model alone has right, the exact binomial test; from there on
    the chi-squared test with Edwards' continuity correction. The interval is Bonett and Price's
    (2012), which Fagerland, Lydersen and Laake (2014) recommend; it need not agree with the test.

    Args:
      correct_a, correct_b: [N] bool.
    """
    correct_a, correct_b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    n = len(correct_a)
    if n == 0:
        return PairedTest(None, None, None, None, "there are no cases")
    only_a, only_b = int(np.sum(correct_a & ~correct_b)), int(np.sum(correct_b & ~correct_a))
    discordant = only_a + only_b
    if discordant < _EXACT_BELOW:
        p_value = _exact_binomial(min(only_a, only_b), discordant)
    else:
        p_value = _two_sided((abs(only_a - only_b) - 1) / np.sqrt(discordant))
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    centre = share_a - share_b
    half = Z_95 * float(np.sqrt((share_a + share_b - centre**2) / (n + 2)))
    return PairedTest(
        (only_a - only_b) / n, max(-1.0, centre - half), min(1.0, centre + half), p_value
    )


def paired_bootstrap(
    a: Predictions,
    b: Predictions,
    positive: int,
    settings: MetricSettings,
    threshold: float | None = None,
) -> dict[str, Metric]:
    """Differences of all metrics, with 95% intervals by bootstrap over persons.

    Both models are judged on the same draws of persons.

    Args:
      a, b: both of slices or both of persons; of the same persons and labels.
      positive: the index of the positive class.
      settings: of the metrics and the draws.
      threshold: instead of `settings.threshold`.

    Returns:
      For each metric `value` (a's less b's), `low`, `high`, and `why` where one of them is None.
    """
    assert a.labels == b.labels, (a.labels, b.labels)
    assert set(a.patient_id.tolist()) == set(b.patient_id.tolist())
    if threshold is not None:
        settings = dataclasses.replace(settings, threshold=threshold)
    of_a, of_b = (Resampled.of(one, positive, settings) for one in (a, b))
    return of_a.less(of_b).table()


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) correction for several comparisons: adjusted p-values, in the same order.

    A p-value that is None stays None and counts as no comparison.
    """
    adjusted: list[float | None] = [None] * len(p_values)
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    least = 0.0
    for rank, (p, i) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[i] = least
    return adjusted


def _placements(is_positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[N] float, the share of the other kind's cases that each case is placed right against.

    By mid-ranks, in O(N log N) (Sun and Xu 2014).
    """
    from scipy.stats import rankdata

    scores = np.asarray(scores, np.float64)
    # Among all cases less among its own kind: how many of the other kind lie below, ties half.
    below = rankdata(scores)
    for kind in (is_positive, ~is_positive):
        below[kind] -= rankdata(scores[kind])
    return np.where(is_positive, below / np.sum(~is_positive), 1 - below / np.sum(is_positive))


def _variance_of_mean(placements: np.ndarray, is_positive: np.ndarray) -> float:
    return float(
        sum(placements[kind].var(ddof=1) / kind.sum() for kind in (is_positive, ~is_positive))
    )


def _two_sided(z: float) -> float:
    return 2 * NORMAL.cdf(-abs(z))


def _exact_binomial(fewer: int, n: int) -> float:
    """The two-sided p-value of `fewer` or less heads, or tails, in n throws of a fair coin."""
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)
