"""Chromium for the tests of the HTML report of a person, and a report with HU."""

from __future__ import annotations

import shutil

import pytest
from evaluation.viewers import WINDOWS, ct_slices, wait

from drenet_jax.evaluation.person_report import person_report


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    """Opens a report in Chromium on a screen of a width; fails if the browser complains of it."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)

        def opened(text, width=1280, **how):
            file = tmp_path_factory.mktemp("page") / "report.html"
            file.write_text(text, encoding="utf-8")
            page = browser.new_page(viewport={"width": width, "height": 800}, **how)
            page.on("console", lambda message: pytest.fail(message.text))
            page.on("pageerror", lambda error: pytest.fail(str(error)))
            page.goto(file.as_uri())
            return page

        yield opened
        browser.close()


@pytest.fixture(scope="module")
def hu_series():
    return ct_slices(*WINDOWS["Model"])


@pytest.fixture(scope="module")
def hu_report(hu_series):
    return person_report(*hu_series)


@pytest.fixture(scope="module")
def tab(open_page, hu_report):
    page = open_page(hu_report, 900)
    # High enough for the whole canvas.
    page.set_viewport_size({"width": 900, "height": 900})
    return page


@pytest.fixture
def viewer(tab):
    """The report, as it is when it has been opened."""
    tab.emulate_media(media="screen")
    tab.reload()
    return wait(tab)
