"""The evaluation of a trained model: its files, and that they agree with each other."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from drenet_jax.data.records import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.evaluate import evaluate_split
from drenet_jax.evaluation.persons import SlicePredictions, person_predictions
from drenet_jax.evaluation.splits import positive_class


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("test")
    evaluate_split(trained, "test", folder)
    return folder


def test_all_promised_files_are_there(evaluated):
    assert {path.name for path in evaluated.iterdir()} == {
        "metrics.json",
        "persons.csv",
        "slices.csv",
        "roc.png",
        "confusion.png",
        "calibration.png",
        "report.html",
    }


def test_every_slice_of_the_split_is_there_once(evaluated, prepared):
    data = open_data(prepared)
    slices = SlicePredictions.from_csv(evaluated / "slices.csv")
    keys = set(zip(slices.patient_id, slices.slice_name, strict=True))
    assert len(keys) == len(slices) == data.n_slices["test"]
    assert set(slices.patient_id) == set(data.persons["test"])


def test_metrics_and_persons_follow_from_the_slices(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    slices = SlicePredictions.from_csv(evaluated / "slices.csv")
    persons = person_predictions(slices)
    with (evaluated / "persons.csv").open() as file:
        rows = {row["patient_id"]: row for row in csv.DictReader(file)}
    for i, patient in enumerate(persons.patient_id):
        for label, p in zip(persons.labels, persons.probabilities[i], strict=True):
            assert float(rows[patient][f"p_{label}"]) == pytest.approx(p, abs=1e-12)
    positive = persons.labels.index("COVID-19")
    for level, table in (("image", slices), ("person", persons)):
        auc = metrics[level]["auc"]
        expected = roc_auc_score(table.label == positive, table.probabilities[:, positive])
        assert auc["value"] == pytest.approx(expected)
        assert auc["low"] <= auc["value"] <= auc["high"]


def test_the_loops_validation_is_the_evaluations(trained, tmp_path):
    metrics = evaluate_split(trained, "validation", tmp_path)
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["person"]["auc"]["value"] == pytest.approx(last["validation"]["auc"])
    slices = SlicePredictions.from_csv(tmp_path / "slices.csv")
    true = slices.probabilities[np.arange(len(slices)), slices.label]
    assert -np.log(true).mean() == pytest.approx(last["validation"]["cross_entropy"], rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "name", "expected"),
    [
        (("healthy", "COVID-19"), "", 1),
        (("covid", "non_covid"), "", 0),
        (("a", "b"), "b", 1),
    ],
)
def test_the_positive_label_is_the_named_one_or_covid(labels, name, expected):
    assert positive_class(labels, name) == expected


@pytest.mark.parametrize(
    ("labels", "name"), [(("a", "b"), ""), (("covid", "b"), "c"), (("covid1", "covid2"), "")]
)
def test_an_unclear_positive_label_is_refused(labels, name):
    with pytest.raises(InputError, match="positive_label"):
        positive_class(labels, name)
