"""Which label a case is given, and which cases that misjudges most."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from drenet_jax.evaluation.decisions import confusion_counts, predicted_labels
from drenet_jax.evaluation.evaluation_report import worst_errors
from drenet_jax.evaluation.predictions import PersonPredictions


def _persons(labels, truth, probabilities, patient_id=None):
    n = len(truth)
    names = [f"p{i}" for i in range(n)] if patient_id is None else patient_id
    return PersonPredictions(
        labels=labels,
        patient_id=np.array(names, np.str_),
        site=np.full(n, ""),
        label=np.array(truth),
        n_slices=np.full(n, 3),
        probabilities=np.array(probabilities, np.float64),
    )


@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")])
def test_confusion_counts_are_scikit_learns(labels):
    random = np.random.default_rng(0)
    truth = random.integers(0, len(labels), 60)
    persons = _persons(labels, truth, random.dirichlet(np.ones(len(labels)), 60))
    np.testing.assert_array_equal(
        confusion_counts(persons, 0, 0.5),
        confusion_matrix(truth, persons.probabilities.argmax(axis=1)),
    )


@pytest.mark.parametrize("positive", [0, 1])
def test_two_labels_are_distinguished_at_the_threshold(positive):
    score = np.array([0.1, 0.3, 0.31, 0.9])
    probabilities = np.stack([score, 1 - score], axis=1)[:, :: 1 - 2 * positive]
    persons = _persons(("a", "b"), [0, 0, 0, 0], probabilities)
    assert (predicted_labels(persons, positive, 0.3) == positive).tolist() == [
        False,
        True,
        True,
        True,
    ]


def test_the_most_certain_wrong_person_comes_first_and_each_once():
    persons = _persons(
        ("a", "b", "c"),
        [0, 0, 1, 2, 0],
        [[0.1, 0.6, 0.3], [0.9, 0.1, 0.0], [0.7, 0.2, 0.1], [0.5, 0.1, 0.4], [0.2, 0.8, 0.0]],
        ["p", "q", "r", "s", "p"],  # p in two repeats
    )
    misses = worst_errors(persons, 0, 0.5, 10)
    assert [(miss.patient_id, miss.truth, miss.predicted) for miss in misses] == [
        ("p", "a", "b"),
        ("r", "b", "a"),
        ("s", "c", "a"),
    ]
    assert misses[0].probability == 0.8
    assert misses[0].probability_of_truth == 0.2
    assert len(worst_errors(persons, 0, 0.5, 2)) == 2


def test_nobody_is_wrong():
    assert worst_errors(_persons(("a", "b"), [0, 1], [[1, 0], [0, 1]]), 0, 0.5, 10) == []
