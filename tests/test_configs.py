"""The configs for accelerators are those of the method, with a learning rate that scales."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def _config(name: str):
    return importlib.import_module(f"drenet_jax.configs.{name}").get_config()


@pytest.mark.parametrize("name", ["drenet_gpu", "drenet_tpu"])
def test_the_learning_rate_follows_the_batch_size(name):
    config = _config(name)
    assert config.optimizer.learning_rate == pytest.approx(8e-4 * 128 / 16)
    config.data.batch_size = 32
    assert config.optimizer.learning_rate == pytest.approx(1.6e-3)
    # A rate that the user gives stays.
    config.optimizer.learning_rate = 0.01
    assert config.optimizer.learning_rate == 0.01
    assert config.data.batch_size == 32


@pytest.mark.parametrize("name", ["drenet_gpu", "drenet_tpu"])
def test_a_config_for_accelerators_changes_no_part_of_the_method(name):
    plain, other = (_config(other).copy_and_resolve_references() for other in ("drenet", name))
    differing = {
        f"{group}.{field}"
        for group in ("data", "model", "optimizer", "train", "init", "evaluation")
        for field in plain[group]
        if plain[group][field] != other[group][field]
    }
    assert differing - {"train.memory_fraction"} == {
        "data.batch_size",
        "evaluation.batch_size",
        "model.dtype",
        "optimizer.learning_rate",
        "optimizer.warmup_epochs",
        "train.accumulate",
    }


@pytest.mark.parametrize(("given", "expected"), [(None, "0.9"), ("0.5", "0.5")])
def test_train_asks_for_its_share_of_a_gpus_memory_before_jax_looks_for_devices(given, expected):
    # The hosts are joined first of all, and here in vain; the share must be set by then.
    code = (
        "import os, runpy, sys; import drenet_jax.parallel as p\n"
        "def stop(*a): print(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION')); sys.exit(0)\n"
        "p.start_hosts = stop\n"
        "sys.argv = ['train', '--config=configs/drenet_gpu.py', '--workdir=/nowhere']\n"
        "runpy.run_module('drenet_jax.train', run_name='__main__')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_PYTHON_CLIENT_MEM_FRACTION"}
    if given is not None:
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = given
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == expected, done.stderr
