"""The metrics of paper 2.3 (equations 1-5; docs/method.md): of a sample, and of bootstrap draws.

One class is the positive one (COVID-19), all others are the rest. TP, FP, TN and FN count cases
(slices or patients) whose probability of the positive class is at least the threshold.

| name | what it is |
| --- | --- |
| `accuracy` | (TP + TN) / all, equation 1 |
| `balanced_accuracy` | (recall + specificity) / 2 |
| `precision` | TP / (TP + FP), equation 2 |
| `recall` | TP / (TP + FN), equation 3: sensitivity |
| `specificity` | TN / (TN + FP), equation 4 |
| `f1` | 2TP / (2TP + FP + FN): the harmonic mean, 2PR / (P + R) |
| `f1_paper` | (P + R) / 2, equation 5 as the paper prints it |
| `auc` | area under the ROC curve of the positive class's probability |
| `average_precision` | precision at each threshold, weighted by the recall that it adds |
| `recall_at_specificity_0.90` | the highest recall of all thresholds whose specificity, on the same cases, is 0.90 or more; so for each of `evaluation.specificities` |
| `brier` | mean squared difference of the positive class's probability and the truth (0 or 1) |
| `ece` | expected calibration error: mean of the difference of probability and truth in the case's bin of probability |

With three or more classes these follow, of the decision for the most probable class:

| name | what it is |
| --- | --- |
| `accuracy_argmax` | share of cases whose most probable class is the true one |
| `ece_argmax` | calibration error of the most probable class's probability (Guo et al. 2017) |
| `<name>[<label>]` | each of the first table but `accuracy`, of `<label>` against the rest |
| `<name>_macro` | mean of the labels' |

`recall_macro` is what is called the balanced accuracy of several classes; `brier_macro` times the
number of classes is Brier's sum over the classes (1950).

A metric that the data do not define (a ratio 0 / 0, an AUC of one class) is None, never 0 or NaN;
a macro average is None where one of its labels' metrics is.
"""  # noqa: E501 - a table's row is one line

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from drenet_jax.evaluation.calibration import bin_of
from drenet_jax.evaluation.decisions import MetricSettings, decide, is_positive

# A metric with its 95% interval: value, low, high, and `why` where one of them is None.
Metric = dict[str, float | str | None]

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

# Draws are processed in blocks of so many weights, which keeps them in the cache.
_BLOCK_WEIGHTS = 1 << 18

# In cases: far below one, far above the rounding of a share times a number of cases.
_ROUNDING = 1e-6


def of_label(metric: str, label: str) -> str:
    """The name of a metric of one label against the rest, such as `auc[healthy]`.

    No other name has a bracket, so a label may be called `macro` or `paper`.
    """
    return f"{metric}[{label}]"


def recall_at(specificity: float) -> str:
    """The name of the recall at a fixed specificity, such as `recall_at_specificity_0.90`."""
    return f"recall_at_specificity_{max(f'{specificity:.2f}', repr(specificity), key=len)}"


def classification_metrics(
    label: Int[np.ndarray, " cases"],
    probabilities: Float[np.ndarray, "cases classes"],
    labels: Sequence[str],
    positive: int,
    settings: MetricSettings | None = None,
    threshold: float | Float[np.ndarray, " cases"] | None = None,
) -> dict[str, float | None]:
    """The metrics of the module's tables.

    Args:
      label: the true class of each slice or patient.
      probabilities: of each class.
      labels: the class names.
      positive: the index of the positive class.
      settings: of the metrics; None: the defaults of `MetricSettings`.
      threshold: instead of `settings.threshold`, for all cases or for each.

    Returns:
      The value of each metric; None where the data do not define it.
    """
    values = metrics_of_draws(
        label,
        probabilities,
        labels,
        positive,
        settings or MetricSettings(),
        np.zeros(len(label), np.int64),
        np.ones((1, 1)),
        threshold,
    )
    return {name: None if np.isnan(value[0]) else float(value[0]) for name, value in values.items()}


