"""Formulas of all metrics, for one sample and for many bootstrap samples at once.

Paper 2.3, equations 1-5; ranking metrics agree with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from drenet_jax.evaluation.calibration import bin_of
from drenet_jax.evaluation.decisions import MetricSettings, decide, is_positive

# The metrics that depend on the threshold.
DECISION_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "f1_paper",
)

# Computes the ranking metrics of each weighting, [D] each, from is_positive [N] and score [N].
Ranking = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


def of_label(metric: str, label: str) -> str:
    """The name of a metric of one label against the rest, such as `auc[healthy]`.

    No other name has a bracket, so a label may be called `macro` or `paper`.
    """
    return f"{metric}[{label}]"


def values_of_sample(
    label: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    positive: int,
    settings: MetricSettings,
) -> dict[str, float]:
    """Every metric of a sample as it is; NaN where it is undefined.

    Args:
      label: [N] int.
      probabilities: [N, C] float.
      labels: the C class names.
      positive: the index of the positive class.
      settings: of the metrics.
    """

    def ranking(is_positive: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
        values = ranking_by_scikit_learn(is_positive, score, settings.specificities)
        return {name: np.array([value]) for name, value in values.items()}

    group, weight = np.zeros(len(label), np.int64), np.ones((1, 1))
    values = _metrics(label, probabilities, labels, positive, settings, group, weight, ranking)
    return {name: float(value[0]) for name, value in values.items()}


def values_of_draws(
    label: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    positive: int,
    settings: MetricSettings,
    person: np.ndarray,
    times: np.ndarray,
) -> dict[str, np.ndarray]:
    """Every metric of each of D draws of persons.

    Args:
      label, probabilities, labels, positive, settings: see `values_of_sample`.
      person: [N] int, each case's person.
      times: [D, P] float, how many times each person counts.

    Returns:
      [D] float64 for each metric, NaN where it is undefined.
    """

    def ranking(is_positive: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
        return ranking_of_draws(is_positive, score, person, times, settings.specificities)

    return _metrics(label, probabilities, labels, positive, settings, person, times, ranking)


def reason_undefined(
    name: str, labels: Sequence[str], positive: int, settings: MetricSettings, n: int
) -> str:
    """Why the metric called `name` of n cases is undefined, in words for the reader of a report."""
    if n == 0:
        return "there are no cases"
    metric, _, text = name.partition("[")
    if not text and metric.endswith("_macro"):
        return "undefined for at least one of the labels"
    label = text[:-1] if text else labels[positive]
    one_class = "only one class present"
    return {
        "precision": f"no case is predicted as {label}",
        "recall": f"no case is {label}",
        "specificity": f"every case is {label}",
        "balanced_accuracy": "recall or specificity is undefined",
        "f1": f"no case is {label} or is predicted as {label}",
        "f1_paper": "precision or recall is undefined",
        "auc": one_class,
        "average_precision": f"no case is {label}",
        **{recall_at(specificity): one_class for specificity in settings.specificities},
    }[metric]


def _metrics(
    label: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    positive: int,
    settings: MetricSettings,
    group: np.ndarray,
    times: np.ndarray,
    ranking: Ranking,
) -> dict[str, np.ndarray]:
    """Every metric under D weightings of G groups of cases, [D] each."""
    label, probabilities = np.asarray(label), np.asarray(probabilities, np.float64)
    assert probabilities.shape == (len(label), len(labels)), (probabilities.shape, labels)
    assert len(labels) >= 2, labels
    assert 0 <= positive < len(labels), positive
    assert np.isfinite(probabilities).all()
    n = times @ np.bincount(group, minlength=times.shape[1])

    def counted(cases: np.ndarray) -> np.ndarray:
        return times @ np.bincount(group, weights=cases, minlength=times.shape[1])

    def rates(truth: np.ndarray, decision: np.ndarray) -> dict[str, np.ndarray]:
        tp, fp = counted(truth & decision), counted(~truth & decision)
        tn, fn = counted(~truth & ~decision), counted(truth & ~decision)
        precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
        specificity = _ratio(tn, tn + fp)
        return {
            "accuracy": _ratio(tp + tn, n),
            "balanced_accuracy": (recall + specificity) / 2,
            "precision": precision,
            "recall": recall,
            "specificity": specificity,
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "f1_paper": (precision + recall) / 2,
        }

    def calibration_error(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
        bins = settings.calibration_bins
        place = group * bins + bin_of(score, bins)
        excess = np.bincount(place, weights=truth - score, minlength=times.shape[1] * bins)
        # Of each bin: its share of the cases times the difference of its two means.
        return _ratio(np.abs(times @ excess.reshape(-1, bins)).sum(axis=1), n)

    def of_scores(truth: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
        return {
            **ranking(truth, score),
            "brier": _ratio(counted((score - truth) ** 2), n),
            "ece": calibration_error(truth, score),
        }

    scored = {
        index: of_scores(label == index, probabilities[:, index])
        for index in (range(len(labels)) if len(labels) > 2 else [positive])
    }
    decision = is_positive(probabilities, positive, settings.threshold)
    values = {**rates(label == positive, decision), **scored[positive]}
    if len(labels) == 2:
        return values

    chosen = decide(probabilities, positive, settings.threshold)
    values["accuracy_argmax"] = _ratio(counted(chosen == label), n)
    values["ece_argmax"] = calibration_error(chosen == label, probabilities.max(axis=1))
    of_labels = []
    for index in range(len(labels)):
        against_rest = {**rates(label == index, chosen == index), **scored[index]}
        # Against the rest, a label that is rare is right nearly always.
        del against_rest["accuracy"]
        of_labels.append(against_rest)
    for name in of_labels[0]:
        values[f"{name}_macro"] = np.mean(
            [label_values[name] for label_values in of_labels], axis=0
        )
        for label_values, text in zip(of_labels, labels, strict=True):
            values[of_label(name, text)] = label_values[name]
    return values


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.full(len(total), np.nan), where=total > 0)


# Draws are worked through in blocks of so many weights, which keeps them in the cache.
_BLOCK_WEIGHTS = 1 << 18

# In cases: far below one, far above the rounding of a share times a number of cases.
_ROUNDING = 1e-6


def recall_at(specificity: float) -> str:
    """The name of the recall at a fixed specificity, such as `recall_at_specificity_0.90`."""
    return f"recall_at_specificity_{max(f'{specificity:.2f}', repr(specificity), key=len)}"


def ranking_of_draws(
    is_positive: np.ndarray,
    score: np.ndarray,
    person: np.ndarray,
    times: np.ndarray,
    specificities: Sequence[float],
) -> dict[str, np.ndarray]:
    """What `ranking_by_scikit_learn` gives, of each of many draws of persons.

    Args:
      is_positive: [N] bool.
      score: [N] float, higher is more positive.
      person: [N] int, each row's person (see `statistics.person_draws`).
      times: [D, P] float, how many times each person counts.
      specificities: each in (0, 1).

    Returns:
      [D] float64 for each name; NaN where a draw leaves it undefined.
    """
    names = ["auc", "average_precision", *map(recall_at, specificities)]
    values = {name: np.full(len(times), np.nan) for name in names}
    if len(score) == 0:
        return values
    order = np.argsort(-score, kind="stable")
    positive, person = is_positive[order], person[order]
    # Rows of equal score pass a threshold together: where each such group ends.
    ends = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    block = max(1, _BLOCK_WEIGHTS // len(score))
    for first in range(0, len(times), block):
        rows = slice(first, first + block)
        weight = times[rows, person]
        tp = np.cumsum(weight * positive, axis=1)[:, ends]
        fp = np.cumsum(weight * ~positive, axis=1)[:, ends]
        n_positive, n_negative = tp[:, -1], fp[:, -1]
        gained = np.diff(tp, axis=1, prepend=0)
        lost = np.diff(fp, axis=1, prepend=0)
        # A positive case wins against the negative ones below it, and half against its equals.
        won = np.sum(lost * (tp - gained / 2), axis=1)
        pairs = n_positive * n_negative
        np.divide(won, pairs, out=values["auc"][rows], where=pairs > 0)
        precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=gained > 0)
        np.divide(
            np.sum(gained * precision, axis=1),
            n_positive,
            out=values["average_precision"][rows],
            where=n_positive > 0,
        )
        for specificity in specificities:
            passed = (fp <= _allowed(n_negative, specificity)[:, None]).sum(axis=1)
            result = np.where(passed > 0, tp[np.arange(len(tp)), passed - 1], 0)
            np.divide(result, n_positive, out=values[recall_at(specificity)][rows], where=pairs > 0)
    return values


def ranking_by_scikit_learn(
    is_positive: np.ndarray, score: np.ndarray, specificities: Sequence[float]
) -> dict[str, float]:
    """`auc`, `average_precision` and the recall at each specificity, by scikit-learn.

    The recall at a specificity is the highest of all thresholds whose specificity is no lower;
    nothing is interpolated.

    Args:
      is_positive: [N] bool.
      score: [N] float, higher is more positive.
      specificities: each in (0, 1).

    Returns:
      a float for each name; NaN where it is undefined.
    """
    # Imported here: 0.7 s that `predict`, which shares this package, does without.
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    nan = float("nan")
    both = is_positive.any() and not is_positive.all()
    values = {
        "auc": roc_auc_score(is_positive, score) if both else nan,
        "average_precision": average_precision_score(is_positive, score)
        if is_positive.any()
        else nan,
    }
    if not both:
        return values | {recall_at(specificity): nan for specificity in specificities}
    n_negative = np.sum(~is_positive)
    false_positive, recall, _ = roc_curve(is_positive, score, drop_intermediate=False)
    return values | {
        recall_at(specificity): recall[
            false_positive * n_negative <= _allowed(n_negative, specificity)
        ].max()
        for specificity in specificities
    }


def _allowed(n_negative: np.ndarray, specificity: float) -> np.ndarray:
    """How many of the negative cases may pass."""
    return (1 - specificity) * n_negative + _ROUNDING
