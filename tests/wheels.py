"""Wheels of the checkout, and environments of their own to install them in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import setuptools

REPOSITORY = Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def build_wheel(folder: Path) -> Path:
    """Builds the wheel of the checkout in a folder; skips where setuptools is too old."""
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is too old to build the wheel")
    # A copy: a build leaves its files in the source.
    source = folder / "source"
    for name in ("drenet_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored, symlinks=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", source])
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(folder: Path) -> Path:
    """Makes an empty virtual environment; returns its Python, for `pip --python`."""
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    return folder / "bin" / "python"


def run(arguments: Sequence[object]) -> str:
    """Runs a command that must succeed, without the checkout on its path; returns what it prints.

    It runs in the root folder, from which nothing is imported.
    """
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd="/",
        env=environment_variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
