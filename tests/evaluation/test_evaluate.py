"""The evaluation of a trained model: its files, and that they agree with each other."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from drenet_jax.data.batches import split_batches
from drenet_jax.data.cohort import read_cohort
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.records import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation import evaluate
from drenet_jax.evaluation.decisions import positive_class
from drenet_jax.evaluation.evaluate import evaluate_split
from drenet_jax.evaluation.persons import SlicePredictions, person_predictions
from drenet_jax.evaluation.results import pictures_of
from drenet_jax.outputs import new_folder


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
        assert auc["why"] if auc["low"] is None else auc["low"] <= auc["value"] <= auc["high"]


def test_the_loops_validation_is_the_evaluations(trained, tmp_path):
    metrics = evaluate_split(trained, "validation", tmp_path)
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["person"]["auc"]["value"] == pytest.approx(last["validation"]["auc"])
    slices = SlicePredictions.from_csv(tmp_path / "slices.csv")
    true = slices.probabilities[np.arange(len(slices)), slices.label]
    assert -np.log(true).mean() == pytest.approx(last["validation"]["cross_entropy"], rel=1e-4)
    assert metrics["calibration"]["temperature"] == last["validation"]["temperature"]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_calibrated_probabilities_are_the_logits_at_the_temperature(
    trained, tmp_path, monkeypatch, temperature
):
    monkeypatch.setattr(evaluate, "fit_temperature", lambda logits, label: temperature)
    for name in ("plain", "calibrated"):
        (tmp_path / name).mkdir()
        calibrated = name == "calibrated"
        metrics = evaluate_split(trained, "test", tmp_path / name, calibrated=calibrated)
        assert metrics["calibration"]["used"] == calibrated
        assert metrics["calibration"]["temperature"] == temperature
        # The result's own figures are those of the version that it uses.
        version = metrics["calibration"]["after" if calibrated else "before"]
        for level in ("image", "person"):
            assert metrics[level]["brier"]["value"] == pytest.approx(version[level]["brier"])
            assert metrics[level]["ece"]["value"] == pytest.approx(version[level]["ece"])
    plain, calibrated = (
        SlicePredictions.from_csv(tmp_path / name / "slices.csv").probabilities
        for name in ("plain", "calibrated")
    )
    powers = plain ** (1 / temperature)
    np.testing.assert_allclose(
        calibrated, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-7
    )
    assert "fitted on the validation slices" in (tmp_path / "plain" / "report.html").read_text()


def test_no_temperature_is_refused_if_it_is_asked_for(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "fit_temperature", lambda logits, label: None)
    with pytest.raises(InputError, match=r"--calibrated: .* no temperature suits"):
        evaluate_split(trained, "test", tmp_path, calibrated=True)


@pytest.fixture(scope="module")
def others(phantoms, prepared, tmp_path_factory):
    """The phantoms under other names, all of them in the test split."""
    with (phantoms / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cohort = phantoms / "others.csv"
    with cohort.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "patient_id": f"other-{row['patient_id']}", "split": "test"})
    out = tmp_path_factory.mktemp("others") / "data"
    with new_folder(out) as folder:
        prepare_cohort(
            read_cohort(cohort),
            folder,
            settings=open_data(prepared).ct,
            seed=0,
            fractions=(50, 25, 25),
            workers=1,
            progress=lambda summaries, n: summaries,
        )
    cohort.unlink()
    return out


def test_another_data_set_is_scored_with_what_the_runs_own_validation_chose(
    trained, others, evaluated, tmp_path
):
    metrics = evaluate_split(trained, "test", tmp_path, str(others))
    assert metrics["n_persons"] == 12
    own = json.loads((evaluated / "metrics.json").read_text())
    for figures in (metrics, own):
        figures["validation_threshold"] = figures["validation_threshold"]["threshold"]
    assert metrics["validation_threshold"] == own["validation_threshold"]
    assert metrics["calibration"]["temperature"] == own["calibration"]["temperature"]
    assert "trained and chosen on another data set" in (tmp_path / "report.html").read_text()
    assert "another data set" not in (evaluated / "report.html").read_text()


def test_where_the_own_data_are_gone_the_user_must_vouch_for_the_others(
    trained, prepared, others, tmp_path, monkeypatch
):
    prepared.rename(prepared.parent / "elsewhere")
    try:
        with pytest.raises(InputError, match=r"cannot be checked, .* --other_persons"):
            evaluate_split(trained, "test", tmp_path, str(others))
        metrics = evaluate_split(trained, "test", tmp_path, str(others), other_persons=True)
    finally:
        (prepared.parent / "elsewhere").rename(prepared)
    assert metrics["validation_threshold"]["threshold"] is None
    assert metrics["calibration"]["temperature"] is None


def test_data_that_were_prepared_in_another_way_are_refused(trained, others, tmp_path):
    shutil.copytree(others, tmp_path / "data")
    path = tmp_path / "data" / "dataset.json"
    settings = json.loads(path.read_text())
    settings["ct"]["window_level_hu"] -= 100
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="prepare the data with the same --config"):
        evaluate_split(trained, "test", tmp_path, str(tmp_path / "data"))


def test_the_aggregate_makes_the_persons(trained, tmp_path):
    metrics = evaluate_split(trained, "test", tmp_path, aggregate="top3_mean")
    assert metrics["aggregate"] == "top3_mean"
    slices = SlicePredictions.from_csv(tmp_path / "slices.csv")
    positive = slices.labels.index("COVID-19")
    persons = person_predictions(slices, "top3_mean", positive)
    expected = roc_auc_score(persons.label == positive, persons.probabilities[:, positive])
    assert metrics["person"]["auc"]["value"] == pytest.approx(expected)


def test_the_misses_pictures_are_the_model_s_inputs(prepared):
    data = open_data(prepared)
    one, two = data.persons["train"][0], data.persons["test"][0]
    pictures = pictures_of(data, [one, two], "never")
    assert {patient_id for patient_id, _, _ in pictures} == {one, two}
    for batch in split_batches(data, "test", batch_size=64, fill="never"):
        for i, patient_id in enumerate(batch["patient_id"]):
            if patient_id == two:
                key = patient_id, int(batch["slice_index"][i]), batch["slice_name"][i]
                np.testing.assert_array_equal(pictures.pop(key), batch["image"][i])
    assert {patient_id for patient_id, _, _ in pictures} == {one}


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
