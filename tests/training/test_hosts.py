"""One seed and one global batch give one model, whatever the number of devices and hosts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from drenet_jax import parallel
from drenet_jax.data.batches import split_batches
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.evaluator import score_split
from drenet_jax.evaluation.predictions import SlicePredictions
from drenet_jax.models import build
from drenet_jax.models.backbones import resnet
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.training import loop, losses, step, validation

REPOSITORY = Path(__file__).resolve().parents[2]

# Four processes compile the network, each for itself: half a ResNet18 does, hastily compiled.
SHORT = {"resnet10": (resnet.BasicBlock, (1, 1, 1, 1))}
HASTE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def _losses_and_boxes(outputs, label, class_weights=None, *, rank_factor=1.0):
    """The losses, and a sum that tells which boxes were selected: of whole numbers, so exact."""
    values = losses.all_losses(outputs, label, class_weights, rank_factor=rank_factor)
    edges = jnp.array([1, 3, 7, 11]) * jnp.arange(1, 1 + outputs.boxes.shape[1])[:, None]
    return values | {"picked": jnp.mean(jnp.sum(outputs.boxes * edges, axis=(1, 2)))}


def run(config, workdir, process_id, *hosts):
    """What a process does; see `_start`. Validation scores the test split, whose number of slices
    nothing divides, and keeps what it finds."""
    parallel.start_hosts(*hosts, process_id)

    def scored(scorer, variables, data, split, fill, *, watch):
        slices, logits = score_split(scorer, variables, data, "test", fill, watch=watch)
        if parallel.is_first_host():
            slices.to_csv(Path(workdir) / "slices.csv")
        return slices, logits

    resnet.ARCHITECTURES.update(SHORT)
    build.BACKBONES.update(dict.fromkeys(SHORT, resnet.ResNet))
    step.all_losses, validation.score_split = _losses_and_boxes, scored
    loop.train_and_evaluate(ml_collections.ConfigDict(json.loads(config)), Path(workdir))


def _weights(workdir):
    with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
        latest = checkpoints.latest_step
        return checkpoints.weights(latest, checkpoints.weight_shapes(latest))


def _start(config, workdir, devices, process_id=None, *hosts):
    arguments = (config.to_json(), str(workdir), process_id, *hosts)
    code = f"import runpy; runpy.run_path({__file__!r})['run'](*{arguments!r})"
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {HASTE}",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE
    )


def _wait(*processes):
    for process in processes:
        _, output = process.communicate(timeout=600)
        assert process.returncode == 0, output.decode()


def _free_port():
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


# In two micro-batches, a host has a part of each.
@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 1])
def test_one_device_eight_and_two_hosts_of_four_give_the_same_model(
    accumulate, tiny_config, prepared, tmp_path
):
    config = tiny_config
    # With seeds 0 and 2 rounding turns a maximum or a ReLU over equal pixels the other way in one
    # batch: losses agree to 1e-8, and gradients to half a percent only.
    config.seed = 1
    config.model.backbone = "resnet10"
    config.data.dir = str(prepared)
    config.data.batch_size = 16
    config.train.accumulate = accumulate
    config.train.steps = 5
    single, eight, hosts = (tmp_path / name for name in ("one", "eight", "hosts"))
    _wait(_start(config, single, 1))
    _wait(_start(config, eight, 8))
    address = f"127.0.0.1:{_free_port()}"
    _wait(*(_start(config, hosts, 4, i, address, 2) for i in range(2)))

    slices = SlicePredictions.from_csv(single / "slices.csv")
    data = open_data(prepared)
    assert len(slices) == data.n_slices["test"]
    assert len(slices) % 2
    order = [
        key
        for batch in split_batches(data, "test", batch_size=8, fill="never")
        for key in zip(batch["patient_id"], batch["slice_name"], strict=True)
    ]
    for other in (eight, hosts):
        picked = [[line["train"]["picked"] for line in _log(run)] for run in (single, other)]
        assert picked[0] == picked[1]
        # SGD: an update is proportional to the gradient, whose rounding it so inherits. AdamW
        # divides by the gradient's own size, and turns the rounding of a zero into a full step.
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(_weights(single)),
            jax.tree.leaves(_weights(other)),
            strict=True,
        ):
            apart = np.linalg.norm(a - b) / np.linalg.norm(a)
            assert apart < 1e-4, f"{other} {jax.tree_util.keystr(path)} {apart}"
        same = SlicePredictions.from_csv(other / "slices.csv")
        assert list(zip(same.patient_id, same.slice_name, strict=True)) == order
        for column in ("patient_id", "slice_name", "slice_index", "site", "label"):
            np.testing.assert_array_equal(getattr(same, column), getattr(slices, column))
        np.testing.assert_allclose(same.probabilities, slices.probabilities, atol=1e-4)


def _log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("10.0.0.1:99", None, None), "belong together"),
        (("", 2, 0), "belong together"),
        (("10.0.0.1", 2, 0), "--coordinator=10.0.0.1 must be host:port"),
        (("10.0.0.1:99", 0, 0), "--num_processes=0 must be 1 or more"),
        (("10.0.0.1:99", 2, 2), "--process_id=2 must be from 0 to 1"),
    ],
)
def test_hosts_that_cannot_be_are_refused_by_flag(arguments, message):
    with pytest.raises(InputError, match=message):
        parallel.start_hosts(*arguments)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, []),
        # One task on each node drives all its devices; one for each device drives its own.
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, [{"local_device_ids": []}]),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, [{"local_device_ids": None}]),
    ],
)
def test_the_tasks_of_a_slurm_step_are_joined(environment, expected, monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(parallel, "_join", lambda **kwargs: joined.append(kwargs))
    parallel.start_hosts()
    assert joined == expected


@pytest.mark.parametrize(("platform", "keeps"), [("cpu", False), ("gpu", True), ("tpu", True)])
def test_several_hosts_keep_compiled_programs_but_on_cpu(platform, keeps, monkeypatch):
    settings = {"jax_enable_compilation_cache": True}
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: None)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(parallel, "host_count", lambda: 2)
    parallel.start_hosts("10.0.0.1:99", 2, 0)
    assert settings["jax_enable_compilation_cache"] == keeps


def test_rows_of_several_hosts_come_in_the_order_of_the_records(monkeypatch):
    n_hosts, rows = 2, 3
    records = np.arange(4 * n_hosts * rows).reshape(4, n_hosts, rows)
    monkeypatch.setattr(parallel, "host_count", lambda: n_hosts)
    monkeypatch.setattr(
        parallel.multihost_utils, "process_allgather", lambda own: np.moveaxis(records, 1, 0)
    )
    np.testing.assert_array_equal(parallel.gather_rows(records[:, 0]), np.arange(records.size))


def test_batches_come_to_the_devices_in_order_cut_into_micro_batches():
    batches = [(np.arange(16) + 100 * i, np.ones((16, 2))) for i in range(4)]
    on_devices = list(parallel.on_devices(iter(batches), parts=2))
    assert [len(micro_batches) for micro_batches in on_devices] == [2] * 4
    for (numbers, _), micro_batches in zip(batches, on_devices, strict=True):
        assert micro_batches[0][0].shape == (8, 1)
        joined = np.concatenate([parallel.unshard(number) for number, _ in micro_batches])
        np.testing.assert_array_equal(joined, numbers)
