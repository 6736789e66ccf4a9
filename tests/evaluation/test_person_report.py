"""Tests of the HTML report of a person: whole, escaped, honest, and usable in a browser."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from evaluation.reports import box, person, warm_at
from html_pages import Page, assert_stands_alone, pictures_of

from drenet_jax.evaluation.overlays import (
    LESION_BOX_MIN_PROBABILITY,
    LeftOutSlice,
)
from drenet_jax.evaluation.person_report import REPORT_POLICY, person_report

EVIL = '<script>alert("x")</script>&\'.dcm'
RED = (40, 40, 255)
REPOSITORY = Path(__file__).resolve().parents[2]
VALIDATION = {"n": 14, "n_with_label": 12, "low": 0.572, "high": 0.982, "from": 0.8, "to": 1.0}
TRAINED_ON = {
    "splits": {
        "train": {"COVID-19": 20, "bacterial": 9, "healthy": 11},
        "validation": {"COVID-19": 4, "healthy": 1},
    },
    "sites": ["Basel", "Bern"],
}


def text_of(page):
    """What a reader sees, in one line."""
    seen = re.sub(r"(?s)<(style|script)>.*?</\1>", "", page)
    return " ".join(Page(re.sub("<(?!/?(strong|span))", " <", seen)).text.split())


def classes(page, tag, name):
    return [
        element for element in Page(page).all(tag) if name in (element.get("class") or "").split()
    ]


def test_a_person_report_stands_alone_and_gives_the_answer():
    page = person_report(*person([0.9, 0.8, 0.7, 0.6], heat=warm_at(0, 0)))
    assert_stands_alone(page)
    text = text_of(page)
    for wanted in ("COVID-19", "0.812", "0.125", "0.062", "mean of 4 slices", "runs/demo", "1200"):
        assert wanted in text
    assert text.startswith("COVID-19 0.81")
    assert text.count("Research only, not for clinical use.") == 2


def test_the_page_has_the_policy_that_a_server_sends():
    (policy,) = (
        meta["content"]
        for meta in Page(person_report(*person([0.9]))).all("meta")
        if "http-equiv" in meta
    )
    assert policy == REPORT_POLICY
    assert "unsafe" not in policy


def test_headings_are_in_order():
    result, pictures = person([0.9, 0.8], [box(20, 30, 60, 90, 0.9)])
    result["notes"] = ["a note"]
    page = Page(person_report(result, pictures))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1


def test_the_three_slices_with_the_highest_score_are_shown_large():
    page = person_report(*person([0.2, 0.9, 0.5, 0.8]))
    assert [
        image["alt"].split(",")[0]
        for image in Page(page).all("img")
        if image["alt"].startswith("CT slice")
    ] == ["CT slice 10", "CT slice 30", "CT slice 20"]
    assert len(classes(page, "tr", "marked")) == 3
    text = text_of(page)
    assert "1st: slice 10, COVID-19 0.900" in text
    assert "3rd: slice 20, COVID-19 0.500" in text


def test_the_strip_has_every_slice_and_links_the_large_ones():
    page = person_report(*person([0.2, 0.9, 0.5, 0.8]))
    assert [element["alt"] for element in Page(page).all("img")[:4]] == [
        "Slice 0: COVID-19 0.20",
        "Slice 10: COVID-19 0.90",
        "Slice 20: COVID-19 0.50",
        "Slice 30: COVID-19 0.80",
    ]
    assert [element["href"] for element in Page(page).all("a")][:3] == [
        "#slice-1",
        "#slice-3",
        "#slice-2",
    ]


def test_left_out_slices_stand_in_the_strip_at_their_place_with_the_reason():
    why = "small lung area: 9.4% of the person's largest, below 50%"
    left_out = [LeftOutSlice(4, "IM004.dcm", np.zeros((128, 128), np.uint8), why)]
    page = person_report(*person([0.2, 0.9]), left_out)
    assert_stands_alone(page)
    assert [image["alt"].split(",")[0] for image in Page(page).all("img")[:3]] == [
        "Slice 0: COVID-19 0.20",
        "Slice 4",
        "Slice 10: COVID-19 0.90",
    ]
    assert any(why in image["alt"] for image in Page(page).all("img"))
    assert "excluded: small lung area" in text_of(page)


def test_fewer_than_three_slices_are_all_shown():
    # In the strip, as the large slice, and its marks.
    assert len(pictures_of(person_report(*person([0.7])))) == 3


def test_the_layers_of_a_picture_are_of_one_size_and_say_what_is_seen():
    boxes = [box(20, 20, 40, 40, 0.85), box(50, 50, 78, 78, 0.97), box(0, 0, 9, 9, 0.2)]
    page = person_report(*person([0.9], boxes, heat=warm_at(5, 0)))
    large = [image for image in Page(page).all("img") if image.get("width") == "512"]
    assert {image["height"] for image in large} == {"512"}
    assert [image["alt"] for image in large] == [
        "CT slice 0, file IM000.dcm: COVID-19 0.90",
        "Heat map, peak: lower left",
        "Red boxes: 0.97 centre; 0.85 upper left",
    ]
    text = text_of(page)
    assert "2 red boxes: 0.970 centre 0.850 upper left" in text
    assert "peak: lower left" in text


def test_each_region_has_a_picture_with_its_score():
    boxes = [box(20, 20, 68, 44, 0.9), box(50, 50, 98, 98, 0.5)]
    page = person_report(*person([0.9], boxes, heat=warm_at(5, 0)))
    crops = [image for image in Page(page).all("img") if "egion" in image["alt"]]
    assert [image["alt"] for image in crops] == [
        "Region 1, middle left of slice 0: COVID-19 0.90",
        "Heat map of region 1",
        "Region 2, centre of slice 0: COVID-19 0.50",
        "Heat map of region 2",
    ]
    assert [(image["width"], image["height"]) for image in crops[::2]] == [
        ("96", "192"),
        ("192", "192"),
    ]
    assert "0.900 (red box) 0.500 " in text_of(page)


def test_without_heat_maps_none_is_spoken_of():
    page = person_report(*person([0.9], [box(20, 20, 68, 44, 0.9)]))
    assert "eat map" not in text_of(page)
    assert not classes(page, "img", "heat")
    assert not {"heat", "heat-map"} & {element.get("id") for element in Page(page).all("input")}


def test_an_empty_heat_map_is_reported():
    page = person_report(*person([0.9], heat=np.zeros((6, 6), np.float32)))
    assert "The heat map is empty" in text_of(page)
    assert not classes(page, "img", "heat")


def test_how_often_such_an_answer_was_right_is_stated():
    result, pictures = person([0.9])
    result["person"]["validation"] = VALIDATION
    text = text_of(person_report(result, pictures))
    assert (
        "Of 14 patients in the validation split with a predicted probability of COVID-19 between "
        "0.8 and 1, 12 were labelled COVID-19: 86%, 95% confidence interval 57 to 98%." in text
    )
    result["person"]["validation"] = {**VALIDATION, "n": 1, "n_with_label": 1, "from": 0.55}
    text = text_of(person_report(result, pictures))
    assert "Of 1 patient in the validation split" in text
    assert "between 0.55 and 1, 1 was labelled COVID-19: 100%" in text


@pytest.mark.parametrize("validation", [None, {**VALIDATION, "n": 0, "n_with_label": 0}])
def test_nothing_is_claimed_where_no_validation_person_had_such_a_score(validation):
    result, pictures = person([0.9])
    result["person"]["validation"] = validation
    text = text_of(person_report(result, pictures))
    assert "no record of validation patients with such a probability" in text
    assert "interval" not in text


def test_the_model_and_its_persons_are_reported():
    result, pictures = person([0.9])
    result["model"]["trained_on"] = TRAINED_ON
    text = text_of(person_report(result, pictures))
    assert "A drenet network of drenet_jax 0.1.0, with the weights of step 1200" in text
    assert (
        "It was trained on 40 patients, and 5 patients were used for model selection; from the "
        "sites" in text
    )
    assert "Basel, Bern." in text
    for row in ("COVID-19 20 4", "bacterial 9 0", "healthy 11 1", "all 40 5"):
        assert row in text
    result["model"]["trained_on"] = None
    assert "no record of its training cohort" in text_of(person_report(result, pictures))


def test_markup_in_names_is_shown_and_not_run():
    result, pictures = person([0.9, 0.8], names=[EVIL, "b.dcm"], heat=warm_at(0, 0))
    result["excluded"] = [{"name": EVIL, "why": "<b>no lungs</b>"}]
    result["notes"] = [EVIL]
    result["model"]["workdir"] = result["model"]["name"] = EVIL
    result["model"]["trained_on"] = {"splits": {"train": {EVIL: 1}}, "sites": [EVIL]}
    left_out = [LeftOutSlice(4, EVIL, pictures[0].source, EVIL)]
    text = person_report(result, pictures, left_out)
    assert_stands_alone(text)
    assert "<b>no" not in text
    # Slice, table, left out, note, label, site, tile; name and folder of the model twice.
    assert text_of(text).count(EVIL) == 7 + 4
    assert any(EVIL in image["alt"] for image in Page(text).all("img"))


def test_markup_in_a_label_is_shown_and_not_run():
    result, pictures = person([0.9], [box(20, 20, 60, 60, 0.9)], heat=warm_at(0, 0))
    evil = {EVIL: 0.9, "healthy": 0.1}
    result["person"] |= {"label": EVIL, "probabilities": evil, "validation": VALIDATION}
    result["slices"][0]["probabilities"] = evil
    result["model"]["labels"] = list(evil)
    pictures = [dataclasses.replace(pictures[0], probabilities=evil)]
    assert_stands_alone(person_report(result, pictures))


def test_a_file_name_that_is_not_utf8_can_be_written():
    text = person_report(*person([0.9], names=["caf\udce9.dcm"]))
    assert r"caf\udce9.dcm" in text
    text.encode("utf-8")


def test_left_out_files_are_reported_with_the_reason():
    result, pictures = person([0.9])
    assert "No file or slice was excluded" in person_report(result, pictures)
    result["excluded"] = [{"name": "notes.dcm", "why": "not a DICOM file"}]
    text = text_of(person_report(result, pictures))
    assert "notes.dcm not a DICOM file" in text


def test_boxes_at_or_below_the_threshold_are_not_drawn_and_that_is_said():
    weak = [box(20, 20, 60, 60, LESION_BOX_MIN_PROBABILITY), box(20, 20, 60, 60, 0.1)]
    page = person_report(*person([0.9], weak))
    assert "No lesion box: no region has a probability above 0.80" in text_of(page)
    assert not any((picture == RED).all(axis=2).any() for picture in pictures_of(page))


def test_a_box_above_the_threshold_is_drawn_in_red():
    page = person_report(*person([0.9], [box(20, 30, 60, 90, 0.9)]))
    assert any((picture == RED).all(axis=2).any() for picture in pictures_of(page))


def test_a_model_without_boxes_has_a_report():
    assert "No lesion box" in text_of(person_report(*person([0.9], [])))


def test_a_noisy_slice_is_kept_as_jpeg_that_nobody_can_tell_from_it():
    result, pictures = person([0.9])
    noise = np.random.default_rng(0).normal(0, 12, (512, 512))
    ramp = np.linspace(30, 220, 512)
    source = np.clip(cv2.GaussianBlur(noise, (0, 0), 1) + ramp, 0, 255).astype(np.uint8)
    page = person_report(result, [dataclasses.replace(pictures[0], source=source)])
    assert "data:image/jpeg;" in page
    shown = next(image for image in pictures_of(page) if image.shape[0] == 512)
    assert np.abs(shown[..., 0].astype(int) - source).mean() < 2


@pytest.fixture(scope="module")
def full_report():
    boxes = [box(20, 20, 60, 60, 0.9), box(50, 50, 98, 98, 0.5)]
    names = ["a_very_long_name_without_any_space_" * 3 + ".dcm", "b.dcm", "c.dcm"]
    result, pictures = person([0.9, 0.8, 0.7], boxes, names, heat=warm_at(2, 2))
    result["person"]["validation"] = VALIDATION
    result["model"] |= {"trained_on": TRAINED_ON, "workdir": "/a/very/long/path" * 10}
    result["excluded"] = [{"name": names[0], "why": "not a DICOM file"}]
    left_out = [LeftOutSlice(4, "IM004.dcm", np.zeros((128, 128), np.uint8), "no lungs found")]
    return person_report(result, pictures, left_out)


def opacity_of(page, what):
    return page.eval_on_selector_all(
        what, "all => all.map(one => Number(getComputedStyle(one).opacity))"
    )


def test_one_slider_fades_all_heat_maps_by_keyboard(open_page, full_report):
    page = open_page(full_report)
    assert opacity_of(page, ".heat") == [0.45] * 9
    slider = page.get_by_label("Opacity")
    slider.focus()
    for key, wanted in (("End", 1.0), ("ArrowLeft", 0.95), ("Home", 0.0)):
        page.keyboard.press(key)
        assert opacity_of(page, ".heat") == pytest.approx([wanted] * 9)
    assert opacity_of(page, ".marks") == [1.0] * 3


def test_boxes_can_be_hidden(open_page, full_report):
    page = open_page(full_report)
    marks = page.locator(".marks")
    assert marks.first.is_visible()
    page.get_by_label("Boxes").focus()
    page.keyboard.press("Space")
    assert not any(mark.is_visible() for mark in marks.all())


def test_without_script_the_heat_map_stands_and_no_dead_slider(open_page, full_report):
    page = open_page(full_report, java_script_enabled=False)
    assert not page.locator("#heat").is_visible()
    assert page.locator("#boxes").is_visible()


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_the_page_fits_the_screen_and_layers_lie_on_each_other(width, open_page, full_report):
    page = open_page(full_report, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    places = page.eval_on_selector_all(
        ".stack",
        """stacks => stacks.map(stack => [...stack.children].map(one => {
            const at = one.getBoundingClientRect();
            return [at.x, at.y, at.width, at.height].map(Math.round).join();
        }))""",
    )
    assert len(places) == 3 + 6
    assert all(len(set(values)) == 1 for values in places)


def test_print_has_no_controls(open_page, full_report):
    page = open_page(full_report)
    page.emulate_media(media="print")
    assert not page.locator(".controls").is_visible()
    assert page.locator(".research").first.is_visible()
    assert page.locator(".heat").first.is_visible()


def test_a_report_is_made_without_jax_scikit_learn_or_matplotlib():
    program = (
        "import sys, drenet_jax.evaluation.person_report;"
        "import drenet_jax.evaluation.evaluation_report;"
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
