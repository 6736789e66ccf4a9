"""Which label a case gets, by one rule for every command, and the settings of the metrics.

With two labels a case is positive from the threshold of the positive label's probability on
(`p >= threshold`, so a probability equal to the threshold is positive). With three or more, and
with two of which neither is the positive one, it gets the most probable label; of equally probable
ones, the first in the order of the labels. `evaluate`, `compare`, `crossvalidate`, `predict` and
`serve` all decide by `decide`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from drenet_jax.array_types import Bool, Float, Int
from drenet_jax.errors import InputError
from drenet_jax.evaluation.aggregates import AGGREGATES, NEED_POSITIVE

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from drenet_jax.evaluation.predictions import Predictions

THRESHOLD, LARGEST_PROBABILITY = "threshold", "largest_probability"


def is_positive(
    probabilities: Float[np.ndarray, "cases classes"],
    positive: int,
    threshold: float | Float[np.ndarray, " cases"],
) -> Bool[np.ndarray, " cases"]:
    """Whether each case reaches the threshold of the positive class (one, or one for each)."""
    return probabilities[:, positive] >= threshold


def decide(
    probabilities: Float[np.ndarray, "cases classes"],
    positive: int | None,
    threshold: float | Float[np.ndarray, " cases"],
) -> Int[np.ndarray, " cases"]:
    """The index of each case's label.

    Args:
      probabilities: of slices or persons.
      positive: the index of the positive class; None: there is none.
      threshold: of its probability; has no meaning with three or more classes.
    """
    if positive is None or probabilities.shape[1] > 2:
        return probabilities.argmax(axis=1)
    reached = is_positive(probabilities, positive, threshold)
    return np.where(reached, positive, 1 - positive)


@dataclasses.dataclass(frozen=True)
class DecisionRule:
    """How a patient's label follows from the slices' probabilities.

    Attributes:
      labels: the names of the C classes.
      positive: the index of the positive class, or None.
      threshold: of its probability.
      aggregate: one of `AGGREGATES`.
    """

    labels: tuple[str, ...]
    positive: int | None
    threshold: float
    aggregate: str

    @classmethod
    def of(
        cls,
        labels: Sequence[str],
        evaluation: Mapping[str, Any] | ConfigDict,
        *,
        threshold: float | None = None,
        aggregate: str | None = None,
    ) -> DecisionRule:
        """The rule of a config's `evaluation` block.

        Weights that were converted may have labels of which none is the positive one. Two such
        labels are decided by the largest probability.

        Args:
          labels: the names of the classes.
          evaluation: `config.evaluation`; what it lacks is as in `MetricSettings`.
          threshold: the flag --threshold, instead of the block's; None: not given.
          aggregate: the flag --aggregate, likewise.

        Raises:
          InputError: a value cannot be used, or has no meaning for these labels.
        """
        settings = settings_with_flags(evaluation, threshold=threshold, aggregate=aggregate)
        labels = tuple(labels)
        if threshold is not None and len(labels) > 2:
            raise InputError(
                f"--threshold={threshold:g}: the model has {len(labels)} labels, of which the most "
                "probable is taken; leave the flag out."
            )
        name = evaluation.get("positive_label", "")
        positive = positive_class(labels, name) if name else _covid_class(labels)
        if positive is None:
            given = "--threshold" if threshold is not None else "evaluation.threshold"
            if len(labels) == 2 and settings.threshold != MetricSettings().threshold:
                raise _no_positive(labels, f"{given}={settings.threshold:g}")
            given = "--aggregate" if aggregate is not None else "evaluation.aggregate"
            if settings.aggregate in NEED_POSITIVE:
                raise _no_positive(labels, f"{given}={settings.aggregate}")
        return cls(labels, positive, settings.threshold, settings.aggregate)

    @classmethod
    def from_dict(cls, labels: Sequence[str], values: Mapping[str, Any]) -> DecisionRule:
        """The rule that `to_dict` gave.

        Args:
          labels: the names of the classes.
          values: the dictionary.
        """
        labels, positive, threshold = tuple(labels), values["positive"], values["threshold"]
        return cls(
            labels,
            None if positive is None else labels.index(positive),
            MetricSettings().threshold if threshold is None else threshold,
            values["aggregate"],
        )

    @property
    def name(self) -> str:
        """`THRESHOLD` or `LARGEST_PROBABILITY`."""
        is_threshold = len(self.labels) == 2 and self.positive is not None
        return THRESHOLD if is_threshold else LARGEST_PROBABILITY

    def person(self, probabilities: np.ndarray) -> np.ndarray:
        """[C] float64, a person's probabilities, from those of the slices [n, C]."""
        return AGGREGATES[self.aggregate](probabilities.astype(np.float64), self.positive)

    def label_of(self, person: np.ndarray) -> int:
        """The index of a person's label, from the person's probabilities [C]."""
        return int(decide(person[None], self.positive, self.threshold)[0])

    def to_dict(self) -> dict:
        """Fit for JSON: rule, threshold (None where it has no meaning), positive, aggregate."""
        return {
            "rule": self.name,
            "threshold": self.threshold if self.name == THRESHOLD else None,
            "positive": None if self.positive is None else self.labels[self.positive],
            "aggregate": self.aggregate,
        }


