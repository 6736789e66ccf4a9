"""Which label a case is put under, and where that is wrong."""

from __future__ import annotations

import dataclasses

import numpy as np

from drenet_jax.evaluation.persons import PersonPredictions, SlicePredictions


@dataclasses.dataclass(frozen=True)
class Miss:
    """A person who is put under a wrong label.

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


def decided(
    predictions: SlicePredictions | PersonPredictions, positive: int, threshold: float
) -> np.ndarray:
    """[N] int, the label that each case is put under.

    With two labels the positive one from the threshold on, with more the most probable one.
    """
    if len(predictions.labels) > 2:
        return predictions.probabilities.argmax(axis=1)
    is_positive = predictions.probabilities[:, positive] >= threshold
    return np.where(is_positive, positive, 1 - positive)


def confusion_counts(
    predictions: SlicePredictions | PersonPredictions, positive: int, threshold: float
) -> np.ndarray:
    """[C, C] int, cases by true (row) and decided (column) label."""
    n = len(predictions.labels)
    counts = np.zeros((n, n), np.int64)
    np.add.at(counts, (predictions.label, decided(predictions, positive, threshold)), 1)
    return counts


def worst_misses(
    persons: PersonPredictions, positive: int, threshold: float, most: int
) -> list[Miss]:
    """The persons who are put under a wrong label with the highest probability of it, each once."""
    label = decided(persons, positive, threshold)
    probability = persons.probabilities[np.arange(len(persons)), label]
    of_truth = persons.probabilities[np.arange(len(persons)), persons.label]
    wrong = np.flatnonzero(label != persons.label)
    misses: dict[str, Miss] = {}
    for i in wrong[np.argsort(-probability[wrong], kind="stable")]:
        patient_id = str(persons.patient_id[i])
        misses.setdefault(
            patient_id,
            Miss(
                patient_id=patient_id,
                site=str(persons.site[i]),
                truth=persons.labels[persons.label[i]],
                predicted=persons.labels[label[i]],
                probability=float(probability[i]),
                probability_of_truth=float(of_truth[i]),
                n_slices=int(persons.n_slices[i]),
            ),
        )
    return list(misses.values())[:most]
