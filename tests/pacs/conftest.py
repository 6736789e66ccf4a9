"""A node and an archive for the tests."""

from __future__ import annotations

import contextlib
import subprocess
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


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A certificate of one authority for all, and one of another authority."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    for name in ("ours", "other"):
        authority = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl(
            "req", *authority, "-keyout", f"{name}_ca.key", "-out", f"{name}_ca.pem",
            "-days", "30", "-subj", f"/CN={name}",
        )  # fmt: skip
        openssl(
            "req", *authority[1:], "-keyout", f"{name}.key", "-out", f"{name}.csr",
            "-subj", "/CN=peer",
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", f"{name}_ca.pem", "-CAkey",
            f"{name}_ca.key", "-CAcreateserial", "-out", f"{name}.pem", "-days", "30",
        )  # fmt: skip
    return folder
