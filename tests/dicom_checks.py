"""Whether DICOM files keep the rules of their object and of their template."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest
from dicom_export.tid1500 import violations


def require_valid(folder: Path) -> None:
    """Fails if dciodvfy finds an error in a file of the folder, or a report breaks TID 1500.

    Skips where dciodvfy is not installed.
    """
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    files = sorted(folder.iterdir())
    assert files
    for file in files:
        done = subprocess.run(["dciodvfy", file], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line]
        assert not errors, f"{file.name}: {errors}"
        assert "SR" in done.stderr or "SCImage" in done.stderr
        dataset = pydicom.dcmread(file)
        if dataset.Modality == "SR":
            assert violations(dataset) == []
