"""Fixtures shared by all tests."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

# Before JAX is imported: tests of several devices need several.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# The same small networks are compiled again and again, in commands too. Each of pytest's processes
# has a cache of its own: JAX may read in one what another has half written.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).resolve().parents[1]
    / ".pytest_cache"
    / f"xla-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Compiling takes most of the time. JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs all tests as users run the
# code; the parity tests always do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# ONNX Runtime sends facts about models to Microsoft otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import pytest

from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.output_files import new_folder
from drenet_jax.synthesize import synthesize
from drenet_jax.training.loop import train_and_evaluate

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT data beside the checkout; tests skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real CT data at {folder}")
    return folder


@pytest.fixture(scope="session")
def ct_settings() -> CtSettings:
    """The settings of `configs/prepare.py`."""
    return CtSettings.from_dict(_config("prepare").to_dict())


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """What `synthesize` writes: twelve persons of 96 pixels."""
    out = tmp_path_factory.mktemp("cohort") / "phantoms"
    synthesize(out, persons=12, seed=3, size_px=96, site="A", workers=1)
    return out


@pytest.fixture(scope="session")
def prepared(phantoms, ct_settings) -> Path:
    """What `prepare` writes of `phantoms`, in crops of 96 pixels."""
    out = phantoms.parent / "data"
    with new_folder(out) as folder:
        prepare_cohort(
            read_cohort(phantoms / "cohort.csv"),
            folder,
            settings=dataclasses.replace(ct_settings, image_size_px=96),
            seed=0,
            fractions=(50, 25, 25),
            workers=1,
            progress=lambda summaries, n: summaries,
        )
    return out


def _config(name: str):
    return importlib.import_module(f"drenet_jax.configs.{name}").get_config()


@pytest.fixture(scope="module")
def optimized():
    """XLA optimizes what a module compiles, as it does for users."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    jax.clear_caches()
    yield
    jax.config.update(name, before)
    jax.clear_caches()


@pytest.fixture
def tiny_config():
    """DRENet with a narrow ResNet18 on 96 pixels: seconds, not minutes."""
    return _tiny_config()


@pytest.fixture(scope="session")
def trained(prepared) -> Path:
    """A workdir after one epoch of `tiny_config` on `prepared`."""
    config = _tiny_config()
    config.data.dir = str(prepared)
    config.train.epochs = 1
    workdir = prepared.parent / "run"
    train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="session")
def trained_on_two_labels(phantoms, ct_settings, tmp_path_factory) -> Path:
    """As `trained`, of the healthy and the COVID-19 phantoms, with a decision rule of its own."""
    folder = tmp_path_factory.mktemp("two_labels")
    header, *rows = (phantoms / "cohort.csv").read_text().splitlines()
    rows = [row.replace("dicom/", f"{phantoms}/dicom/") for row in rows if ",bacterial," not in row]
    (folder / "cohort.csv").write_text("\n".join((header, *rows)) + "\n")
    with new_folder(folder / "data") as data:
        prepare_cohort(
            read_cohort(folder / "cohort.csv"),
            data,
            settings=dataclasses.replace(ct_settings, image_size_px=96),
            seed=0,
            fractions=(25, 25, 50),
            workers=1,
            progress=lambda summaries, n: summaries,
        )
    config = _tiny_config()
    config.data.dir = str(folder / "data")
    config.train.epochs = 1
    config.evaluation.threshold = 0.37
    config.evaluation.aggregate = "top3_mean"
    train_and_evaluate(config, folder / "run")
    return folder / "run"


@pytest.fixture
def small_disk(tmp_path):
    """Mounts file systems of so many KiB; skips where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    try:
        yield mount
    finally:
        subprocess.run(["umount", place], capture_output=True, check=False)


def _tiny_config():
    config = _config("drenet")
    config.model.backbone = "resnet18"
    config.model.width = 4
    config.model.image_size_px = 96
    config.model.crop_size_px = 32
    config.model.anchor_sizes_px = (24, 40)
    config.model.train_proposals = (2,)
    config.model.top_k = (2,)
    config.model.nms_iou = 0.5
    config.model.hidden = (8,)
    config.data.batch_size = 8
    config.evaluation.batch_size = 8
    config.evaluation.bootstrap_draws = 50
    config.train.accumulate = 1
    return config


@pytest.fixture(scope="session")
def command():
    """Runs `python -m drenet_jax.<name>` as a user would; returns the finished process."""

    def run(name: str, *flags: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", f"drenet_jax.{name}", *flags],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
