"""A report with HU, and its viewer in Chromium."""

from __future__ import annotations

import base64
import dataclasses
import re

import cv2
import numpy as np
from evaluation.reports import box, person, warm_at

from drenet_jax.ct.window import window

WINDOWS = {"Lung": (-600, 1500), "Mediastinal": (40, 400), "Model": (-500, 1400)}
BOXES = [box(20, 30, 40, 60, 0.9), box(50, 60, 70, 90, 0.85)]
SHAPE = (96, 128)
ASPECT = 1.25
SCORES = [0.2, 0.9, 0.5, 0.8, 0.3, 0.4, 0.1, 0.6]


def ct_slices(level=-600.0, width=1500.0):
    """A result and its pictures, whose HU are noise around lung, soft tissue and bone."""
    result, pictures = person(SCORES, BOXES, heat=warm_at(4, 1))
    result["model"]["ct"] = {"window_level_hu": level, "window_width_hu": width}
    rng = np.random.default_rng(0)
    hus = [rng.normal(-400, 500, SHAPE).clip(-1024, 3071).astype(np.int16) for _ in pictures]
    pictures = [
        dataclasses.replace(
            picture,
            source=window(hu, level, width),
            hu=hu,
            pixel_aspect=ASPECT,
            source_box=(8, 12, 88, 116),
        )
        for picture, hu in zip(pictures, hus, strict=True)
    ]
    return result, pictures


def wait(page):
    """Until the canvas shows the slice."""
    page.wait_for_selector("#viewer-canvas[aria-busy=false]")
    return page


def scrolled_to(page):
    """The canvas in the middle of the screen."""
    page.evaluate("document.getElementById('viewer-canvas').scrollIntoView({ block: 'center' })")
    return page.locator("#viewer-canvas").bounding_box()


def title(page):
    return wait(page).inner_text("#viewer-title").lower()


def canvas_of(page):
    """The canvas' pixels [H, W, RGB]."""
    url = page.evaluate("document.getElementById('viewer-canvas').toDataURL()")
    data = np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(np.int16)


def hide(page, *names):
    for name in names:
        page.locator(f"#{name}").set_checked(False)


def pointed_at(page, across, down):
    """Moves the mouse to shares of the canvas; the slice's x, y and value there, as shown."""
    at = scrolled_to(page)
    page.mouse.move(at["x"] + across * at["width"], at["y"] + down * at["height"])
    text = page.inner_text("#viewer-value").replace("\u2212", "-")
    value, x, y = map(int, re.search(r"(-?\d+).* x (\d+), y (\d+)", text).groups())
    return x, y, value
