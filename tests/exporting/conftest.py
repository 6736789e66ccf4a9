"""Fixtures of the tests of exports."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def exported(command, trained, tmp_path_factory):
    """The folder of an ONNX export with heat maps, and what the command printed."""
    out = tmp_path_factory.mktemp("exported") / "onnx"
    process = command("export", f"--workdir={trained}", "--heat_maps", f"--out={out}")
    assert process.returncode == 0, process.stderr
    return out, process.stdout
