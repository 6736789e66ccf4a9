"""Bootstrap confidence intervals of the metrics over patients, and paired tests of two models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import binomtest, rankdata, skew

from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.metrics import (
    Metric,
    classification_metrics,
    metrics_of_draws,
    reason_undefined,
)
from drenet_jax.evaluation.predictions import (
    Predictions,
)

_NORMAL = NormalDist()
# A normal variable lies within so many standard deviations with a probability of 95%.
Z_95 = _NORMAL.inv_cdf(0.975)

# Leaving out one group of persons after the other estimates the skewness well enough with so many.
_MAX_GROUPS = 500

# Values nearer than this are equal: the same ratio, computed in another order.
_EQUAL = 1e-12


def metrics_with_intervals(
    predictions: Predictions,
    positive: int,
    settings: MetricSettings,
    threshold: float | np.ndarray | None = None,
) -> dict[str, Metric]:
    """The metrics of `metrics`, each with a 95% bootstrap interval over persons.

    Args:
      predictions: of slices or of persons.
      positive: the index of the positive class.
      settings: of the metrics and the draws.
      threshold: instead of `settings.threshold`; may be another for each case, [N].

    Returns:
      For each metric `value`, `low`, `high`, and `why` where one of them is None. Fit for JSON.
    """
    values, drawn, left_out = _resample(predictions, positive, settings, threshold)
    n = len(predictions)
    return {
        name: with_interval(
            value,
            drawn[name],
            left_out[name],
            why=reason_undefined(name, predictions.labels, positive, settings, n)
            if value is None
            else "",
            is_calibration_error=name.startswith("ece"),
        )
        for name, value in values.items()
    }


def paired_bootstrap(
    a: Predictions, b: Predictions, positive: int, settings: MetricSettings
) -> dict[str, Metric]:
    """Differences of all metrics, with 95% intervals by bootstrap over persons.

    Both models are evaluated on the same draws of persons.

    Args:
      a, b: both of slices or both of persons; of the same persons and labels.
      positive: the index of the positive class.
      settings: of the metrics and the draws.

    Returns:
      For each metric `value` (a's less b's), `low`, `high`, and `why` where one of them is None.
    """
    assert a.labels == b.labels, (a.labels, b.labels)
    assert set(a.patient_id.tolist()) == set(b.patient_id.tolist())
    values_a, drawn_a, left_out_a = _resample(a, positive, settings)
    values_b, drawn_b, left_out_b = _resample(b, positive, settings)
    differences = {}
    for name, value_a in values_a.items():
        value_b, difference, why = values_b[name], None, ""
        if value_a is None or value_b is None:
            why = reason_undefined(name, a.labels, positive, settings, len(a))
        else:
            difference = value_a - value_b
        differences[name] = with_interval(
            difference,
            drawn_a[name] - drawn_b[name],
            left_out_a[name] - left_out_b[name],
            why=why,
        )
    return differences


def _resample(
    predictions: Predictions,
    positive: int,
    settings: MetricSettings,
    threshold: float | np.ndarray | None = None,
) -> tuple[dict[str, float | None], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The metrics of the sample, of the bootstrap draws, and without each person."""
    p = predictions
    cases = p.label, p.probabilities, p.labels, positive, settings
    person, times = person_draws(p.patient_id, settings.bootstrap_draws, settings.bootstrap_seed)
    without = all_but_one(times.shape[1])
    return (
        classification_metrics(*cases, threshold),
        metrics_of_draws(*cases, person, times, threshold),
        metrics_of_draws(*cases, person, without, threshold),
    )


def with_interval(
    value: float | None,
    drawn: Float[np.ndarray, " draws"],
    left_out: Float[np.ndarray, " groups"],
    *,
    why: str = "",
    is_calibration_error: bool = False,
) -> Metric:
    """A metric with its interval.

    Args:
      value: of the sample; None where undefined.
      drawn: of the bootstrap draws; NaN where undefined.
      left_out: with one person after the other left out.
      why: `value` is None.
      is_calibration_error: see `calibration_interval`.
    """
    interval = None
    if value is not None and len(left_out) == 1:
        why = "one person alone gives no interval"
    elif value is not None:
        if is_calibration_error:
            interval = calibration_interval(value, drawn)
        else:
            interval = bca_interval(value, drawn, left_out)
        if interval is None:
            why = reason_no_interval(value, drawn, one_sided=is_calibration_error)
    low, high = interval or (None, None)
    metric: Metric = {"value": value, "low": low, "high": high}
    return metric | {"why": why} if why else metric


def person_draws(
    patient_id: Shaped[np.ndarray, " rows"], draws: int, seed: int
) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, "draws persons"]]:
    """Draws persons with replacement; a person's slices go with the person.

    The draws depend on the set of persons and the seed, not on the order or the number of the rows:
    slices and persons of one cohort, or two models on one split, are evaluated on the same draws.

    Args:
      patient_id: the person of each row.
      draws: how many samples of all P persons to draw.
      seed: of the draws.

    Returns:
      person: each row's index among the persons, sorted.
      times: how many times each person was drawn.
    """
    assert draws >= 1, draws
    persons, person = np.unique(patient_id, return_inverse=True)
    n = len(persons)
    if n == 0:
        return person, np.zeros((draws, 0))
    # To draw n times with replacement, and to count who came up, is one multinomial sample.
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    return person, times.astype(np.float64)


def all_but_one(n: int) -> Float[np.ndarray, "groups {n}"]:
    """How many times each of n persons counts when one after the other is left out.

    Of more than 500 persons, one of 500 groups after the other.
    """
    groups = min(n, _MAX_GROUPS)
    return 1.0 - (np.arange(n) % max(groups, 1) == np.arange(groups)[:, None])


