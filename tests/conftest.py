"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

# Before JAX is imported: tests of several devices need several, and an odd number finds more.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real CT data beside the checkout; tests skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real CT data at {folder}")
    return folder


@pytest.fixture
def tiny_config():
    """DRENet with a narrow ResNet18 on 96 pixels: seconds, not minutes."""
    config = runpy.run_path(str(REPOSITORY / "configs" / "drenet.py"))["get_config"]()
    config.model.backbone = "resnet18"
    config.model.width = 4
    config.model.image_size_px = 96
    config.model.crop_size_px = 32
    config.model.anchor_sizes_px = (24, 40)
    config.model.train_proposals = 2
    config.model.top_k = 2
    config.model.nms_iou = 0.5
    config.model.hidden = (8,)
    config.data.batch_size = 8
    config.evaluation.batch_size = 8
    return config
