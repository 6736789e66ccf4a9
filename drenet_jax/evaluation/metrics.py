"""The figures of DESIGN 3.7 and paper 2.3 (equations 1-5), each with its 95% interval.

One class is the positive one (COVID-19), all others are the rest. TP, FP, TN and FN count cases
(slices or persons) whose probability of the positive class is at least the threshold.

| name | what it is |
| --- | --- |
| `accuracy` | (TP + TN) / all, equation 1 |
| `precision` | TP / (TP + FP), equation 2 |
| `recall` | TP / (TP + FN), equation 3: sensitivity |
| `specificity` | TN / (TN + FP), equation 4 |
| `f1` | 2TP / (2TP + FP + FN): the harmonic mean, 2PR / (P + R) |
| `f1_paper` | (P + R) / 2, equation 5 as the paper prints it |
| `auc` | area under the ROC curve of the positive class's probability |

With three or more classes these follow, of the decision for the most probable class:

| name | what it is |
| --- | --- |
| `accuracy_argmax` | share of cases whose most probable class is the true one |
| `precision_<label>`, `recall_<label>`, `specificity_<label>`, `f1_<label>`, `f1_paper_<label>` | as above, `<label>` against the rest |
| `auc_<label>` | area under the ROC curve of `<label>`'s probability against the rest |
| `precision_macro`, `recall_macro`, `specificity_macro`, `f1_macro`, `f1_paper_macro`, `auc_macro` | mean of the labels' |

A figure that the data do not define (a ratio 0 / 0, an AUC of one class) is None, never 0 or NaN;
a macro average is None where one of its labels' figures is.
"""  # noqa: E501 - a table's row is one line

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from drenet_jax.evaluation import intervals
from drenet_jax.evaluation.persons import PersonPredictions, SlicePredictions

# The figures that depend on the threshold.
DECISION_METRICS = ("accuracy", "precision", "recall", "specificity", "f1", "f1_paper")

DEFAULT_THRESHOLD = 0.5

_RATES = ("precision", "recall", "specificity", "f1", "f1_paper")

# Gives the AUC of each draw, [D], from is_positive [N] and score [N].
_Auc = Callable[[np.ndarray, np.ndarray], np.ndarray]


def classification_metrics(
    label: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    positive: int,
    threshold: float = DEFAULT_THRESHOLD,
) -> dict[str, float | None]:
    """The metrics of the module's tables.

    Args:
      label: [N] int, the true class of each slice or person.
      probabilities: [N, C] float.
      labels: the C class names.
      positive: the index of the positive class.
      threshold: a case is positive from this probability of the positive class on.

    Returns:
      The value of each metric; None where the data do not define it.
    """
    everyone = np.zeros(len(label), np.int64)
    values = _metrics(
        label, probabilities, labels, positive, threshold, everyone, np.ones((1, 1)), _sklearn_auc
    )
    return {name: _number(value[0]) for name, value in values.items()}


def metrics_with_intervals(
    predictions: SlicePredictions | PersonPredictions,
    positive: int,
    *,
    draws: int,
    seed: int,
    threshold: float = DEFAULT_THRESHOLD,
) -> dict[str, dict[str, float | str | None]]:
    """The metrics of the module's tables, each with a 95% bootstrap interval over persons.

    Args:
      predictions: of slices or of persons.
      positive: the index of the positive class.
      draws: how many bootstrap samples to draw.
      seed: of the draws.
      threshold: a case is positive from this probability of the positive class on.

    Returns:
      For each metric `value`, `low`, `high`, and `why` where one of them is None. Fit for JSON.
    """
    label, probabilities = predictions.label, predictions.probabilities
    labels = predictions.labels
    values = classification_metrics(label, probabilities, labels, positive, threshold)
    person, times = intervals.person_draws(predictions.patient_id, draws, seed)

    def auc(is_positive: np.ndarray, score: np.ndarray) -> np.ndarray:
        return intervals.auc_of_draws(is_positive, score, person, times)

    drawn = _metrics(label, probabilities, labels, positive, threshold, person, times, auc)
    table: dict[str, dict[str, float | str | None]] = {}
    for name, value in values.items():
        interval, why = None, None
        if value is None:
            why = _why_undefined(name, labels, positive, len(label))
        elif times.shape[1] == 1:
            why = "one person alone gives no interval"
        else:
            interval = intervals.percentile_interval(drawn[name])
            if interval is None:
                undefined = int(np.isnan(drawn[name]).sum())
                why = f"undefined in {undefined} of {draws} bootstrap draws"
        low, high = interval or (None, None)
        table[name] = {"value": value, "low": low, "high": high}
        if why:
            table[name]["why"] = why
    return table


def evaluation_metrics(
    slices: SlicePredictions,
    persons: PersonPredictions,
    *,
    split: str,
    positive: int,
    draws: int,
    seed: int,
    validation_threshold: float | None = None,
) -> dict:
    """What `evaluate` writes to metrics.json (DESIGN section 2).

    Args:
      slices: of one split.
      persons: of the same split, from `person_predictions(slices)`.
      split: the name of the split.
      positive: the index of the positive class.
      draws: how many bootstrap samples to draw.
      seed: of the draws.
      validation_threshold: `youden_threshold` of the validation persons; None where there is none.

    Returns:
      {"split", "labels", "positive", "threshold", "draws", "seed", "image": {...}, "person": {...}}
      and, where `validation_threshold` is given, "validation_threshold": {"threshold",
      "person": the `DECISION_METRICS` of the persons at that threshold}.
    """
    result = {
        "split": split,
        "labels": list(slices.labels),
        "positive": slices.labels[positive],
        "threshold": DEFAULT_THRESHOLD,
        "draws": draws,
        "seed": seed,
        "image": metrics_with_intervals(slices, positive, draws=draws, seed=seed),
        "person": metrics_with_intervals(persons, positive, draws=draws, seed=seed),
    }
    if validation_threshold is not None:
        moved = metrics_with_intervals(
            persons, positive, draws=draws, seed=seed, threshold=validation_threshold
        )
        result["validation_threshold"] = {
            "threshold": float(validation_threshold),
            "person": {name: moved[name] for name in DECISION_METRICS},
        }
    return result


