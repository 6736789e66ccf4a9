"""The formulas of all figures, under any weighting of the cases.

A bootstrap draw, and a cohort with one person left out, are weightings of the persons of the whole
one; thousands of them are computed at once. What the figures mean: `metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from drenet_jax.evaluation.calibration import bin_of
from drenet_jax.evaluation.decisions import decide, is_positive
from drenet_jax.evaluation.ranking import ranking_by_scikit_learn, ranking_of_draws, recall_at
from drenet_jax.evaluation.settings import MetricSettings

# The figures that depend on the threshold.
DECISION_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "f1_paper",
)

# Gives the figures of ranking.py of each weighting, [D] each, from is_positive [N] and score [N].
Ranking = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


def of_label(metric: str, label: str) -> str:
    """The name of a figure of one label against the rest, such as `auc[healthy]`.

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
    """Every figure of a sample as it is; NaN where it is undefined.

    Args:
      label: [N] int.
      probabilities: [N, C] float.
      labels: the C class names.
      positive: the index of the positive class.
      settings: of the figures.
    """

    def ranking(is_positive: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
        values = ranking_by_scikit_learn(is_positive, score, settings.specificities)
        return {name: np.array([value]) for name, value in values.items()}

    everyone, once = np.zeros(len(label), np.int64), np.ones((1, 1))
    values = _figures(label, probabilities, labels, positive, settings, everyone, once, ranking)
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
    """Every figure of each of D draws of persons.

    Args:
      label, probabilities, labels, positive, settings: see `values_of_sample`.
      person: [N] int, each case's person.
      times: [D, P] float, how many times each person counts.

    Returns:
      [D] float64 for each figure, NaN where it is undefined.
    """

    def ranking(is_positive: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
        return ranking_of_draws(is_positive, score, person, times, settings.specificities)

    return _figures(label, probabilities, labels, positive, settings, person, times, ranking)


def why_undefined(
    name: str, labels: Sequence[str], positive: int, settings: MetricSettings, n: int
) -> str:
    """Why the figure called `name` of n cases is undefined, in words for the reader of a report."""
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
        **{recall_at(one): one_class for one in settings.specificities},
    }[metric]


def _figures(
    label: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    positive: int,
    settings: MetricSettings,
    group: np.ndarray,
    times: np.ndarray,
    ranking: Ranking,
) -> dict[str, np.ndarray]:
    """Every figure under D weightings of G groups of cases, [D] each."""
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
        own = {**rates(label == index, chosen == index), **scored[index]}
        # Against the rest, a label that is rare is right nearly always.
        del own["accuracy"]
        of_labels.append(own)
    for name in of_labels[0]:
        values[f"{name}_macro"] = np.mean([own[name] for own in of_labels], axis=0)
        for own, text in zip(of_labels, labels, strict=True):
            values[of_label(name, text)] = own[name]
    return values


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
