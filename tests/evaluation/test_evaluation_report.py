"""Tests of the report of an evaluation: whole, escaped, and true to the numbers."""

from __future__ import annotations

import re

import cv2
import jax
import numpy as np
from html_pages import Page, assert_stands_alone, pictures_of

from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.evaluation_files import evaluation_metrics
from drenet_jax.evaluation.evaluation_report import ReportContext, evaluation_report, worst_errors
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions

LABELS = ("COVID-19", "bacterial", "healthy")
EVIL = '<script>alert("x")</script>&\'.dcm'
SETTINGS = MetricSettings(bootstrap_draws=200)
CT = {
    "slices_per_person": 15,
    "window_level_hu": -600.0,
    "window_width_hu": 1500.0,
    "min_area_share": 0.5,
    "image_size_px": 448,
    "fill_copies": 40,
}
CONFIG = {
    "seed": 3,
    "data": {"dir": "data/mine", "fill": "train", "batch_size": 16},
    "model": {"name": "drenet", "backbone": "resnet50"},
    "optimizer": {"name": "sgd"},
    "train": {"epochs": 120},
    "init": {"weights": ""},
}


def evaluation(tmp_path, labels=LABELS, n_persons=12, sites=("", "North & South"), **changes):
    """A report, and what it was made of."""
    random = np.random.default_rng(0)
    n = 2 * n_persons
    who = np.repeat(np.arange(n_persons), 2)
    slices = SlicePredictions(
        labels=labels,
        patient_id=np.array([f"<i>{i}" for i in who], np.str_),
        slice_name=np.arange(n).astype(np.str_),
        slice_index=np.arange(n),
        site=np.array([sites[i % len(sites)] for i in who], np.str_),
        label=who % len(labels),
        probabilities=random.dirichlet(np.ones(len(labels)), n),
    )
    persons = person_predictions(slices)
    threshold = changes.pop("validation_threshold", None)
    metrics = evaluation_metrics(
        slices,
        persons,
        split="test",
        positive=0,
        settings=SETTINGS,
        validation_threshold=threshold,
    )
    figure = {"ece": 0.125, "brier": 0.25}
    metrics["calibration"] = {
        "temperature": 1.75,
        "used": False,
        "before": {"person": figure, "image": figure},
        "after": {"person": figure, "image": figure},
    }
    plots = {name: tmp_path / f"{name}.png" for name in ("roc", "confusion", "calibration")}
    for path in plots.values():
        cv2.imwrite(str(path), np.full((8, 8), 90, np.uint8))
    misses = changes.pop("misses", worst_errors(persons, 0, 0.5, 10))
    pictures = {
        (str(slices.patient_id[i]), int(slices.slice_index[i]), str(slices.slice_name[i])): (
            np.full((96, 96), i, np.uint8)
        )
        for i in range(n)
    }
    context = {
        "title": "drenet on the test split",
        "pictures": lambda patients: pictures,
        "model": {"name": "drenet", "step": 1200, "version": "0.1.0"},
        "config": CONFIG,
        "ct": CT,
        "design": "By person, drawn.",
        "partitions": [("train", 60, 300), ("test", n_persons, n)],
        "excluded": [
            {"patient_id": "p", "file": EVIL, "why": "not a DICOM file"},
            {"patient_id": "q", "file": "b.dcm", "why": "not a DICOM file: damaged"},
            {"patient_id": "r", "file": "", "why": "no lungs found"},
        ],
    } | changes
    report = evaluation_report(ReportContext(**context), metrics, slices, misses, plots)
    return report, persons, metrics, misses


def test_an_evaluation_report_stands_alone_and_holds_all_parts(tmp_path):
    text, _, metrics, _ = evaluation(tmp_path, validation_threshold=0.375)
    assert_stands_alone(text)
    page = Page(text)
    auc = metrics["person"]["auc"]
    for wanted in (
        "drenet on the test split",
        f"{auc['value']:.3f} ({auc['low']:.3f}–{auc['high']:.3f})",
        "recall at specificity 0.90",
        "Brier score",
        "North & South",
        "not given",
        "12 / 24",
        "3 files or patients excluded",
        "2 × not a DICOM file",
        "1 × no lungs found",
        EVIL,
        "threshold 0.375",
        "temperature 1.750",
        "macro average",
        '{"epochs": 120}',
        "Sites",
        "By person, drawn.",
    ):
        assert wanted in page.text, wanted


def test_the_misses_are_shown_with_the_slices_of_the_wrong_label(tmp_path):
    text, _, _, misses = evaluation(tmp_path)
    page = Page(text)
    assert misses
    assert [link["href"] for link in page.all("a") if "miss" in link["href"]][-len(misses) :] == [
        f"#miss{i}" for i in range(1, len(misses) + 1)
    ]
    # Three plots, and the two slices of each.
    assert len(pictures_of(text)) == 3 + 2 * len(misses)
    shown = [image["alt"] for image in page.all("img") if "the model input" in image["alt"]]
    assert f"of {misses[0].patient_id}," in shown[0]


def test_nobody_wrong_is_said(tmp_path):
    assert "No patient was misclassified." in evaluation(tmp_path, misses=[])[0]


def test_a_cross_validation_has_a_table_of_folds(tmp_path):
    rows = [{"repeat": 1, "fold": "<b>1", "person_auc": "0.9111"}, {"repeat": 1, "fold": "2"}]
    rows[1]["person_auc"] = ""
    text = evaluation(tmp_path, folds=rows)[0]
    assert_stands_alone(text)
    assert "<b>" not in text
    for wanted in ("person auc", "0.9111", "<b>1"):
        assert wanted in Page(text).text
    assert 'href="#folds"' not in evaluation(tmp_path)[0]


def test_every_claim_item_is_answered_or_left_to_the_authors(tmp_path):
    text = evaluation(tmp_path)[0]
    claim = Page(text.partition('id="claim"')[2].partition("<h2")[0]).text
    rows = re.findall(r'<td class="number">(\d+)</td><td>(.+?)</td><td>(.+?)</td>', text)
    assert [int(number) for number, _, _ in rows] == list(range(1, 45))
    for wanted in (
        "level -600 HU",
        "Random, seed 3.",
        "4 COVID-19, 4 bacterial",
        f"jax {jax.__version__}",
    ):
        assert wanted in claim
    assert "To be filled by you: age, sex, severity, scanners." in claim


def test_two_classes_have_no_table_by_label(tmp_path):
    text = evaluation(tmp_path, labels=("COVID-19", "healthy"))[0]
    assert "macro average" not in text
    assert "No validation threshold" in text


def test_one_site_has_no_table_of_sites(tmp_path):
    assert 'id="sites"' not in evaluation(tmp_path, sites=("A",))[0]


def test_a_cohort_of_one_class_says_why_a_metric_is_missing(tmp_path):
    page = Page(evaluation(tmp_path, n_persons=1)[0])
    assert "only one class present" in page.text
    assert "one person alone gives no interval" in page.text


def test_an_empty_split_has_a_report(tmp_path):
    assert "There are no patients in this split." in evaluation(tmp_path, n_persons=0)[0]
