"""Tests of the HTML report of a person: whole, escaped, honest, and with their boxes in place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from html_pages import Page, assert_stands_alone, pictures_of

from drenet_jax.evaluation.report import (
    LESION_BOX_MIN_SCORE,
    SlicePicture,
    draw_boxes,
    person_report,
)

LABELS = ("COVID-19", "bacterial", "healthy")
EVIL = '<script>alert("x")</script>&\'.dcm'
RED = (40, 40, 255)
REPOSITORY = Path(__file__).resolve().parents[2]


def box(y0, x0, y1, x1, score):
    return {"y0": y0, "x0": x0, "y1": y1, "x1": x1, "score": score}


def person(scores, boxes=(), names=None):
    """A result and its pictures; a slice for each of the scores of the predicted class."""
    names = names or [f"IM{i:03d}.dcm" for i in range(len(scores))]
    pictures = [
        SlicePicture(
            index=10 * i,
            name=name,
            source=np.full((128, 128), 90, np.uint8),
            source_box=(16, 16, 112, 112),
            probabilities={"COVID-19": score, "bacterial": 0.75 * (1 - score), "healthy": 0.0},
            boxes=list(boxes),
        )
        for i, (name, score) in enumerate(zip(names, scores, strict=True))
    ]
    result = {
        "person": {
            "label": "COVID-19",
            "probabilities": {"COVID-19": 0.8125, "bacterial": 0.125, "healthy": 0.0625},
            "n_slices": len(scores),
        },
        "slices": [
            {
                "name": picture.name,
                "index": picture.index,
                "probabilities": picture.probabilities,
                "boxes": picture.boxes,
            }
            for picture in pictures
        ],
        "excluded": [],
        "notes": [],
        "model": {
            "name": "drenet",
            "workdir": "runs/demo",
            "step": 1200,
            "labels": list(LABELS),
            "version": "0.1.0",
        },
    }
    return result, pictures


def test_a_person_report_stands_alone_and_gives_the_answer():
    text = person_report(*person([0.9, 0.8, 0.7, 0.6]))
    assert_stands_alone(text)
    page = Page(text)
    for wanted in ("COVID-19", "0.812", "0.125", "0.062", "mean of 4 slices", "runs/demo", "1200"):
        assert wanted in page.text


def test_the_three_slices_with_the_highest_score_are_shown():
    page = Page(person_report(*person([0.2, 0.9, 0.5, 0.8])))
    assert [image["alt"].split(",")[0] for image in page.all("img")] == [
        "CT slice 10",
        "CT slice 30",
        "CT slice 20",
    ]
    assert len([row for row in page.all("tr") if row.get("class") == "marked"]) == 3


def test_fewer_than_three_slices_are_all_shown():
    assert len(pictures_of(person_report(*person([0.7])))) == 1


def test_markup_in_a_file_name_is_shown_and_not_run():
    result, pictures = person([0.9, 0.8], names=[EVIL, "b.dcm"])
    result["excluded"] = [{"name": EVIL, "why": "<b>no lungs</b>"}]
    result["model"]["workdir"] = EVIL
    text = person_report(result, pictures)
    assert_stands_alone(text)
    assert "<script>" not in text
    assert "<b>" not in text
    assert Page(text).text.count(EVIL) == 4  # caption, table, left out, model
    assert any(EVIL in image["alt"] for image in Page(text).all("img"))


def test_a_file_name_that_is_not_utf8_can_be_written():
    text = person_report(*person([0.9], names=["caf\udce9.dcm"]))
    assert r"caf\udce9.dcm" in text
    text.encode("utf-8")


def test_left_out_files_are_told_with_the_reason():
    result, pictures = person([0.9])
    assert "Nothing was left out" in person_report(result, pictures)
    result["excluded"] = [{"name": "notes.dcm", "why": "not a DICOM file"}]
    text = Page(person_report(result, pictures)).text
    assert "notes.dcm" in text
    assert "not a DICOM file" in text


def test_boxes_at_or_below_the_threshold_are_not_drawn_and_that_is_said():
    weak = [box(20, 20, 60, 60, LESION_BOX_MIN_SCORE), box(20, 20, 60, 60, 0.1)]
    text = person_report(*person([0.9], weak))
    assert "No lesion box: no region scores above 0.80" in Page(text).text
    assert not (pictures_of(text)[0] == RED).all(axis=2).any()


def test_a_box_above_the_threshold_is_drawn_where_it_is():
    _, (picture,) = person([0.9], [box(20, 30, 60, 90, 0.9)])
    canvas, scores = draw_boxes(picture)
    assert scores == [0.9]
    assert canvas.shape == (512, 512, 3)  # 128 pixels are enlarged four times
    red = (canvas == RED).all(axis=2)
    red[:80] &= False  # the score's plate lies above the box
    ys, xs = np.nonzero(red)
    for got, wanted in zip((ys.max(), xs.min(), xs.max()), (4 * 60, 4 * 30, 4 * 90), strict=True):
        assert abs(got - wanted) <= 3
    assert red[4 * 20 + 1, 4 * 60]  # the upper edge
    assert not red[4 * 40, 4 * 60]  # the middle is left as it was


def test_boxes_are_listed_with_the_highest_score_first():
    boxes = [box(20, 20, 60, 60, 0.85), box(30, 30, 70, 70, 0.97), box(0, 0, 9, 9, 0.2)]
    assert "2 boxes: 0.970, 0.850" in Page(person_report(*person([0.9], boxes))).text


def test_a_box_over_the_edge_is_drawn_along_the_edge():
    _, (picture,) = person([0.9], [box(-20, -20, 40, 150, 0.9)])
    red = (draw_boxes(picture)[0] == RED).all(axis=2)
    assert red[100, 0]
    assert red[100, 511]


def test_the_crop_box_is_grey_and_the_source_is_not_changed():
    _, (picture,) = person([0.9], [box(20, 30, 60, 90, 0.9)])
    before = picture.source.copy()
    canvas, _ = draw_boxes(picture)
    assert (canvas[4 * 64, 4 * 16] == 170).all()
    np.testing.assert_array_equal(picture.source, before)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((128, 128), (512, 512)),
        ((256, 300), (512, 600)),
        ((512, 512), (512, 512)),
        ((1024, 1024), (1024, 1024)),
        ((4096, 2048), (2048, 1024)),
        ((32, 512), (128, 2048)),
    ],
)
def test_small_slices_are_enlarged_and_huge_ones_reduced(shape, wanted):
    picture = SlicePicture(0, "a", np.zeros(shape, np.uint8), (0, 0, 8, 8), {"COVID-19": 1.0}, [])
    assert draw_boxes(picture)[0].shape[:2] == wanted


def test_a_model_without_boxes_has_a_report():
    assert "No lesion box" in Page(person_report(*person([0.9], []))).text


def test_a_report_is_made_without_jax_scikit_learn_or_matplotlib():
    program = (
        "import sys, drenet_jax.evaluation.report, drenet_jax.evaluation.run_report;"
        "print({'jax', 'tensorflow', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert done.stdout.strip() == "set()"
