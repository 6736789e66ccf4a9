"""Which label a case gets, by one rule for every command, and where that is wrong.

With two labels a case is positive from the threshold of the positive label's probability on
(`p >= threshold`, so a probability equal to the threshold is positive). With three or more, and
with two of which neither is the positive one, it gets the most probable label; of equally probable
ones, the first in the order of the labels. `evaluate`, `compare`, `crossvalidate`, `predict` and
`serve` all decide by `decide`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from drenet_jax.errors import InputError
from drenet_jax.evaluation.predictions import (
    AGGREGATES,
    NEED_POSITIVE,
    PersonPredictions,
    SlicePredictions,
)

THRESHOLD, LARGEST_PROBABILITY = "threshold", "largest_probability"


def is_positive(probabilities: np.ndarray, positive: int, threshold: float) -> np.ndarray:
    """[N] bool, whether each case [N, C] reaches the threshold of the positive class."""
    return probabilities[:, positive] >= threshold


def decide(probabilities: np.ndarray, positive: int | None, threshold: float) -> np.ndarray:
    """The label of each case.

    Args:
      probabilities: [N, C] float, of slices or persons.
      positive: the index of the positive class; None: there is none.
      threshold: of its probability; has no meaning with three or more classes.

    Returns:
      [N] int, the index of a class.
    """
    if positive is None or probabilities.shape[1] > 2:
        return probabilities.argmax(axis=1)
    reached = is_positive(probabilities, positive, threshold)
    return np.where(reached, positive, 1 - positive)


@dataclasses.dataclass(frozen=True)
class DecisionRule:
    """How a person's label is made of the slices' probabilities.

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
        evaluation: Mapping,
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
    evaluation: Mapping, *, threshold: float | None = None, aggregate: str | None = None
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
    settings = MetricSettings.from_config(evaluation)
    if threshold is not None:
        settings = dataclasses.replace(settings, threshold=threshold)
    if aggregate is not None:
        settings = dataclasses.replace(settings, aggregate=aggregate)
    return settings


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


@dataclasses.dataclass(frozen=True)
class Misclassification:
    """A patient with a wrong predicted label.

    Attributes:
      patient_id, site, truth: of the person.
      predicted: the wrong label.
      probability: of the wrong label.
      probability_of_truth: of the true one.
      n_slices: of the person.
    """

    patient_id: str
    site: str
    truth: str
    predicted: str
    probability: float
    probability_of_truth: float
    n_slices: int


def predicted_labels(
    predictions: SlicePredictions | PersonPredictions, positive: int, threshold: float
) -> np.ndarray:
    """[N] int, the predicted label of each case, see `decide`."""
    return decide(predictions.probabilities, positive, threshold)


def confusion_counts(
    predictions: SlicePredictions | PersonPredictions, positive: int, threshold: float
) -> np.ndarray:
    """[C, C] int, cases by true (row) and predicted (column) label."""
    # scikit-learn's confusion_matrix raises on a group without cases.
    counts = np.zeros((len(predictions.labels),) * 2, int)
    predicted = predicted_labels(predictions, positive, threshold)
    np.add.at(counts, (predictions.label, predicted), 1)
    return counts


def worst_errors(
    persons: PersonPredictions, positive: int, threshold: float, most: int
) -> list[Misclassification]:
    """The misclassified patients, the most probable wrong labels first, each patient once."""
    label = predicted_labels(persons, positive, threshold)
    probability = persons.probabilities[np.arange(len(persons)), label]
    of_truth = persons.probabilities[np.arange(len(persons)), persons.label]
    wrong = np.flatnonzero(label != persons.label)
    errors: dict[str, Misclassification] = {}
    for i in wrong[np.argsort(-probability[wrong], kind="stable")]:
        patient_id = str(persons.patient_id[i])
        errors.setdefault(
            patient_id,
            Misclassification(
                patient_id=patient_id,
                site=str(persons.site[i]),
                truth=persons.labels[persons.label[i]],
                predicted=persons.labels[label[i]],
                probability=float(probability[i]),
                probability_of_truth=float(of_truth[i]),
                n_slices=int(persons.n_slices[i]),
            ),
        )
    return list(errors.values())[:most]


@dataclasses.dataclass(frozen=True)
class MetricSettings:
    """Settings of the metrics, of their intervals and of the tests between runs.

    The defaults are for runs older than a setting: those are evaluated as they would have been in
    their time. New runs have all of them from `configs/drenet.py`.

    Attributes:
      threshold: a case is positive from this probability of the positive class on.
      aggregate: how a person's probabilities are made of the slices' (`predictions.AGGREGATES`).
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
    def from_config(cls, evaluation: Mapping) -> MetricSettings:
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