def bca_interval(
    value: float, drawn: Float[np.ndarray, " draws"], left_out: Float[np.ndarray, " groups"]
) -> tuple[float, float] | None:
    """The bias-corrected and accelerated 95% interval (BCa; Efron 1987).

    Plain percentiles of the draws lie too low where a metric is near 1: of a person AUC of 0.95 in
    cohorts of 80 persons, 92% of such intervals hold the true one, of 30 persons 87%; of BCa's 96%
    and 92% (tests/evaluation/test_interval_coverage.py).

    Args:
      value: the metric of the full sample.
      drawn: the metric of each bootstrap draw; NaN (undefined) is ignored.
      left_out: the metric when one person after the other is left out (`all_but_one`); likewise.

    Returns:
      (low, high), or None for the reasons of `reason_no_interval`.
    """
    if reason_no_interval(value, drawn):
        return None
    drawn = drawn[~np.isnan(drawn)]
    below, above = np.mean(drawn < value - _EQUAL), np.mean(drawn > value + _EQUAL)
    bias = _NORMAL.inv_cdf(float(1 + below - above) / 2)
    acceleration = _acceleration(left_out[~np.isnan(left_out)])
    ends = []
    for z in (-Z_95, Z_95):
        moved = bias + z
        ends.append(_NORMAL.cdf(bias + moved / (1 - acceleration * moved)))
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def calibration_interval(
    value: float, drawn: Float[np.ndarray, " draws"]
) -> tuple[float, float] | None:
    """The 95% interval of an expected calibration error: the pivotal bootstrap of its square.

    The error of a sample lies above that of the population, since noise in a bin counts as error,
    and that of a draw above the sample's: of a well calibrated model, percentiles of the draws hold
    it in 0% and BCa in 1% to 43% of cohorts of 30 to 300 persons. Squares of noise add up, so the
    square's excess of a draw over the sample is about that of the sample over the population, and
    is taken off: 96% to 99% then, and 84% to 94% of a badly calibrated one.

    Args:
      value: the error of the whole sample.
      drawn: that of each bootstrap draw; NaN is ignored.

    Returns:
      (low, high), or None for the first two reasons of `reason_no_interval`.
    """
    if reason_no_interval(value, drawn, one_sided=True):
        return None
    low, high = np.nanquantile(drawn**2, (0.025, 0.975))
    return max(0.0, 2 * value**2 - high) ** 0.5, max(value**2, 2 * value**2 - low) ** 0.5


def reason_no_interval(
    value: float, drawn: Float[np.ndarray, " draws"], *, one_sided: bool = False
) -> str:
    """Why draws give no interval, for the reader of a report; "" where they do.

    More than half of them are undefined: the rest would be a biased selection. Or
    all are alike: one value would hold the truth in 0%, not in 95% of cases. Or, unless `one_sided`
    draws are expected, all lie on one side of the value.
    """
    defined = drawn[~np.isnan(drawn)]
    if 2 * len(defined) < len(drawn) or not len(defined):
        return f"undefined in {len(drawn) - len(defined)} of {len(drawn)} bootstrap draws"
    if np.ptp(defined) <= _EQUAL:
        return "every bootstrap draw gives the same value, so there is no estimate of its error"
    if one_sided or (defined.min() <= value + _EQUAL and defined.max() >= value - _EQUAL):
        return ""
    return "every bootstrap draw lies on the same side of the value"


def _acceleration(left_out: np.ndarray) -> float:
    """The skewness of the influence of single persons, over 6."""
    if len(left_out) == 0 or np.ptp(left_out) < _EQUAL:
        return 0.0
    return -float(skew(left_out)) / (6 * len(left_out) ** 0.5)


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
      difference: the first model's metric minus the second's; None where undefined, as all below.
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


def delong(
    is_positive: Bool[np.ndarray, " cases"],
    scores_a: Float[np.ndarray, " cases"],
    scores_b: Float[np.ndarray, " cases"],
) -> PairedTest:
    """DeLong's test of two AUCs on the same cases (DeLong, DeLong and Clarke-Pearson 1988).

    Args:
      is_positive: the truth.
      scores_a, scores_b: of the two models, higher is more positive.
    """
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


def mcnemar(
    correct_a: Bool[np.ndarray, " cases"], correct_b: Bool[np.ndarray, " cases"]
) -> PairedTest:
    """McNemar's test of two accuracies on the same cases.

    With fewer than 25 cases that one model alone has right, the exact binomial test; from there on
    the chi-squared test with Edwards' continuity correction. The interval is Bonett and Price's
    (2012), which Fagerland, Lydersen and Laake (2014) recommend; it need not agree with the test.

    Args:
      correct_a, correct_b: which cases each model has right.
    """
    n = len(correct_a)
    if n == 0:
        return PairedTest(None, None, None, None, "there are no cases")
    only_a, only_b = int(np.sum(correct_a & ~correct_b)), int(np.sum(correct_b & ~correct_a))
    discordant = only_a + only_b
    if discordant < _EXACT_BELOW:
        p_value = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    else:
        p_value = _two_sided((abs(only_a - only_b) - 1) / np.sqrt(discordant))
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    centre = share_a - share_b
    half = Z_95 * float(np.sqrt((share_a + share_b - centre**2) / (n + 2)))
    return PairedTest(
        (only_a - only_b) / n, max(-1.0, centre - half), min(1.0, centre + half), p_value
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) correction for several comparisons: adjusted p-values, in the same order.

    Written here, since statsmodels would bring pandas and patsy for these lines.

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
    return 2 * _NORMAL.cdf(-abs(z))
