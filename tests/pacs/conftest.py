"""A node and an archive for the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed (extra `node`)")

from pacs.nodes import Archive, Node, start_node


@pytest.fixture
def archive() -> Iterator[Archive]:
    with contextlib.closing(Archive()) as archive:
        yield archive


@pytest.fixture(scope="module")
def module_archive() -> Iterator[Archive]:
    with contextlib.closing(Archive()) as archive:
        yield archive


@pytest.fixture(scope="module")
def node(trained, module_archive, tmp_path_factory) -> Iterator[Node]:
    """A node whose results go to `module_archive`."""
    spool = tmp_path_factory.mktemp("node") / "spool"
    running = start_node(trained, spool, destination=module_archive.peer)
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0


@pytest.fixture(scope="session")
def persons(phantoms) -> list[Path]:
    """Folders of DICOM files, one of each person."""
    return sorted((phantoms / "dicom").iterdir())