def metrics_of_draws(
    label: Int[np.ndarray, " cases"],
    probabilities: Float[np.ndarray, "cases classes"],
    labels: Sequence[str],
    positive: int,
    settings: MetricSettings,
    person: Int[np.ndarray, " cases"],
    times: Float[np.ndarray, "draws persons"],
    threshold: float | Float[np.ndarray, " cases"] | None = None,
) -> dict[str, Float[np.ndarray, " draws"]]:
    """Every metric of each of many draws of persons.

    Args:
      label, probabilities, labels, positive, settings, threshold: as of `classification_metrics`.
      person: each case's person (`statistics.person_draws`).
      times: how many times each person counts.

    Returns:
      The values of each metric; NaN where undefined.
    """
    assert probabilities.shape == (len(label), len(labels)), (probabilities.shape, labels)
    assert len(labels) >= 2, labels
    assert 0 <= positive < len(labels), positive
    assert np.isfinite(probabilities).all()
    probabilities = probabilities.astype(np.float64)
    n_persons = times.shape[1]
    if threshold is None:
        threshold = settings.threshold

    def count(cases: np.ndarray) -> np.ndarray:
        return times @ np.bincount(person, weights=cases, minlength=n_persons)

    n = count(np.ones(len(label)))

    def rates(truth: np.ndarray, decision: np.ndarray) -> dict[str, np.ndarray]:
        tp, fp = count(truth & decision), count(~truth & decision)
        tn, fn = count(~truth & ~decision), count(truth & ~decision)
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
        cell = person * bins + bin_of(score, bins)
        excess = np.bincount(cell, weights=truth - score, minlength=n_persons * bins)
        # Of each bin: its share of the cases times the difference of its two means.
        return _ratio(np.abs(times @ excess.reshape(-1, bins)).sum(axis=1), n)

    def of_scores(truth: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
        return {
            **ranking_metrics(truth, score, person, times, settings.specificities),
            "brier": _ratio(count((score - truth) ** 2), n),
            "ece": calibration_error(truth, score),
        }

    scored = {
        index: of_scores(label == index, probabilities[:, index])
        for index in (range(len(labels)) if len(labels) > 2 else [positive])
    }
    decision = is_positive(probabilities, positive, threshold)
    values = {**rates(label == positive, decision), **scored[positive]}
    if len(labels) == 2:
        return values

    chosen = decide(probabilities, positive, threshold)
    values["accuracy_argmax"] = _ratio(count(chosen == label), n)
    values["ece_argmax"] = calibration_error(chosen == label, probabilities.max(axis=1))
    of_labels = [
        {**rates(label == index, chosen == index), **scored[index]} for index in range(len(labels))
    ]
    for name in of_labels[0]:
        # Against the rest, a label that is rare is right nearly always.
        if name != "accuracy":
            values[f"{name}_macro"] = np.mean([of_one[name] for of_one in of_labels], axis=0)
            for text, of_one in zip(labels, of_labels, strict=True):
                values[of_label(name, text)] = of_one[name]
    return values


def ranking_metrics(
    is_positive: Bool[np.ndarray, " cases"],
    score: Float[np.ndarray, " cases"],
    person: Int[np.ndarray, " cases"],
    times: Float[np.ndarray, "draws persons"],
    specificities: Sequence[float],
) -> dict[str, Float[np.ndarray, " draws"]]:
    """`auc`, `average_precision` and the recall at each specificity, of each of many draws.

    As scikit-learn's, which would take a minute for 2,000 draws. The recall at a specificity is the
    highest of all thresholds whose specificity is no lower; nothing is interpolated.

    Args:
      is_positive: the truth.
      score: higher is more positive.
      person: each row's person (`statistics.person_draws`).
      times: how many times each person counts.
      specificities: each in (0, 1).

    Returns:
      The values of each metric; NaN where undefined.
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
        values["auc"][rows] = _ratio(won, pairs)
        precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=gained > 0)
        values["average_precision"][rows] = _ratio(np.sum(gained * precision, axis=1), n_positive)
        for specificity in specificities:
            allowed = (1 - specificity) * n_negative + _ROUNDING
            passed = (fp <= allowed[:, None]).sum(axis=1)
            recalled = np.where(passed > 0, tp[np.arange(len(tp)), passed - 1], 0)
            recalled[pairs == 0] = np.nan
            values[recall_at(specificity)][rows] = _ratio(recalled, n_positive)
    return values


def reason_undefined(
    name: str, labels: Sequence[str], positive: int, settings: MetricSettings, n: int
) -> str:
    """Why the metric called `name` of n cases is undefined, for the reader of a report."""
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


def metric_text(metric: Mapping, *, plus: bool = False) -> str:
    """A metric with its 95% interval, such as "0.912 (0.850 to 0.960)".

    Args:
      metric: value, low, high, and `why` where one of them is None.
      plus: positive numbers get a sign, as differences do.
    """
    value, low, high = (number_text(metric[name], plus=plus) for name in ("value", "low", "high"))
    if not value:
        return f"undefined ({metric['why']})"
    return f"{value} ({low} to {high})" if low else f"{value} (no interval: {metric['why']})"


def number_text(number: float | None, *, plus: bool = False) -> str:
    """A number with three decimals, such as "−0.125"; "" for None."""
    if number is None:
        return ""
    return f"{number:{'+' if plus else ''}.3f}".replace("-", "−")


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.full(len(total), np.nan), where=total > 0)
