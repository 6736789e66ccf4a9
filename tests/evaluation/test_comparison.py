"""Several runs on the same persons: refused unless they are; tables that agree with each other."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import cv2
import numpy as np
import pytest
from html_pages import Page, assert_stands_alone
from sklearn.metrics import confusion_matrix, roc_auc_score

from drenet_jax.errors import InputError
from drenet_jax.evaluation.comparison import compare, read_runs, short_names
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.evaluation_files import evaluation_metrics
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions

LABELS = ("COVID-19", "bacterial", "healthy")
SETTINGS = MetricSettings(bootstrap_draws=200)


def _slices(seed, labels=LABELS, n_persons=24, skill=2.0):
    """Random predictions; the higher the skill, the better."""
    random = np.random.default_rng(seed)
    person = np.repeat(np.arange(n_persons), 3)
    label = person % len(labels)
    logits = random.normal(size=(len(person), len(labels)))
    logits[np.arange(len(person)), label] += skill
    return SlicePredictions(
        labels=labels,
        patient_id=np.array([f"p{i:02d}" for i in person], np.str_),
        slice_name=np.array([f"{i}.dcm" for i in range(len(person))], np.str_),
        slice_index=np.arange(len(person)) % 3,
        site=np.full(len(person), "A"),
        label=label,
        probabilities=np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True),
    )


def _evaluation(folder, slices, split="test", aggregate="mean"):
    """A folder as `evaluate` writes it, as far as a comparison reads it."""
    persons = person_predictions(slices, aggregate, 0)
    metrics = evaluation_metrics(
        slices, persons, split=split, positive=0, settings=SETTINGS, aggregate=aggregate
    )
    folder.mkdir(parents=True)
    slices.to_csv(folder / "slices.csv")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return str(folder)


def _compared(tmp_path, runs, names=()):
    folders = [_evaluation(tmp_path / f"run{i}", slices) for i, slices in enumerate(runs)]
    out = tmp_path / "out"
    out.mkdir()
    return out, compare(read_runs(folders, "test", names), "test", out)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three runs of three classes, the last in another order of its rows."""
    runs = [_slices(1, skill=0.7), _slices(2, skill=1.5), _slices(3, skill=3.0)]
    order = np.random.default_rng(0).permutation(len(runs[2]))
    runs[2] = runs[2].of(order)
    return runs, *_compared(tmp_path_factory.mktemp("three"), runs, ["vgg_16", "a|b", "DRE$Net"])


def test_all_files_are_there_and_the_report_stands_alone(three):
    _, out, _ = three
    assert {path.name for path in out.iterdir()} == {
        "compare.json",
        "compare.md",
        "tables.csv",
        "tables.tex",
        "roc.png",
        "confusion.png",
        "report.html",
    }
    text = (out / "report.html").read_text()
    assert_stands_alone(text)
    for wanted in ("vgg_16", "a|b", "DRE$Net", "DeLong", "McNemar", "Holm"):
        assert wanted in Page(text).text
    for name in ("roc.png", "confusion.png"):
        picture = cv2.imread(str(out / name))
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 5


def test_each_runs_figures_are_scikit_learns(three):
    runs, _, result = three
    for slices, report in zip(runs, result["runs"], strict=True):
        persons = person_predictions(slices)
        truth = persons.label == 0
        expected = roc_auc_score(truth, persons.probabilities[:, 0])
        assert report["person"]["auc"]["value"] == pytest.approx(expected)
        chosen = persons.probabilities.argmax(axis=1)
        assert report["confusion"] == confusion_matrix(persons.label, chosen).tolist()
        assert report["person"]["accuracy_argmax"]["value"] == np.mean(chosen == persons.label)


def test_differences_are_to_the_first_run_and_of_the_same_persons(three):
    _, _, result = three
    first, *others = result["runs"]
    for other, difference in zip(others, result["differences"], strict=True):
        assert (difference["run"], difference["against"]) == (other["name"], first["name"])
        for metric in ("auc", "accuracy", "recall_macro"):
            metric_values = difference["person"][metric]
            expected = other["person"][metric]["value"] - first["person"][metric]["value"]
            assert metric_values["value"] == pytest.approx(expected, abs=1e-12)
            assert metric_values["low"] <= metric_values["value"] <= metric_values["high"]
        assert difference["delong_auc"]["difference"] == pytest.approx(
            difference["person"]["auc"]["value"]
        )
        assert difference["mcnemar_accuracy_argmax"]["difference"] == pytest.approx(
            difference["person"]["accuracy_argmax"]["value"]
        )


def test_p_values_are_adjusted_over_the_comparisons_of_each_test(three):
    _, out, result = three
    assert result["correction"] == "Holm"
    for test in ("delong_auc", "mcnemar_accuracy", "mcnemar_accuracy_argmax"):
        pairs = sorted((row[test]["p_value"], row[test]["p_holm"]) for row in result["differences"])
        (low, low_holm), (high, high_holm) = pairs
        assert low_holm == pytest.approx(min(1, 2 * low))
        assert high_holm == pytest.approx(max(low_holm, high))
    assert "adjusted by Holm's method" in (out / "compare.md").read_text()


def test_a_run_compared_with_itself_differs_in_nothing(tmp_path):
    _, result = _compared(tmp_path, [_slices(1), _slices(1)], ["a", "b"])
    (difference,) = result["differences"]
    assert difference["delong_auc"]["difference"] == 0
    assert difference["mcnemar_accuracy"]["p_value"] == 1
    for metric, values in difference["person"].items():
        assert values["value"] in (0, None), metric


