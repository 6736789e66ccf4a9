"""`evaluate` and `predict` put the same person under the same label, whatever the rule."""

from __future__ import annotations

import csv
import itertools
import json

import numpy as np
import pytest

import drenet_jax
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.aggregates import AGGREGATES
from drenet_jax.evaluation.decisions import DecisionRule, decide
from drenet_jax.evaluation.evaluator import evaluate_split


@pytest.fixture(scope="module")
def scored(trained_on_two_labels, tmp_path_factory):
    """What `evaluate` finds with some threshold and aggregate."""
    folder = tmp_path_factory.mktemp("evaluations")

    def evaluate(**given):
        out = folder / str(len(list(folder.iterdir())))
        out.mkdir()
        metrics = evaluate_split(trained_on_two_labels, "test", out, **given)
        with (out / "persons.csv").open(newline="") as file:
            return metrics, list(csv.DictReader(file))

    return evaluate


def _folders(workdir, phantoms, persons):
    return {row["patient_id"]: phantoms / "dicom" / row["patient_id"] for row in persons}


def test_the_run_s_own_rule_decides_for_both(trained_on_two_labels, scored, phantoms):
    metrics, persons = scored()
    rule = {"rule": "threshold", "threshold": 0.37, "positive": "COVID-19"}
    assert metrics["decision"] == rule | {"aggregate": "top3_mean"}
    pipeline = drenet_jax.load(trained_on_two_labels)
    for row in persons:
        result = pipeline.person(phantoms / "dicom" / row["patient_id"])
        assert result["decision"] == metrics["decision"]
        assert result["person"]["probabilities"] == pytest.approx(
            {label: float(row[f"p_{label}"]) for label in metrics["labels"]}, abs=1e-5
        )
        # The plain mean is another figure, so that the aggregate is seen to be taken.
        slices = [row["probabilities"]["COVID-19"] for row in result["slices"]]
        top = np.mean(sorted(slices)[-3:])
        assert result["person"]["probabilities"]["COVID-19"] == pytest.approx(top, abs=1e-6)
        assert abs(np.mean(slices) - top) > 1e-5
        wanted = "COVID-19" if top >= 0.37 else "healthy"
        assert result["person"]["label"] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_every_threshold_and_aggregate_decides_alike(
    aggregate, trained_on_two_labels, scored, phantoms
):
    pipeline = drenet_jax.load(trained_on_two_labels, aggregate=aggregate)
    _, persons = scored(aggregate=aggregate)
    p = sorted(float(row["p_COVID-19"]) for row in persons)
    between = [(a + b) / 2 for a, b in itertools.pairwise(p) if b - a > 1e-5]
    assert between, p
    predicted = {
        row["patient_id"]: pipeline.predict(phantoms / "dicom" / row["patient_id"]).result
        for row in persons
    }
    for threshold in (p[0] / 2, *between, (p[-1] + 1) / 2):
        metrics, _ = scored(aggregate=aggregate, threshold=threshold)
        rule = DecisionRule.of(
            pipeline.predictor.meta.labels,
            pipeline.predictor.meta.config.evaluation,
            threshold=threshold,
            aggregate=aggregate,
        )
        right = []
        for row in persons:
            result = predicted[row["patient_id"]]
            person = np.array(list(result["person"]["probabilities"].values()))
            label = rule.labels[rule.label_of(person)]
            assert label == ("COVID-19" if person[rule.positive] >= threshold else "healthy")
            right.append(label == row["label"])
        # What metrics.json counts as right is what predict says.
        assert metrics["person"]["accuracy"]["value"] == pytest.approx(np.mean(right))
        assert metrics["decision"] == rule.to_dict()


def test_the_threshold_can_overrule_the_largest_probability(trained_on_two_labels, phantoms):
    person = sorted((phantoms / "dicom").iterdir())[0]
    p = drenet_jax.load(trained_on_two_labels).person(person)["person"]["probabilities"]
    least = min(p, key=p.get)
    threshold = (p["COVID-19"] + (0.0 if least == "COVID-19" else 1.0)) / 2
    result = drenet_jax.load(trained_on_two_labels, threshold=threshold).person(person)
    assert result["person"]["label"] == least
    assert result["person"]["probabilities"] == pytest.approx(p)
    # A box's score and the heat map are of the label that was decided for.
    assert result["decision"]["threshold"] == threshold