def youden_threshold(label_is_positive: np.ndarray, score: np.ndarray) -> float | None:
    """The threshold of `score >= threshold` with the highest recall + specificity - 1 (Youden's J).

    Every threshold between two neighbouring scores decides alike; the midpoint is taken, since the
    few persons of a validation split say nothing of where between them the line should be. Of
    thresholds that are equally good, the one nearest to 0.5.

    Args:
      label_is_positive: [N] bool.
      score: [N] float, the probability of the positive class.

    Returns:
      The threshold, or None where one of the two classes is absent.
    """
    is_positive = np.asarray(label_is_positive, bool)
    score = np.asarray(score, np.float64)
    if is_positive.all() or not is_positive.any():
        return None
    # `at[i]` decides as the midpoint of `at[i - 1]` and `at[i]` does.
    at = np.unique(score)
    passed = score[None, :] >= at[:, None]
    recall = passed[:, is_positive].mean(axis=1)
    specificity = 1 - passed[:, ~is_positive].mean(axis=1)
    # A midpoint of neighbouring floats may round down onto the lower one, which would pass too.
    middle = np.r_[at[0], (at[:-1] + at[1:]) / 2]
    middle = np.where(np.r_[False, middle[1:] <= at[:-1]], at, middle)
    youden = recall + specificity - 1
    best = np.flatnonzero(np.isclose(youden, youden.max(), rtol=0, atol=1e-12))
    return float(middle[best[np.argmin(np.abs(middle[best] - DEFAULT_THRESHOLD))]])


def _metrics(
    label: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    positive: int,
    threshold: float,
    group: np.ndarray,
    times: np.ndarray,
    auc: _Auc,
) -> dict[str, np.ndarray]:
    """Every metric under D weightings of G groups of cases.

    Args:
      label, probabilities, labels, positive, threshold: see `classification_metrics`.
      group: [N] int, each case's group.
      times: [D, G] float, how many times each group counts.
      auc: gives the AUC of each weighting.

    Returns:
      [D] float64 for each metric, NaN where it is undefined.
    """
    label, probabilities = np.asarray(label), np.asarray(probabilities, np.float64)
    assert probabilities.shape == (len(label), len(labels)), (probabilities.shape, labels)
    assert len(labels) >= 2, labels
    assert 0 <= positive < len(labels), positive
    assert np.isfinite(probabilities).all()

    def counted(cases: np.ndarray) -> np.ndarray:
        return times @ np.bincount(group, weights=cases, minlength=times.shape[1])

    def rates(truth: np.ndarray, decision: np.ndarray) -> dict[str, np.ndarray]:
        tp, fp = counted(truth & decision), counted(~truth & decision)
        tn, fn = counted(~truth & ~decision), counted(truth & ~decision)
        precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
        return {
            "accuracy": _ratio(tp + tn, tp + fp + tn + fn),
            "precision": precision,
            "recall": recall,
            "specificity": _ratio(tn, tn + fp),
            "f1": _ratio(2 * tp, 2 * tp + fp + fn),
            "f1_paper": (precision + recall) / 2,
        }

    score = probabilities[:, positive]
    values = rates(label == positive, score >= threshold)
    values["auc"] = auc(label == positive, score)
    if len(labels) == 2:
        return values

    chosen = probabilities.argmax(axis=1)
    values["accuracy_argmax"] = _ratio(counted(chosen == label), counted(np.ones(len(label))))
    of_label = []
    for index in range(len(labels)):
        own = rates(label == index, chosen == index)
        own["auc"] = auc(label == index, probabilities[:, index])
        of_label.append(own)
    for name in (*_RATES, "auc"):
        values[f"{name}_macro"] = np.mean([own[name] for own in of_label], axis=0)
        for own, text in zip(of_label, labels, strict=True):
            values[f"{name}_{text}"] = own[name]
    return values


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _sklearn_auc(is_positive: np.ndarray, score: np.ndarray) -> np.ndarray:
    # Imported here: 0.7 s that `predict`, which shares this package, does without.
    from sklearn.metrics import roc_auc_score

    if is_positive.all() or not is_positive.any():
        return np.array([np.nan])
    return np.array([roc_auc_score(is_positive, score)])


def _number(value: np.floating) -> float | None:
    return None if np.isnan(value) else float(value)


def _why_undefined(name: str, labels: Sequence[str], positive: int, n: int) -> str:
    """Why the value of a metric is None, in words for the reader of a report."""
    if n == 0:
        return "there are no cases"
    kind, label = name, labels[positive]
    for base in (*_RATES, "auc"):
        if name == f"{base}_macro":
            return "undefined for at least one of the labels"
        for text in labels:
            if name == f"{base}_{text}":
                kind, label = base, text
    return {
        "precision": f"no case is predicted as {label}",
        "recall": f"no case is {label}",
        "specificity": f"every case is {label}",
        "f1": f"no case is {label} or is predicted as {label}",
        "f1_paper": "precision or recall is undefined",
        "auc": "only one class present",
    }[kind]