def test_the_tables_hold_the_numbers_of_compare_json(three):
    _, out, result = three
    rows = list(csv.DictReader(io.StringIO((out / "tables.csv").read_text())))
    assert {row["table"] for row in rows} == {
        "table1",
        "table1_slices",
        "table2",
        "differences1",
        "differences2",
        "tests",
    }
    aucs = {
        row["run"]: float(row["value"])
        for row in rows
        if (row["table"], row["column"]) == ("table1", "AUC")
    }
    assert aucs == {run["name"]: run["person"]["auc"]["value"] for run in result["runs"]}
    paper = [row["column"] for row in rows if row["table"] == "table2" and row["run"] == "vgg_16"]
    assert {"recall", "precision", "specificity", "F1 as in the paper", "accuracy"} <= set(paper)
    # The best of each column is marked, in both.
    best = max(aucs, key=aucs.get)
    text = f"{aucs[best]:.3f}"
    assert re.search(rf"\*\*{text} ", (out / "compare.md").read_text())
    assert rf"\textbf{{{text} " in (out / "tables.tex").read_text()


def test_every_row_of_a_table_has_the_columns_of_its_head(three):
    _, out, _ = three
    for block in (out / "compare.md").read_text().split("###")[1:]:
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    tex = (out / "tables.tex").read_text()
    for block in tex.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{(l?c+)\}", block)[1])
        for line in block.splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    assert r"vgg\_16" in tex
    assert r"DRE\$Net" in tex
    assert tex.count("{") == tex.count("}")


def test_two_classes_have_no_table_2(tmp_path):
    labels = ("COVID-19", "healthy")
    out, result = _compared(tmp_path, [_slices(1, labels), _slices(2, labels)], ["a", "b"])
    assert "table2" not in (out / "tables.csv").read_text()
    assert "mcnemar_accuracy_argmax" not in result["differences"][0]
    assert "nothing" in (out / "compare.md").read_text()  # one comparison, nothing to adjust


def test_one_class_gives_tables_with_reasons(tmp_path):
    runs = [dataclasses.replace(_slices(i), label=np.zeros(72, np.int64)) for i in (1, 2)]
    out, result = _compared(tmp_path, runs, ["a", "b"])
    assert result["differences"][0]["delong_auc"]["p_holm"] is None
    assert "only one class present" in (out / "compare.md").read_text()


def _other_person(slices):
    names = slices.patient_id.copy()
    names[names == "p03"] = "stranger"
    return dataclasses.replace(slices, patient_id=names)


def _other_slice(slices):
    names = slices.slice_name.copy()
    names[4] = "other.dcm"
    return dataclasses.replace(slices, slice_name=names)


def _other_truth(slices):
    label = slices.label.copy()
    label[slices.patient_id == "p03"] += 1
    return dataclasses.replace(slices, label=label)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_person, "not of the same persons: 1 are only in the first and 1 .* 'p03'"),
        (_other_slice, "only one of them has slice '4.dcm' of person 'p01'"),
        (_other_truth, "other labels for person 'p03'"),
        (lambda slices: slices.of(np.r_[0, 0:72]), "several predictions of slice '0.dcm'"),
        (lambda slices: _slices(1, ("COVID-19", "healthy")), "have other labels"),
    ],
)
def test_runs_on_other_persons_are_refused_by_name(tmp_path, change, message):
    slices = _slices(1)
    folders = [
        _evaluation(tmp_path / "a", slices),
        _evaluation(tmp_path / "b", change(slices)),
    ]
    with pytest.raises(InputError, match=message):
        read_runs(folders, "test")


def test_an_evaluation_of_another_split_is_refused(tmp_path):
    folders = [_evaluation(tmp_path / split, _slices(1), split) for split in ("test", "validation")]
    with pytest.raises(InputError, match="holds an evaluation of validation"):
        read_runs(folders, "test")


@pytest.mark.parametrize(
    ("n", "names", "message"),
    [(1, [], "two or more folders"), (2, ["a"], "1 names"), (2, ["a", "a"], "the same name")],
)
def test_too_few_runs_or_names_are_refused(tmp_path, n, names, message):
    with pytest.raises(InputError, match=message):
        read_runs([str(tmp_path)] * n, "test", names)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        read_runs([str(tmp_path / "a"), str(tmp_path / "b")], "test")


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["runs/a/test", "runs/b/test"], ["a", "b"]),
        (["a/x/test", "b/x/test"], ["a", "b"]),
        (["a/x", "b/x", "c/y"], ["a/x", "b/x", "c/y"]),
    ],
)
def test_names_are_what_tells_the_folders_apart(folders, expected):
    assert short_names(folders) == expected


def test_a_workdir_is_scored_like_evaluate_does(trained, tmp_path):
    evaluate_split(trained, "test", tmp_path, aggregate="median")
    workdir, folder = read_runs([str(trained), str(tmp_path)], "test")
    np.testing.assert_allclose(workdir.slices.probabilities, folder.slices.probabilities)
    assert (workdir.settings.aggregate, folder.settings.aggregate) == ("mean", "median")
    with (tmp_path / "persons.csv").open() as file:
        written = {row["patient_id"]: float(row["p_COVID-19"]) for row in csv.DictReader(file)}
    positive = folder.positive
    for patient_id, p in zip(
        folder.persons.patient_id, folder.persons.probabilities[:, positive], strict=True
    ):
        assert p == pytest.approx(written[patient_id])
