"""The web page in the system's Chromium."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from serving.servers import TOKEN, answer, start

WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


class Tab:
    """A page with the errors and warnings of the browser."""

    def __init__(self, page, url: str):
        self.page = page
        self.problems: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto(url)
        # It asks the server first whether a token is needed.
        page.wait_for_selector("#choose:not([hidden]), #login:not([hidden])")

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.problems.append(text)

    def drop(self, *paths: Path) -> None:
        """Drops files or folders onto the zone, as the system's file manager does."""
        box = self.page.locator("#drop").bounding_box()
        session = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send(
                "Input.dispatchDragEvent",
                {
                    "type": kind,
                    "x": box["x"] + box["width"] / 2,
                    "y": box["y"] + box["height"] / 2,
                    "data": data,
                },
            )
        session.detach()
        self.page.wait_for_selector("#chosen:not([hidden])")

    def watch_stages(self) -> None:
        self.page.evaluate(
            """() => {
              window.seen = [];
              const note = () => {
                const now = document.querySelector("#stages .now");
                if (now && window.seen.at(-1) !== now.dataset.stage) {
                  window.seen.push(now.dataset.stage);
                }
              };
              new MutationObserver(note).observe(
                document.getElementById("stages"), { subtree: true, attributes: true });
            }"""
        )

    def seen_stages(self) -> list[str]:
        return self.page.evaluate("window.seen")

    def wait_for_answer(self):
        """The report's frame."""
        self.page.wait_for_selector("#answer:not([hidden])", timeout=60_000)
        frame = self.page.frame_locator("#report")
        frame.locator("h1").wait_for()
        return frame

    def wait_for_problem(self) -> str:
        self.page.wait_for_selector("#problem:not([hidden])", timeout=60_000)
        return self.page.inner_text("#problem")

    def assert_fits(self) -> None:
        """Nothing overflows the page horizontally."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def status(self) -> str:
        """The text for screen readers."""
        return self.page.inner_text("#status")


@pytest.fixture(params=[WIDE, NARROW], ids=["wide", "narrow"])
def size(request) -> dict:
    return request.param


@pytest.fixture
def open_tab(browser, served):
    """`open_tab(size)`; the browser must not report errors or warnings."""
    tabs = []

    def make(size: dict = WIDE, url: str = served.url) -> Tab:
        tabs.append(Tab(browser.new_page(viewport=size), url))
        return tabs[-1]

    yield make
    for tab in tabs:
        tab.page.close()
    assert not [problem for tab in tabs for problem in tab.problems]


@pytest.fixture(scope="module")
def real_zip(shared_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("real") / "P001"
    return Path(shutil.make_archive(str(out), "zip", shared_data / "covid_ct_md" / "COVID-19"))


def test_a_real_zip_is_dropped_and_reported(open_tab, real_zip, size):
    tab = open_tab(size)
    tab.assert_fits()
    tab.drop(real_zip)
    assert "P001.zip" in tab.page.inner_text("#chosen")
    tab.watch_stages()
    tab.page.click("#start")
    frame = tab.wait_for_answer()
    stages = tab.seen_stages()
    assert stages[0] == "sending"
    assert set(stages) & {"waiting", "reading"}
    assert "research only, not for clinical use" in frame.locator("body").inner_text().lower()
    assert frame.locator("img").count() >= 3
    assert re.search(r": 0\.\d\d$|: 1\.00$", tab.page.inner_text("#answer-title"))
    assert tab.status().startswith("The report is ready")
    tab.assert_fits()


def test_images_are_dropped(open_tab, shared_data, size):
    folder = shared_data / "authors_demo" / "COVID-19" / "person001"
    tab = open_tab(size)
    tab.drop(*sorted(folder.iterdir()))
    assert "15 files" in tab.page.inner_text("#chosen")
    tab.page.click("#start")
    frame = tab.wait_for_answer()
    assert "109054_" in frame.locator("body").inner_text()


def test_a_folder_is_dropped(open_tab, person, predictor_of_page):
    tab = open_tab()
    tab.drop(person)
    n_files = len(list(person.iterdir()))
    assert f"{n_files} files" in tab.page.inner_text("#chosen")
    assert f"{person.name}/" in tab.page.inner_text("#chosen")
    tab.page.click("#start")
    tab.wait_for_answer()
    with tab.page.expect_download() as saved:
        tab.page.click("#save-result")
    assert saved.value.suggested_filename == "result.json"
    result = json.loads(Path(saved.value.path()).read_text())
    expected = predictor_of_page.person(person)
    assert result["person"]["label"] == expected["person"]["label"]
    assert [row["name"] for row in result["slices"]] == [row["name"] for row in expected["slices"]]


@pytest.fixture(scope="module")
def predictor_of_page(trained):
    import drenet_jax

    return drenet_jax.load(trained)


def test_a_holiday_photo_is_invalid_input(open_tab, tmp_path, size):
    photo = np.zeros((480, 640, 3), np.uint8)
    photo[:240], photo[240:] = (220, 160, 60), (90, 190, 230)
    cv2.circle(photo, (500, 90), 50, (0, 210, 255), -1)
    cv2.imwrite(str(tmp_path / "beach.jpg"), photo)
    tab = open_tab(size)
    tab.drop(tmp_path / "beach.jpg")
    tab.page.click("#start")
    problem = tab.wait_for_problem()
    assert "Invalid input" in problem
    assert "a colour picture, no CT slice" in problem
    assert "Invalid input" in tab.status()
    tab.assert_fits()
    tab.page.click("#others")
    assert tab.page.is_visible("#choose")
    assert not tab.page.is_visible("#chosen")


def test_names_are_shown_as_text(open_tab, person, tmp_path):
    evil = tmp_path / '<img src=x onerror="document.title=1">.dcm'
    shutil.copy(sorted(person.iterdir())[10], evil)
    tab = open_tab()
    tab.drop(evil)
    assert evil.name in tab.page.inner_text("#chosen")
    assert tab.page.locator("#chosen img").count() == 0
    tab.page.click("#start")
    tab.page.wait_for_selector("#answer:not([hidden]), #problem:not([hidden])")
    assert "chest CT" in tab.page.title()


def test_it_works_by_keyboard_alone(open_tab, person):
    tab = open_tab()
    page = tab.page
    page.bring_to_front()
    # Playwright does not wait until Chromium intercepts file choosers: listen long before the key.
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "files":
            break
    assert page.evaluate("document.activeElement.id") == "files"
    page.keyboard.press("Space")
    for _ in range(300):
        if choosers:
            break
        page.wait_for_timeout(100)
    choosers[0].set_files(sorted(person.iterdir()))
    page.wait_for_selector("#chosen:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "start"
    page.keyboard.press("Enter")
    tab.wait_for_answer()
    assert page.evaluate("document.activeElement.id") == "answer-title"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "alone"
    with page.context.expect_page() as opened:
        page.keyboard.press("Enter")
    alone = opened.value
    alone.wait_for_load_state()
    assert "research only" in alone.inner_text("body").lower()
    alone.close()


def test_the_report_cannot_reach_the_page(open_tab, person):
    tab = open_tab()
    tab.page.set_input_files("#files", sorted(person.iterdir()))
    tab.page.click("#start")
    tab.wait_for_answer()
    frame = next(frame for frame in tab.page.frames if "/reports/" in frame.url)
    assert frame.evaluate("window.origin") == "null"
    assert tab.page.get_attribute("#report", "sandbox") == "allow-scripts"


def test_the_viewer_of_the_report_works_in_its_sandbox(open_tab, person, size):
    tab = open_tab(size)
    tab.page.set_input_files("#files", sorted(person.iterdir()))
    tab.page.click("#start")
    frame = tab.wait_for_answer()
    shown = frame.locator("#viewer-canvas[aria-busy=false]")
    shown.wait_for()
    first = frame.locator("#viewer-title").inner_text()
    shown.focus()
    tab.page.keyboard.press("Home")
    tab.page.keyboard.press("ArrowRight")
    frame.locator("#viewer-place:has-text('2 of ')").wait_for()
    assert frame.locator("#viewer-title").inner_text() != first
    frame.get_by_label("Mediastinal").check(force=True)
    shown.wait_for()
    shown.click()
    assert " HU at x " in frame.locator("#viewer-value").inner_text()
    tab.assert_fits()


def test_an_answer_is_deleted_on_request(open_tab, person):
    tab = open_tab()
    tab.page.set_input_files("#files", sorted(person.iterdir()))
    tab.page.click("#start")
    tab.wait_for_answer()
    view = tab.page.get_attribute("#alone", "href")
    tab.page.click("#forget")
    tab.page.wait_for_selector("#choose:not([hidden])")
    tab.page.wait_for_function("document.getElementById('status').textContent.includes('deleted')")
    assert tab.page.request.get(tab.page.url.rstrip("/") + view).status == 404


def test_the_stages_and_the_queue_position_are_shown(open_tab, stage, person):
    gates = {name: threading.Event() for name in ("reading", "scoring")}

    def explain(path, *, watch):
        for name, gate in gates.items():
            watch(name)
            while not gate.wait(0.02):
                watch(name)
        return answer()

    server = stage(explain, places=2)
    first, second = open_tab(url=server.url), open_tab(url=server.url)
    for tab in (first, second):
        tab.page.set_input_files("#files", sorted(person.iterdir())[:2])
        tab.page.click("#start")
        text = "Reading" if tab is first else "1 job before yours"
        tab.page.wait_for_selector(f"#stages .now:has-text('{text}')")
    assert "1 job before yours" in second.status()
    # A third gets "busy" and retries by itself.
    third = open_tab(url=server.url)
    third.page.set_input_files("#files", sorted(person.iterdir())[:2])
    third.page.click("#start")
    assert "busy" in third.wait_for_problem()
    gates["reading"].set()
    first.page.wait_for_selector("#stages .now:has-text('Scoring')")
    second.page.click("#stop")
    second.page.wait_for_selector("#choose:not([hidden])")
    third.page.wait_for_selector("#work:not([hidden])", timeout=20_000)
    gates["scoring"].set()
    for tab in (first, third):
        tab.page.wait_for_selector("#answer:not([hidden])")
        assert tab.page.inner_text("#answer-title") == "healthy: 0.75"


def test_a_token_is_required(browser, trained, tmp_path, person):
    served = start(tmp_path, trained, token=TOKEN)
    try:
        page = browser.new_page(viewport=NARROW)
        tab = Tab(page, served.url)
        page.wait_for_selector("#login:not([hidden])")
        assert page.evaluate("document.activeElement.id") == "token"
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#login-error:has-text('not the right one')")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#choose:not([hidden])")
        page.set_input_files("#files", sorted(person.iterdir()))
        page.click("#start")
        tab.wait_for_answer()
        # The browser reports the two refusals, nothing else.
        assert len(tab.problems) == 2
        assert all("401" in problem for problem in tab.problems)
        page.close()
    finally:
        served.stop()
