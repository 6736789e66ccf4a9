"""Chromium for the tests of the HTML report of a person."""

from __future__ import annotations

import shutil

import pytest


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
