"""Checks of DICOM files by programs of others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def require_valid(folder: Path) -> None:
    """Fails if dciodvfy finds an error in a file of the folder; skips where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    files = sorted(folder.iterdir())
    assert files
    for file in files:
        done = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
        assert not errors, f"{file.name}: {errors}"
        assert "SR" in done.stderr or "SCImage" in done.stderr
