"""Tests of the plots: they are drawn for any cohort, and always the same."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from drenet_jax.evaluation import plots
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.evaluation_files import evaluation_metrics
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions

SETTINGS = MetricSettings(bootstrap_draws=20)


def _calibration(path, slices, persons, metrics):
    versions = [("before", slices, persons), ("after", slices, persons)]
    plots.calibration_figure(path, versions, 0, 10)


def _confusion(path, slices, persons, metrics):
    plots.confusion_figure(path, [("patients", persons), ("slices", slices)], 0, 0.5)


FIGURES = (plots.roc_figure, _confusion, _calibration)


def cohort(labels, n_persons, n_classes=None):
    """Slices, persons and metrics of a random cohort with `n_classes` of the labels present."""
    random = np.random.default_rng(0)
    n = 3 * n_persons
    person = np.repeat(np.arange(n_persons), 3)
    slices = SlicePredictions(
        labels=labels,
        patient_id=person.astype(np.str_),
        slice_name=np.arange(n).astype(np.str_),
        slice_index=np.arange(n),
        site=np.full(n, "A"),
        label=person % (n_classes or len(labels)),
        probabilities=random.dirichlet(np.ones(len(labels)), n),
    )
    persons = person_predictions(slices)
    return (
        slices,
        persons,
        evaluation_metrics(slices, persons, split="test", positive=0, settings=SETTINGS),
    )


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize(
    ("labels", "n_persons", "n_classes"),
    [
        (("COVID-19", "healthy"), 12, 2),
        (("COVID-19", "bacterial", "healthy"), 12, 3),
        (("COVID-19", "bacterial", "healthy"), 12, 1),
        (("$10$_x", "^{broken"), 4, 2),  # neither is to be read as a formula
        (("COVID-19", "healthy"), 1, 1),
        (("COVID-19", "healthy"), 0, 1),
    ],
)
def test_a_figure_is_drawn_for_any_cohort(tmp_path, figure, labels, n_persons, n_classes):
    figure(tmp_path / "figure.png", *cohort(labels, n_persons, n_classes))
    picture = cv2.imread(str(tmp_path / "figure.png"))
    assert min(picture.shape[:2]) > 300
    assert picture.std() > 5


def test_the_same_predictions_give_the_same_picture(tmp_path):
    data = cohort(("COVID-19", "healthy"), 6)
    for name in ("a.png", "b.png"):
        plots.roc_figure(tmp_path / name, *data)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
