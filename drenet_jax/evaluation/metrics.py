"""The metrics of paper 2.3 (equations 1-5; docs/method.md), each with its 95% interval.

One class is the positive one (COVID-19), all others are the rest. TP, FP, TN and FN count cases
(slices or persons) whose probability of the positive class is at least the threshold.

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

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from drenet_jax.evaluation import statistics
from drenet_jax.evaluation.decisions import DecisionRule, MetricSettings
from drenet_jax.evaluation.metric_formulas import (
    DECISION_METRICS,
    reason_undefined,
    values_of_draws,
    values_of_sample,
)
from drenet_jax.evaluation.predictions import (
    PersonPredictions,
    SlicePredictions,
    person_predictions,
)

Predictions = SlicePredictions | PersonPredictions

# value, low, high, and `why` where one of them is None.
Metric = dict[str, float | str | None]

# Of thresholds that are equally good, the one nearest to this is taken.
_MIDDLE = 0.5


def classification_metrics(
    label: np.ndarray,
    probabilities: np.ndarray,
    labels: Sequence[str],
    positive: int,
    settings: MetricSettings | None = None,
) -> dict[str, float | None]:
    """The metrics of the module's tables.

    Args:
      label: [N] int, the true class of each slice or person.
      probabilities: [N, C] float.
      labels: the C class names.
      positive: the index of the positive class.
      settings: of the metrics; None: the defaults of `MetricSettings`.

    Returns:
      The value of each metric; None where the data do not define it.
    """
    settings = settings or MetricSettings()
    values = values_of_sample(label, probabilities, labels, positive, settings)
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def metrics_with_intervals(
    predictions: Predictions,
    positive: int,
    settings: MetricSettings,
    threshold: float | None = None,
) -> dict[str, Metric]:
    """The metrics of the module's tables, each with a 95% bootstrap interval over persons.

    Args:
      predictions: of slices or of persons.
      positive: the index of the positive class.
      settings: of the metrics and the draws.
      threshold: instead of `settings.threshold`.

    Returns:
      For each metric `value`, `low`, `high`, and `why` where one of them is None. Fit for JSON.
    """
    return BootstrapResult.of(predictions, positive, _at(settings, threshold)).table()


@dataclasses.dataclass(frozen=True, eq=False)
class BootstrapResult:
    """Metrics of a sample, and of its bootstrap draws.

    Attributes:
      values: each metric, or None.
      why: of the metrics that are None.
      drawn: [D] for each metric, of the draws; NaN where undefined.
      left_out: [J] for each metric, with one person after the other left out.
      n_persons: of the sample.
      are_differences: of two models' metrics.
    """

    values: dict[str, float | None]
    why: dict[str, str]
    drawn: dict[str, np.ndarray]
    left_out: dict[str, np.ndarray]
    n_persons: int
    are_differences: bool = False

    @classmethod
    def of(
        cls, predictions: Predictions, positive: int, settings: MetricSettings
    ) -> BootstrapResult:
        """Computes them; see `metrics_with_intervals`."""
        cases = predictions.label, predictions.probabilities, predictions.labels, positive, settings
        values = classification_metrics(*cases)
        person, times = statistics.person_draws(
            predictions.patient_id, settings.bootstrap_draws, settings.bootstrap_seed
        )
        n_persons = times.shape[1]
        return cls(
            values=values,
            why={
                name: reason_undefined(
                    name, predictions.labels, positive, settings, len(predictions)
                )
                for name, value in values.items()
                if value is None
            },
            drawn=values_of_draws(*cases, person, times),
            left_out=values_of_draws(*cases, person, statistics.all_but_one(n_persons)),
            n_persons=n_persons,
        )

    def difference(self, other: BootstrapResult) -> BootstrapResult:
        """The differences of these metrics and those of `other`, of the same draws of persons."""
        assert self.values.keys() == other.values.keys()
        assert self.n_persons == other.n_persons
        why = {**other.why, **self.why}
        return BootstrapResult(
            values={
                name: _difference(value, other.values[name]) for name, value in self.values.items()
            },
            why=why,
            drawn={name: drawn - other.drawn[name] for name, drawn in self.drawn.items()},
            left_out={name: left - other.left_out[name] for name, left in self.left_out.items()},
            n_persons=self.n_persons,
            are_differences=True,
        )

    def table(self) -> dict[str, Metric]:
        """`value`, `low`, `high`, and `why` where one of them is None, of each metric."""
        return {name: self._metric(name) for name in self.values}

    def _metric(self, name: str) -> Metric:
        value, interval, why = self.values[name], None, self.why.get(name, "")
        if value is not None and self.n_persons == 1:
            why = "one person alone gives no interval"
        elif value is not None:
            drawn = self.drawn[name]
            is_error = name.startswith("ece") and not self.are_differences
            if is_error:
                interval = statistics.calibration_interval(value, drawn)
            else:
                interval = statistics.bca_interval(value, drawn, self.left_out[name])
            if interval is None:
                why = statistics.reason_no_interval(value, drawn, one_sided=is_error)
        low, high = interval or (None, None)
        metric: Metric = {"value": value, "low": low, "high": high}
        return metric | {"why": why} if why else metric


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


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
    of_a, of_b = (BootstrapResult.of(item, positive, _at(settings, threshold)) for item in (a, b))
    return of_a.difference(of_b).table()


def evaluation_metrics(
    slices: SlicePredictions,
    persons: PersonPredictions,
    *,
    split: str,
    positive: int,
    settings: MetricSettings,
    validation_threshold: float | None = None,
    aggregate: str = "mean",
) -> dict:
    """What `evaluate` writes to metrics.json.

    Args:
      slices: of one split.
      persons: of the same split, from `person_predictions(slices, aggregate, positive)`.
      split: the name of the split.
      positive: the index of the positive class.
      settings: of the metrics and the draws.
      validation_threshold: `youden_threshold` of the validation persons; None where there is none.
      aggregate: how `persons` were made of `slices`.

    Returns:
      {"split", "labels", "positive", "aggregate", "threshold", "calibration_bins", "draws", "seed",
      "n_persons", "n_slices", "image": {...}, "person": {...}, "validation_threshold":
      {"threshold", "person": the `DECISION_METRICS` of the persons at that threshold}, or there
      {"threshold": None, "why"}, "sites": [{"site", "n_persons", "n_slices", "image", "person"}]},
      one for each site where there are several. A person who was at two sites counts at each, with
      the slices from there. And "decision": by which rule a case gets its label
      (`DecisionRule.to_dict`), as `predict` says of a person.
    """
    result = {
        "split": split,
        "labels": list(slices.labels),
        "positive": slices.labels[positive],
        "aggregate": aggregate,
        "threshold": settings.threshold,
        "calibration_bins": settings.calibration_bins,
        "draws": settings.bootstrap_draws,
        "seed": settings.bootstrap_seed,
        **_levels(slices, persons, positive, settings),
    }
    if validation_threshold is None:
        result["validation_threshold"] = {
            "threshold": None,
            "why": "there are no validation persons of both kinds to choose it on",
        }
    else:
        moved = metrics_with_intervals(persons, positive, settings, validation_threshold)
        result["validation_threshold"] = {
            "threshold": float(validation_threshold),
            "person": {name: moved[name] for name in DECISION_METRICS},
        }
    sites = np.unique(slices.site).tolist()
    result["sites"] = []
    for site in sites if len(sites) > 1 else []:
        there = slices.of(slices.site == site)
        there_persons = person_predictions(there, aggregate, positive)
        result["sites"].append({"site": site, **_levels(there, there_persons, positive, settings)})
    rule = DecisionRule(slices.labels, positive, settings.threshold, aggregate)
    result["decision"] = rule.to_dict()
    return result


def _levels(
    slices: SlicePredictions,
    persons: PersonPredictions,
    positive: int,
    settings: MetricSettings,
) -> dict:
    return {
        "n_persons": len(persons),
        "n_slices": len(slices),
        "image": metrics_with_intervals(slices, positive, settings),
        "person": metrics_with_intervals(persons, positive, settings),
    }


def _at(settings: MetricSettings, threshold: float | None) -> MetricSettings:
    return settings if threshold is None else dataclasses.replace(settings, threshold=threshold)


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
    return float(middle[best[np.argmin(np.abs(middle[best] - _MIDDLE))]])
