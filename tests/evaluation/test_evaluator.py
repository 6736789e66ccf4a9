"""The evaluation of a trained model: its files, and that they agree with each other."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from drenet_jax.data.batches import split_batches
from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation import evaluator
from drenet_jax.evaluation.decisions import positive_class
from drenet_jax.evaluation.evaluation_files import pictures_of
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions
from drenet_jax.output_files import new_folder
from drenet_jax.synthesize import synthesize


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


@pytest.mark.parametrize("temperature", [pytest.param(0.5, marks=pytest.mark.slow), 2.0])
def test_calibrated_probabilities_are_the_logits_at_the_temperature(
    trained, tmp_path, monkeypatch, temperature
):
    monkeypatch.setattr(evaluator, "fit_temperature", lambda logits, label: temperature)
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
    monkeypatch.setattr(evaluator, "fit_temperature", lambda logits, label: None)
    with pytest.raises(InputError, match=r"--calibrated: .* no temperature fits"):
        evaluate_split(trained, "test", tmp_path, calibrated=True)


@pytest.fixture(scope="module")
def others(prepared, tmp_path_factory):
    """Twelve other phantoms, all of them in the test split."""
    folder = tmp_path_factory.mktemp("others")
    synthesize(folder / "phantoms", persons=12, seed=4, size_px=96, site="A", workers=1)
    cohort = folder / "phantoms" / "others.csv"
    _write_as_others(folder / "phantoms" / "cohort.csv", cohort)
    return _prepare(cohort, folder / "data", prepared)


def _write_as_others(source, cohort):
    """The persons of a cohort under other names, all of them in the test split."""
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with cohort.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "patient_id": f"other-{row['patient_id']}", "split": "test"})


def _prepare(cohort, out, prepared):
    with new_folder(out) as folder:
        prepare_cohort(
            read_cohort(cohort, open_data(prepared).labels),
            folder,
            settings=open_data(prepared).ct,
            seed=0,
            fractions=(50, 25, 25),
            workers=1,
            progress=lambda summaries, n: summaries,
        )
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
    assert "trained and selected on another data set" in (tmp_path / "report.html").read_text()
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


@pytest.fixture(scope="module")
def renamed(phantoms, prepared, tmp_path_factory):
    """The phantoms that the model knows, in copies with other names of persons and files."""
    folder = tmp_path_factory.mktemp("renamed")
    for source in sorted((phantoms / "dicom").iterdir()):
        copy = folder / "dicom" / source.name
        copy.mkdir(parents=True)
        for number, file in enumerate(sorted(source.iterdir())):
            shutil.copy(file, copy / f"copy{number}")
    _write_as_others(phantoms / "cohort.csv", folder / "cohort.csv")
    return _prepare(folder / "cohort.csv", folder / "data", prepared)


@pytest.mark.parametrize("other_persons", [False, True])
def test_pictures_that_the_model_knows_are_refused_under_any_name(
    trained, prepared, renamed, tmp_path, other_persons
):
    own = open_data(prepared)
    known = sorted(
        f"other-{person}" for split in ("train", "validation") for person in own.persons[split]
    )
    with pytest.raises(InputError, match="trained or selected on pictures of 9 persons") as caught:
        evaluate_split(trained, "test", tmp_path, str(renamed), other_persons=other_persons)
    assert sorted(re.findall(r"'(other-[^']+)'", str(caught.value))) == known
    assert not any(tmp_path.iterdir())


def test_the_command_refuses_them_and_writes_nothing(trained, renamed, tmp_path, command):
    out = tmp_path / "new" / "out"
    done = command("evaluate", f"--workdir={trained}", f"--data={renamed}", f"--out={out}")
    assert done.returncode == 2, done.stderr
    assert "trained or selected on pictures of 9 persons" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not out.parent.exists()


def test_they_are_refused_where_the_own_data_are_gone_too(trained, prepared, renamed, tmp_path):
    prepared.rename(prepared.parent / "elsewhere")
    try:
        with pytest.raises(InputError, match="trained or selected on pictures of 9 persons"):
            evaluate_split(trained, "test", tmp_path, str(renamed), other_persons=True)
    finally:
        (prepared.parent / "elsewhere").rename(prepared)


def test_copies_of_persons_who_only_tested_the_model_may_test_it_again(
    trained, prepared, phantoms, evaluated, tmp_path
):
    own = open_data(prepared)
    _write_as_others(phantoms / "cohort.csv", tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["patient_id,path,label,split"]
    for row in rows:
        if row["patient_id"].removeprefix("other-") in own.persons["test"]:
            lines.append(f"{row['patient_id']},{phantoms / row['path']},{row['label']},test")
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    data = _prepare(tmp_path / "cohort.csv", tmp_path / "data", prepared)
    (tmp_path / "out").mkdir()
    evaluate_split(trained, "test", tmp_path / "out", str(data))
    ours, theirs = (
        {row["patient_id"].removeprefix("other-"): row for row in _rows(folder / "persons.csv")}
        for folder in (evaluated, tmp_path / "out")
    )
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert float(row["p_COVID-19"]) == pytest.approx(float(theirs[key]["p_COVID-19"]), abs=1e-6)


def test_a_name_that_differs_in_case_only_is_a_known_person(trained, prepared, others, tmp_path):
    data, own = open_data(others), open_data(prepared)
    shutil.copytree(others, tmp_path / "data")
    tested, known = data.persons["test"][0], own.persons["train"][0]
    for name in ("split.json", "dataset.json"):
        text = (tmp_path / "data" / name).read_text()
        (tmp_path / "data" / name).write_text(text.replace(tested, known.upper()))
    with pytest.raises(InputError, match=rf"have the patient_id of persons .*'{known.upper()}'"):
        evaluate_split(trained, "test", tmp_path, str(tmp_path / "data"))


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
    first, second = data.persons["train"][0], data.persons["test"][0]
    pictures = pictures_of(data, [first, second], "never")
    assert {patient_id for patient_id, _, _ in pictures} == {first, second}
    for batch in split_batches(data, "test", batch_size=64, fill="never"):
        for i, patient_id in enumerate(batch["patient_id"]):
            if patient_id == second:
                key = patient_id, int(batch["slice_index"][i]), batch["slice_name"][i]
                np.testing.assert_array_equal(pictures.pop(key), batch["image"][i])
    assert {patient_id for patient_id, _, _ in pictures} == {first}


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
