"""What a page of ours must be: whole, and in need of nothing outside it."""

from __future__ import annotations

import base64
import html.parser
import re

import cv2
import numpy as np


class Page(html.parser.HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def assert_stands_alone(text: str) -> None:
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    names = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for link in page.all("a"):
        # Within the page only, and to a place that is there.
        assert link.pop("href").removeprefix("#") in names
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "background"):
            assert attributes.get(name, "data:image/png;").startswith("data:image/png;")
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://", text)
    assert all(image["alt"] for image in page.all("img"))
    assert "research only, not for clinical use" in page.text.lower()


def pictures_of(text: str) -> list[np.ndarray]:
    uris = [image["src"] for image in Page(text).all("img")]
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        for uri in uris
    ]