def settings_with_flags(
    evaluation: Mapping[str, Any] | ConfigDict,
    *,
    threshold: float | None = None,
    aggregate: str | None = None,
) -> MetricSettings:
    """The settings of a config's `evaluation` block, with the flags that were given.

    Raises:
      InputError: a value cannot be used; the message names the flag or the field.
    """
    # NaN is no number of this range either.
    if threshold is not None and not 0 < threshold < 1:
        raise InputError(f"--threshold={threshold:g} must be between 0 and 1.")
    if aggregate is not None and aggregate not in AGGREGATES:
        raise InputError(f"--aggregate={aggregate} must be one of {', '.join(AGGREGATES)}.")
    flags = {"threshold": threshold, "aggregate": aggregate}
    given = {name: value for name, value in flags.items() if value is not None}
    return MetricSettings.from_config({**evaluation, **given})


def positive_class(labels: Sequence[str], name: str) -> int:
    """The index of the label that counts as positive.

    Args:
      labels: names of the classes.
      name: `evaluation.positive_label`; "": the label that begins with "covid".

    Raises:
      InputError: there is no such label.
    """
    if name in labels:
        return labels.index(name)
    covid = _covid_class(labels)
    if name or covid is None:
        raise InputError(
            f"--config.evaluation.positive_label={name!r} names none of the labels "
            f"{', '.join(labels)}; name the one that counts as positive."
        )
    return covid


def _covid_class(labels: Sequence[str]) -> int | None:
    covid = [i for i, label in enumerate(labels) if label.lower().startswith("covid")]
    return covid[0] if len(covid) == 1 else None


def _no_positive(labels: Sequence[str], given: str) -> InputError:
    return InputError(
        f"{given} needs a positive label, and none of {', '.join(labels)} begins with 'covid' or "
        "was named as positive when the model was trained; leave it out."
    )


def predicted_labels(predictions: Predictions, positive: int, threshold: float) -> np.ndarray:
    """[N] int, the predicted label of each case, see `decide`."""
    return decide(predictions.probabilities, positive, threshold)


def confusion_counts(predictions: Predictions, positive: int, threshold: float) -> np.ndarray:
    """[C, C] int, cases by true (row) and predicted (column) label."""
    # scikit-learn's confusion_matrix raises on a group without cases.
    counts = np.zeros((len(predictions.labels),) * 2, int)
    predicted = predicted_labels(predictions, positive, threshold)
    np.add.at(counts, (predictions.label, predicted), 1)
    return counts


def decision_text(decision: Mapping, n_slices: int) -> str:
    """The decision rule of a person's label, as a sentence.

    Args:
      decision: from `DecisionRule.to_dict`.
      n_slices: of the person.
    """
    slices = f"{n_slices} slice{'' if n_slices == 1 else 's'}"
    aggregate = f"{decision['aggregate'].replace('_', ' ')} of {slices}"
    if decision["rule"] == "threshold":
        return (
            f"{decision['positive']} if its probability ({aggregate}) is at least "
            f"{decision['threshold']:g}."
        )
    return f"The most probable label ({aggregate})."


# Of thresholds that are equally good, the one nearest to this is taken.
_MIDDLE = 0.5


def youden_threshold(
    is_positive: Bool[np.ndarray, " cases"], score: Float[np.ndarray, " cases"]
) -> float | None:
    """The threshold of `score >= threshold` with the highest recall + specificity - 1 (Youden's J).

    Every threshold between two neighbouring scores decides alike; the midpoint is taken, since the
    few persons of a validation split say nothing of where between them the line should be. Of
    thresholds that are equally good, the one nearest to 0.5.

    Args:
      is_positive: the truth.
      score: the probability of the positive class.

    Returns:
      The threshold, or None where one of the two classes is absent.
    """
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


@dataclasses.dataclass(frozen=True)
class MetricSettings:
    """Settings of the metrics, of their intervals and of the tests between runs.

    The defaults are for runs older than a setting: those are evaluated as they would have been in
    their time. New runs have all of them from `configs/drenet.py`.

    Attributes:
      threshold: a case is positive from this probability of the positive class on.
      aggregate: how slice probabilities are aggregated to the patient's (`aggregates.AGGREGATES`).
      specificities: the recall is reported at each of them; shares, above 0 and below 1.
      calibration_bins: bins of equal width for the calibration error and the reliability diagram.
      bootstrap_draws: bootstrap samples of persons.
      bootstrap_seed: of the draws.
    """

    threshold: float = 0.5
    aggregate: str = "mean"
    specificities: tuple[float, ...] = (0.80, 0.90, 0.95)
    calibration_bins: int = 10
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0

    @classmethod
    def from_config(cls, evaluation: Mapping[str, Any] | ConfigDict) -> MetricSettings:
        """Reads `config.evaluation`.

        Raises:
          InputError: a value cannot be used; the message names the field.
        """
        given = {
            field.name: evaluation[field.name]
            for field in dataclasses.fields(cls)
            if field.name in evaluation
        }
        if "specificities" in given:
            given["specificities"] = tuple(given["specificities"])
        settings = cls(**given)
        for name, fix, ok in (
            ("threshold", "between 0 and 1", 0 < settings.threshold < 1),
            (
                "aggregate",
                f"one of {', '.join(AGGREGATES)}",
                settings.aggregate in AGGREGATES,
            ),
            (
                "specificities",
                "different shares, above 0 and below 1",
                all(0 < specificity < 1 for specificity in settings.specificities)
                and len(set(settings.specificities)) == len(settings.specificities),
            ),
            ("calibration_bins", "1 or more", settings.calibration_bins >= 1),
            ("bootstrap_draws", "1 or more", settings.bootstrap_draws >= 1),
            ("bootstrap_seed", "0 or more", settings.bootstrap_seed >= 0),
        ):
            if not ok:
                raise InputError(
                    f"--config.evaluation.{name}={getattr(settings, name)} must be {fix}."
                )
        return settings
