"""Cross-validation: everybody tested once, resumable, with the same table in the end."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from html_pages import Page, assert_stands_alone
from sklearn.metrics import roc_auc_score

from drenet_jax.data.batches import split_batches
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.comparison import read_runs
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.evaluation_files import evaluation_metrics
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions
from drenet_jax.training import crossvalidation
from drenet_jax.training.crossvalidation import cross_validate

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config():
    """A narrow VGG16, which compiles in seconds, and two steps of it."""
    config = importlib.import_module("drenet_jax.configs.vgg16").get_config()
    config.model.width = 4
    config.model.image_size_px = 96
    # The same program for every fold: it is compiled once.
    config.optimizer.decay_epochs = ()
    config.train.accumulate = 1
    config.train.steps = 2
    config.data.batch_size = 8
    config.evaluation.batch_size = 8
    config.evaluation.bootstrap_draws = 50
    return config


@pytest.fixture(scope="module")
def whole(config, prepared, tmp_path_factory):
    """A cross-validation that nobody killed."""
    workdir = tmp_path_factory.mktemp("whole") / "cv"
    cross_validate(config, str(prepared), "2", 1, workdir)
    return workdir


def _rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_everybody_is_tested_once_and_the_pooled_figures_follow(whole, prepared):
    data = open_data(prepared)
    slices = SlicePredictions.from_csv(whole / "result" / "slices.csv")
    assert len(slices) == sum(data.n_slices.values())
    assert len(set(zip(slices.patient_id, slices.slice_name, strict=True))) == len(slices)
    persons = person_predictions(slices)
    metrics = json.loads((whole / "result" / "metrics.json").read_text())
    assert metrics["n_persons"] == len(persons) == 12
    positive = data.labels.index("COVID-19")
    for level, table in (("image", slices), ("person", persons)):
        expected = roc_auc_score(table.label == positive, table.probabilities[:, positive])
        assert metrics[level]["auc"]["value"] == pytest.approx(expected)


def test_each_fold_is_an_evaluation_of_persons_that_its_model_never_saw(whole):
    rows = _rows(whole / "result" / "persons.csv")
    fold_of = {row["patient_id"]: row["fold"] for row in rows}
    for fold in ("1", "2"):
        folder = whole / "repeat1" / f"fold{fold}"
        split = json.loads((folder / "data" / "split.json").read_text())
        assert set(split["test"]) == {person for person, other in fold_of.items() if other == fold}
        assert not set(split["test"]) & {*split["train"], *split["validation"]}
        assert (folder / "test" / "report.html").is_file()


def test_the_report_has_the_folds_and_stands_alone(whole):
    text = (whole / "result" / "report.html").read_text()
    assert_stands_alone(text)
    assert "2-fold cross-validation by person" in Page(text).text
    assert "12 patients: with so few" in Page(text).text


def _files(workdir):
    names = ("metrics.json", "slices.csv", "persons.csv", "folds.csv", "roc.png")
    return {name: (workdir / "result" / name).read_bytes() for name in names}


@pytest.mark.slow
def test_killed_and_started_again_it_gives_the_same_table(config, prepared, whole, tmp_path):
    workdir = tmp_path / "cv"
    code = (
        "import json, pathlib, ml_collections\n"
        "from drenet_jax.training.crossvalidation import cross_validate\n"
        f"config = ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n"
        f"cross_validate(config, {str(prepared)!r}, '2', 1, pathlib.Path({str(workdir)!r}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=dict(os.environ), stderr=subprocess.PIPE
    )
    # Within the second fold: the first is done, and must not be done again.
    while not (workdir / "repeat1" / "fold2" / "run").exists():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (workdir / "result").exists()
    first = workdir / "repeat1" / "fold1" / "test" / "metrics.json"
    done = first.stat().st_mtime_ns
    cross_validate(config, str(prepared), "2", 1, workdir)
    assert first.stat().st_mtime_ns == done
    assert _files(workdir) == _files(whole)


def test_called_again_it_does_nothing(config, prepared, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    metrics = cross_validate(config, str(prepared), "2", 1, whole)
    assert metrics["person"]["auc"]["value"] is not None
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert after == before


def test_another_cross_validation_in_the_same_workdir_is_refused_by_field(config, prepared, whole):
    other = config.copy_and_resolve_references()
    other.seed = 5
    with pytest.raises(InputError, match=r"config\.seed 0 there, 5 now; folds '2' there, '3' now"):
        cross_validate(other, str(prepared), "3", 1, whole)


def test_a_folder_with_other_things_is_refused(config, prepared, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other things"):
        cross_validate(config, str(prepared), "2", 1, tmp_path)


@pytest.mark.parametrize(
    ("folds", "repeats", "message"),
    [
        ("1", 1, "--folds=1 must be"),
        ("many", 1, "--folds=many must be"),
        ("5", 1, "ask for fewer folds"),
        ("sites", 2, "leave --repeats out"),
        ("sites", 1, "all are of 'A'"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(config, prepared, tmp_path, folds, repeats, message):
    with pytest.raises(InputError, match=message):
        cross_validate(config, str(prepared), folds, repeats, tmp_path / "cv")
    assert not (tmp_path / "cv").exists()


@pytest.fixture
def without_training(monkeypatch):
    """Folds that are "tested" at random: what remains is the plan and the pooling."""

    def evaluate(workdir, split, folder, data_dir):
        fold = open_data(data_dir)
        batches = list(split_batches(fold, split, batch_size=64, fill="never"))
        label = np.concatenate([batch["label"] for batch in batches])
        names = {
            name: np.array([value for batch in batches for value in batch[name]], np.str_)
            for name in ("patient_id", "slice_name")
        }
        random = np.random.default_rng(int(fold.fingerprint, 16) % 2**32)
        slices = SlicePredictions(
            labels=fold.labels,
            slice_index=np.concatenate([batch["slice_index"] for batch in batches]),
            site=np.array([_site(name) for name in names["patient_id"]], np.str_),
            label=label,
            probabilities=random.dirichlet(np.ones(3), len(label)),
            **names,
        )
        slices.to_csv(folder / "slices.csv")
        persons = person_predictions(slices)
        metrics = evaluation_metrics(
            slices,
            persons,
            split=split,
            positive=0,
            settings=MetricSettings(bootstrap_draws=20),
            validation_threshold=0.4,
        )
        metrics["calibration"] = {"temperature": 2.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(crossvalidation, "train_and_evaluate", lambda config, workdir: None)
    monkeypatch.setattr(crossvalidation, "evaluate_split", evaluate)


def _site(patient_id):
    return "AB"[int(patient_id[-1]) % 2]


def test_in_a_repeated_one_each_repeat_counts_and_the_bootstrap_draws_persons(
    config, prepared, tmp_path, without_training
):
    metrics = cross_validate(config, str(prepared), "3", 2, tmp_path / "cv")
    result = tmp_path / "cv" / "result"
    assert metrics["n_persons"] == 12
    rows = _rows(result / "persons.csv")
    assert len(rows) == 24
    assert {row["repeat"] for row in rows} == {"1", "2"}
    truth = [row["label"] == "COVID-19" for row in rows]
    score = [float(row["p_COVID-19"]) for row in rows]
    auc = metrics["person"]["auc"]
    assert auc["value"] == pytest.approx(roc_auc_score(truth, score))
    # At their own thresholds, all 0.4 here.
    right = np.mean((np.array(score) >= 0.4) == truth)
    assert metrics["validation_threshold"]["person"]["accuracy"]["value"] == right
    assert metrics["calibration"]["after"]["image"]["brier"] != pytest.approx(
        metrics["calibration"]["before"]["image"]["brier"]
    )
    assert len(_rows(result / "folds.csv")) == 6
    text = (result / "report.html").read_text()
    assert "repeated 2 times" in Page(text).text
    with pytest.raises(InputError, match="as a repeated cross-validation does"):
        read_runs([str(result), str(result)], "cross-validation", ["a", "b"])


def test_each_site_is_left_out_in_turn(config, prepared, tmp_path, without_training, monkeypatch):
    honest = crossvalidation.persons_of_records

    def at_sites(data):
        return {
            patient_id: dataclasses.replace(person, site=_site(patient_id))
            for patient_id, person in honest(data).items()
        }

    monkeypatch.setattr(crossvalidation, "persons_of_records", at_sites)
    metrics = cross_validate(config, str(prepared), "sites", 1, tmp_path / "cv")
    rows = _rows(tmp_path / "cv" / "result" / "persons.csv")
    assert all(row["fold"] == row["site"] == _site(row["patient_id"]) for row in rows)
    assert [site["site"] for site in metrics["sites"]] == ["A", "B"]
    assert "Leave one site out" in (tmp_path / "cv" / "result" / "report.html").read_text()


def test_cross_validations_can_be_compared(whole):
    first, second = read_runs([str(whole), str(whole)], "cross-validation", ["a", "b"])
    np.testing.assert_array_equal(first.slices.probabilities, second.slices.probabilities)
    with pytest.raises(InputError, match="holds an evaluation of cross-validation"):
        read_runs([str(whole), str(whole)], "test", ["a", "b"])