def test_of_three_labels_the_most_probable_is_taken(trained, phantoms, tmp_path):
    metrics = evaluate_split(trained, "test", tmp_path, threshold=0.9, aggregate="median")
    pipeline = drenet_jax.load(trained, aggregate="median")
    with (tmp_path / "persons.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = []
    for row in rows:
        result = pipeline.person(phantoms / "dicom" / row["patient_id"])
        p = {label: float(row[f"p_{label}"]) for label in metrics["labels"]}
        assert result["person"]["probabilities"] == pytest.approx(p, abs=1e-5)
        assert result["person"]["label"] == max(p, key=p.get)
        right.append(result["person"]["label"] == row["label"])
        assert result["decision"] == metrics["decision"]
        # Validation persons were scored with another aggregate: no rate is known for this one.
        assert result["person"]["validation"] is None
    assert metrics["person"]["accuracy_argmax"]["value"] == pytest.approx(np.mean(right))
    assert metrics["decision"] == {
        "rule": "largest_probability",
        "threshold": None,
        "positive": "COVID-19",
        "aggregate": "median",
    }


def test_what_is_known_of_validation_persons_is_of_the_same_aggregate(
    trained_on_two_labels, phantoms
):
    pipeline = drenet_jax.load(trained_on_two_labels)
    data = open_data(pipeline.predictor.meta.config.data.dir)
    persons = [
        pipeline.person(phantoms / "dicom" / patient_id)["person"]["probabilities"]
        for patient_id in data.persons["validation"]
    ]
    known = pipeline.predictor.validation_record
    assert known.aggregate == "top3_mean"
    kept = {tuple(np.round(row, 4)) for row in known.probabilities}
    assert kept == {tuple(np.round([p[x] for x in data.labels], 4)) for p in persons}


@pytest.mark.slow
def test_the_commands_take_the_flags(command, trained_on_two_labels, phantoms, tmp_path):
    person = sorted((phantoms / "dicom").iterdir())[0]
    flags = [f"--workdir={trained_on_two_labels}", f"--input={person}"]
    for threshold, label in (("0.0001", "COVID-19"), ("0.9999", "healthy")):
        out = tmp_path / threshold
        done = command("predict", *flags, f"--out={out}", f"--threshold={threshold}")
        assert done.returncode == 0, done.stderr
        result = json.loads((out / "result.json").read_text())
        assert result["person"]["label"] == label
        assert result["decision"]["threshold"] == float(threshold)
        page = (out / "report.html").read_text()
        assert "COVID-19 if its probability (" in page
        assert f"is at least {threshold}." in page
    for value in ("1.5", "0", "nan"):
        done = command("predict", *flags, f"--out={tmp_path / 'o'}", f"--threshold={value}")
        assert done.returncode == 2
        assert f"--threshold={value} must be between 0 and 1" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_ties_and_odd_labels_are_decided_by_the_same_rule():
    ties = np.array([[0.5, 0.5], [0.63, 0.37], [0.64, 0.36]])
    assert decide(ties, 1, 0.5).tolist() == [1, 0, 0]
    assert decide(ties, 1, 0.37).tolist() == [1, 1, 0]
    assert decide(ties, 0, 0.64).tolist() == [1, 1, 0]
    assert decide(ties, None, 0.9).tolist() == [0, 0, 0]
    assert decide(np.array([[0.4, 0.4, 0.2], [0.1, 0.45, 0.45]]), 2, 0.1).tolist() == [0, 1]
    # Weights of others may have no positive label.
    rule = DecisionRule.of(("ill", "well"), {})
    assert rule.to_dict() == {
        "rule": "largest_probability",
        "threshold": None,
        "positive": None,
        "aggregate": "mean",
    }
    assert DecisionRule.of(("ill", "well"), {"positive_label": "ill"}).positive == 0


@pytest.mark.parametrize(
    ("labels", "evaluation", "flags", "message"),
    [
        (("ill", "well"), {}, {"threshold": 0.4}, "--threshold=0.4 needs a positive label"),
        (("ill", "well"), {"threshold": 0.4}, {}, "evaluation.threshold=0.4 needs a positive"),
        (("ill", "well"), {"aggregate": "noisy_or"}, {}, "evaluation.aggregate=noisy_or needs"),
        (("a", "b", "c"), {}, {"aggregate": "top3_mean"}, "--aggregate=top3_mean needs"),
        (("covid", "b", "c"), {}, {"threshold": 0.4}, "has 3 labels, of which the most probable"),
        (("covid", "b"), {"positive_label": "x"}, {}, "names none of the labels covid, b"),
        (("covid", "b"), {"aggregate": "max"}, {}, "aggregate=max must be one of mean"),
    ],
)
def test_a_rule_without_meaning_is_refused(labels, evaluation, flags, message):
    with pytest.raises(InputError, match=message.replace("+", r"\+")):
        DecisionRule.of(labels, evaluation, **flags)
