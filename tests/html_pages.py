"""Checks of HTML pages: complete, and without external resources."""

from __future__ import annotations

import base64
import hashlib
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
    assert not tags & {"link", "iframe", "object", "embed", "base", "form"}
    assert_own_scripts(text)
    names = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for link in page.all("a"):
        # Within the page only, and to a place that is there.
        assert link.pop("href").removeprefix("#") in names
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "background"):
            kinds = ("data:image/png;", "data:image/jpeg;")
            assert attributes.get(name, kinds[0]).startswith(kinds)
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://", text)
    assert all(image["alt"] for image in page.all("img"))
    assert "research only, not for clinical use" in page.text.lower()


def assert_own_scripts(text: str) -> None:
    """A page runs no script but those whose hash is in its own policy."""
    page = Page(text)
    (policy,) = (
        meta["content"]
        for meta in page.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    scripts = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    assert text.lower().count("<script") == len(scripts) == len(page.all("script"))
    assert all(source_of(script) in policy for script in scripts)
    if "'unsafe-inline'" not in policy:
        styles = re.findall("<style>(.*?)</style>", text, re.DOTALL)
        assert len(styles) == len(page.all("style"))
        assert all(source_of(style) in policy for style in styles)
        assert not [attributes for _, attributes in page.elements if "style" in attributes]


def source_of(text: str) -> str:
    """How a policy names a script or a style of this text."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest())
    return f"'sha256-{digest.decode('ascii')}'"


def pictures_of(text: str) -> list[np.ndarray]:
    uris = [image["src"] for image in Page(text).all("img")]
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        for uri in uris
    ]
