"""Tests of the viewer in the HTML report of a person, in Chromium."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from evaluation.reports import person, warm_at
from evaluation.viewers import (
    ASPECT,
    BOXES,
    SCORES,
    SHAPE,
    WINDOWS,
    canvas_of,
    ct_slices,
    hide,
    pointed_at,
    scrolled_to,
    title,
    wait,
)
from html_pages import assert_stands_alone

from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.window import window
from drenet_jax.evaluation import person_report as report_module
from drenet_jax.evaluation.person_report import person_report
from drenet_jax.html_images import packed


def test_every_value_comes_back_exactly(viewer):
    rng = np.random.default_rng(1)
    limits = np.iinfo(np.int16)
    arrays = [
        rng.integers(limits.min, limits.max, (37, 53), np.int16, endpoint=True),
        rng.normal(-300, 400, (64, 64)).astype(np.int16),
        np.full((5, 7), -1024, np.int16),
        rng.integers(0, 255, (9, 1), np.uint8, endpoint=True),
        np.array([[limits.min, limits.max, limits.min]], np.int16),
        np.array([[3071]], np.int16),
    ]
    for values in arrays:
        height, width = values.shape
        decoded = viewer.evaluate(
            "async (slice) => [...await decodedValues(slice)]",
            {"width": width, "height": height, "values": packed(values)},
        )
        np.testing.assert_array_equal(np.reshape(decoded, values.shape), values)


@pytest.mark.parametrize("name", WINDOWS)
def test_the_pointer_has_the_hu_and_the_canvas_the_grey_of_the_window(name, viewer, hu_series):
    level, width_hu = WINDOWS[name]
    hide(viewer, "boxes", "heat-map")
    viewer.get_by_label(name).check(force=True)
    for _ in range(3):
        viewer.get_by_label("Zoom in").click()
    hu = hu_series[1][1].hu
    height, width = hu.shape
    canvas = canvas_of(viewer)
    scale = 1.5**3 * min(canvas.shape[1] / width, canvas.shape[0] / (height * ASPECT))
    for across, down in ((0.1, 0.1), (0.5, 0.5), (0.83, 0.4), (0.3, 0.9), (0.97, 0.97)):
        x, y, value = pointed_at(viewer, across, down)
        assert value == hu[y, x]
        # The middle of the slice is in the middle of the canvas.
        row = int(canvas.shape[0] / 2 + (y + 0.5 - height / 2) * scale * ASPECT)
        column = int(canvas.shape[1] / 2 + (x + 0.5 - width / 2) * scale)
        grey = np.clip((value - (level - width_hu / 2)) * 255 / width_hu, 0, 255)
        assert canvas[row, column].tolist() == [int(np.floor(grey + 0.5))] * 3
        assert abs(int(window(hu, level, width_hu)[y, x]) - canvas[row, column, 0]) <= 1


def test_the_models_window_is_chosen_at_first_and_named_only_if_it_is_another(open_page, viewer):
    names = "#viewer-windows label"
    assert viewer.locator(names).all_inner_texts() == ["Model", "Lung", "Mediastinal"]
    assert viewer.get_by_label("Model").is_checked()
    page = wait(open_page(person_report(*ct_slices())))
    assert page.locator(names).all_inner_texts() == ["Lung", "Mediastinal"]
    assert page.get_by_label("Lung").is_checked()


def test_pixels_that_are_no_squares_are_shown_in_their_shape(viewer):
    at = viewer.locator("#viewer-canvas").bounding_box()
    height, width = SHAPE
    assert at["width"] / at["height"] == pytest.approx(width / (height * ASPECT), rel=0.01)
    x, y, _ = pointed_at(viewer, 0.75, 0.25)
    assert (x, y) == (pytest.approx(0.75 * width, abs=1), pytest.approx(0.25 * height, abs=1))


def test_boxes_are_drawn_at_their_edges_and_can_be_hidden(viewer):
    hide(viewer, "heat-map")
    with_boxes = canvas_of(viewer)
    hide(viewer, "boxes")
    changed = (canvas_of(viewer) != with_boxes).any(axis=2)
    scale = changed.shape[1] / SHAPE[1]
    frames = np.zeros_like(changed)
    for y0, x0, y1, x1 in (*(edges[:4] for edges in BOXES), (8, 12, 88, 116)):
        top, bottom = (round(y * scale * ASPECT) for y in (y0, y1))
        left, right = (round(x * scale) for x in (x0, x1))
        for rows, columns in (
            (slice(top, top + 1), slice(left, right)),
            (slice(bottom, bottom + 1), slice(left, right)),
            (slice(top, bottom), slice(left, left + 1)),
            (slice(top, bottom), slice(right, right + 1)),
        ):
            assert changed[rows, columns].mean() > 0.9
            reach = 4
            frames[
                max(0, rows.start - reach) : rows.stop + reach,
                max(0, columns.start - reach) : columns.stop + reach,
            ] = True
    # The rest are the plates with the probabilities, above their boxes.
    plates = changed & ~frames
    assert 0 < plates.mean() < 0.01
    red = (np.abs(with_boxes - np.array([255, 40, 40])) < 12).all(axis=2)
    assert red.any()
    assert not (~frames & red).any()


def test_the_heat_map_lies_over_the_lung_crop_and_can_be_hidden_and_faded(viewer):
    hide(viewer, "boxes")
    full = canvas_of(viewer)
    viewer.locator("#heat").fill("90")
    strong = canvas_of(viewer)
    hide(viewer, "heat-map")
    without = canvas_of(viewer)
    difference = np.abs(full - without).sum(axis=2)
    scale = difference.shape[1] / SHAPE[1]
    rows, columns = np.nonzero(difference)
    assert rows.min() >= 8 * scale * ASPECT - 2
    assert rows.max() <= 88 * scale * ASPECT + 2
    assert columns.min() >= 12 * scale - 2
    assert columns.max() <= 116 * scale + 2
    # Cell (4, 1) of 6 x 6 is the peak.
    peak = round((8 + 4.5 / 6 * 80) * scale * ASPECT), round((12 + 1.5 / 6 * 104) * scale)
    around = slice(peak[0] - 9, peak[0] + 9), slice(peak[1] - 9, peak[1] + 9)
    assert difference[around].mean() > 4 * difference.mean()
    assert np.abs(strong - without)[around].mean() > 1.5 * np.abs(full - without)[around].mean()
    # Where the map is coloured the canvas is, too.
    assert np.ptp(full[around], axis=2).mean() > 20
    assert np.ptp(without, axis=2).max() == 0


def test_the_whole_viewer_works_by_keyboard(viewer):
    page = viewer
    assert "slice 10, covid-19 0.900" in title(page)
    page.focus("#boxes")
    path = []
    for _ in range(14):
        path.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
        page.keyboard.press("Tab")
    assert path[:13] == [
        *("boxes", "heat-map", "heat", "viewer-canvas"),
        *("viewer-back", "viewer-range", "viewer-next", "Model"),
        *("viewer-out", "viewer-in", "viewer-whole", "viewer-more"),
        path[12],
    ]
    page.focus("#boxes")
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    for key, index in (
        ("End", 7),
        ("ArrowLeft", 6),
        ("PageUp", 1),
        ("ArrowDown", 2),
        ("Home", 0),
        ("ArrowUp", 0),
        ("PageDown", 5),
        ("ArrowRight", 6),
    ):
        page.keyboard.press(key)
        assert f"slice {10 * index}," in title(page)
        assert page.input_value("#viewer-range") == str(index)
        assert page.get_attribute("#viewer-canvas", "aria-label").startswith(
            f"CT slice {index + 1} of 8: slice {10 * index}, COVID-19 {SCORES[index]:.3f}. "
            "Red boxes: 0.90 "
        )
    assert page.inner_text("#viewer-status").startswith("Slice 7 of 8")
    page.keyboard.press("3")
    assert page.get_by_label("Mediastinal").is_checked()
    for key, percent in (("+", "150%"), ("+", "225%"), ("-", "150%"), ("0", "100%")):
        page.keyboard.press(key)
        assert page.inner_text("#viewer-zoom") == percent
    for key, name in (("b", "boxes"), ("h", "heat-map")):
        page.keyboard.press(key)
        assert not page.is_checked(f"#{name}")


def test_the_crosshair_reads_hu_by_keyboard_and_the_view_follows_it(viewer, hu_series):
    viewer.focus("#viewer-canvas")
    for key in ("+",) * 6 + ("Shift+ArrowRight",) * 40 + ("Shift+ArrowUp",) * 30:
        viewer.keyboard.press(key)
    text = viewer.inner_text("#viewer-value").replace("\u2212", "-")
    value, x, y = map(int, re.fullmatch(r"(-?\d+) HU at x (\d+), y (\d+)", text).groups())
    assert x > SHAPE[1] / 2 + 30
    assert y < SHAPE[0] / 2 - 20
    assert value == hu_series[1][1].hu[y, x]
    assert viewer.inner_text("#viewer-status").replace("\u2212", "-") == text
    # The crosshair is on the canvas.
    hide(viewer, "boxes", "heat-map")
    assert (np.ptp(canvas_of(viewer), axis=2) > 60).any()


def test_the_wheel_scrolls_slices_and_zooms_with_ctrl(viewer):
    at = scrolled_to(viewer)
    viewer.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    viewer.mouse.wheel(0, 120)
    viewer.wait_for_selector("#viewer-place:has-text('3 of 8')")
    viewer.mouse.wheel(0, -120)
    viewer.wait_for_selector("#viewer-place:has-text('2 of 8')")
    viewer.keyboard.down("Control")
    viewer.mouse.wheel(0, -240)
    viewer.keyboard.up("Control")
    viewer.wait_for_selector("#viewer-zoom:has-text('223%')")
    assert "slice 10," in title(viewer)
    x, y, _ = pointed_at(viewer, 0.5, 0.5)
    viewer.mouse.down()
    viewer.mouse.move(at["x"] + at["width"] / 2 + 80, at["y"] + at["height"] / 2 + 40, steps=4)
    viewer.mouse.up()
    assert pointed_at(viewer, 0.5, 0.5)[0] < x
    assert pointed_at(viewer, 0.5, 0.5)[1] < y


def test_a_slice_of_the_strip_opens_in_the_viewer(viewer):
    viewer.locator(".strip a").nth(5).focus()
    viewer.keyboard.press("Enter")
    assert "slice 50," in title(viewer)
    assert viewer.evaluate("document.activeElement.id") == "viewer-canvas"
    assert viewer.locator(".strip [aria-current]").count() == 1


def test_touch_scrolls_zooms_pans_and_reads_at_375_pixels(open_page, hu_report):
    page = wait(open_page(hu_report, 375, has_touch=True, is_mobile=True, device_scale_factor=2))
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    at = scrolled_to(page)
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        places = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    def swipe(*fingers):
        touch("touchStart", *((fx, fy) for fx, fy, _, _ in fingers))
        for share in np.linspace(0.1, 1, 10):
            moved = ((fx + share * dx, fy + share * dy) for fx, fy, dx, dy in fingers)
            touch("touchMove", *moved)
        touch("touchEnd")

    swipe((x - 30, y, 90, 0))
    assert page.input_value("#viewer-range") in ("3", "4")
    before = title(page)
    swipe((x - 20, y, -40, 0), (x + 20, y, 40, 0))
    percent = int(page.inner_text("#viewer-zoom").rstrip("%"))
    assert 200 < percent < 400
    assert title(page) == before

    def tapped():
        touch("touchStart", (x, y))
        touch("touchEnd")
        return [int(n) for n in re.findall(r"\d+", page.inner_text("#viewer-value"))[1:]]

    column, row = tapped()
    scrolled = page.evaluate("scrollY")
    swipe((x, y, 40, 60))
    moved_column, moved_row = tapped()
    assert moved_column < column
    assert moved_row < row
    assert page.evaluate("scrollY") == scrolled
    sides = page.eval_on_selector_all(
        ".panel button, .panel fieldset span",
        "all => all.map(one => Math.min(one.offsetWidth, one.offsetHeight))",
    )
    assert min(sides) >= 44


def test_a_whole_slice_leaves_vertical_swipes_to_the_page(open_page, hu_report):
    page = wait(open_page(hu_report, 375, has_touch=True, is_mobile=True))
    touch_action = "getComputedStyle(document.getElementById('viewer-canvas')).touchAction"
    assert page.evaluate(touch_action) == "pan-y"
    page.get_by_label("Zoom in").tap()
    assert page.evaluate(touch_action) == "none"


def test_pictures_without_hu_have_no_windows_and_say_so(open_page, hu_series):
    result, pictures = hu_series
    # Of the second, HU are known.
    mixed = [dataclasses.replace(picture, hu=None) for picture in pictures]
    mixed[0] = pictures[0]
    page = wait(open_page(person_report(result, mixed)))
    hide(page, "boxes", "heat-map")
    assert page.is_visible("text=This slice has no HU")
    assert not page.locator("#viewer-windows").is_visible()
    x, y, value = pointed_at(page, 0.5, 0.5)
    assert page.inner_text("#viewer-value").startswith("grey")
    assert value == pictures[1].source[y, x]
    page.focus("#viewer-canvas")
    page.keyboard.press("Home")
    wait(page)
    assert not page.is_visible("text=This slice has no HU")
    assert page.locator("#viewer-windows").is_visible()


def test_slices_of_several_sizes_are_each_shown_whole(open_page, hu_series):
    result, pictures = hu_series
    wide = np.arange(40 * 200, dtype=np.int16).reshape(40, 200) - 1000
    pictures = [
        dataclasses.replace(pictures[0], hu=wide, source=window(wide, 0, 1), pixel_aspect=1.0),
        *pictures[1:],
    ]
    page = wait(open_page(person_report(result, pictures)))
    page.focus("#viewer-canvas")
    page.keyboard.press("+")
    page.keyboard.press("Home")
    wait(page)
    assert page.inner_text("#viewer-zoom") == "100%"
    page.wait_for_timeout(100)
    at = page.locator("#viewer-canvas").bounding_box()
    assert at["width"] / at["height"] == pytest.approx(5, rel=0.02)
    x, y, value = pointed_at(page, 0.995, 0.985)
    assert (x, y) == (199, 39)
    assert value == wide[39, 199]


def test_without_script_and_in_print_the_pictures_stand(open_page, hu_report, viewer):
    page = open_page(hu_report, java_script_enabled=False)
    assert not page.locator("#viewer").is_visible()
    assert "needs JavaScript" in page.inner_text("body")
    viewer.emulate_media(media="print")
    for shown in (page, viewer):
        assert not shown.locator("#viewer-canvas").is_visible()
        assert shown.locator(".slice > .stack").count() == 3
        assert shown.locator(".slice > .stack").first.is_visible()


def test_the_page_asks_for_nothing_outside(open_page, hu_report):
    page = open_page("<p>empty</p>")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.route("**/*.html", lambda route: route.fulfill(body=hu_report, content_type="text/html"))
    page.goto("http://report.invalid/report.html")
    wait(page).focus("#viewer-canvas")
    page.keyboard.press("End")
    wait(page)
    assert [url for url in asked if not url.startswith("data:")] == [
        "http://report.invalid/report.html"
    ]
    assert_stands_alone(hu_report)


def test_a_page_of_too_many_slices_has_the_most_probable_in_the_viewer(
    open_page, hu_series, monkeypatch
):
    monkeypatch.setattr(report_module, "_VIEWER_MAX_PX", 4 * SHAPE[0] * SHAPE[1])
    page = wait(open_page(person_report(*hu_series)))
    assert page.inner_text("#viewer-place") == "1 of 4"
    assert "the 4 slices with the highest probability" in page.inner_text("#viewer")
    page.focus("#viewer-canvas")
    page.keyboard.press("End")
    assert "slice 70," in title(page)


def test_a_report_of_fifteen_real_slices_has_less_than_six_mb(shared_data, ct_settings, open_page):
    folder = shared_data / "covid_ct_md" / "COVID-19" / "P001"
    # Slices of little lung are kept, too.
    settings = dataclasses.replace(ct_settings, min_area_share=0.001)
    prepared = prepare_person([folder], settings, with_hu=True)
    assert len(prepared.kept) == 15
    result, _ = person([0.5 + 0.01 * i for i in range(15)])
    _, (template,) = person([0.9], BOXES, heat=warm_at(4, 1))
    pictures = [
        dataclasses.replace(
            template,
            index=sampled.index,
            name=sampled.name,
            source=sampled.source,
            source_box=sampled.source_box,
            hu=sampled.hu,
            probabilities=row["probabilities"],
        )
        for sampled, row in zip(prepared.kept, result["slices"], strict=True)
    ]
    text = person_report(result, pictures)
    assert all(sampled.source.shape == (512, 512) for sampled in prepared.kept)
    assert len(text.encode()) < 6_000_000
    page = wait(open_page(text))
    x, y, value = pointed_at(page, 0.4, 0.6)
    assert value == prepared.kept[14].hu[y, x]
