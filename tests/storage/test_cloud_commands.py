"""All commands on buckets give what they give on a disk, bit for bit, through faults and kills."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drenet_jax.data.prepared_data import open_data, read_all
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.storage import folders, objects
from drenet_jax.storage.mirror import open_mirror

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.cloud, pytest.mark.slow]

KILLS = 20


def _start(module, *flags, devices=1):
    return subprocess.Popen(
        [sys.executable, "-m", f"drenet_jax.{module}", *flags],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _run(module, *flags):
    process = _start(module, *flags)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """A network that is compiled soon, with batch norm, dropout and momentum."""
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(
        "from drenet_jax.configs import resnet50\n"
        "def get_config():\n"
        "  config = resnet50.get_config()\n"
        "  config.model.update(name='resnet18', width=4, image_size_px=96, dropout=0.2)\n"
        "  config.data.batch_size = 4\n"
        "  config.evaluation.bootstrap_draws = 50\n"
        "  config.train.update(accumulate=1, epochs=4)\n"
        "  return config\n"
    )
    return path


def _train_flags(config_file, root):
    return (
        f"--config={config_file}",
        f"--config.data.dir={root}/data",
        f"--workdir={root}/run",
    )


def _make(root, config_file):
    """All commands, from phantoms to a prediction."""
    _run("synthesize", f"--out={root}/phantoms", "--persons=12", "--size=96", "--workers=2")
    _run(
        "prepare",
        f"--cohort={root}/phantoms/cohort.csv",
        f"--out={root}/data",
        "--fractions=50,25,25",
        "--config.image_size_px=96",
        "--workers=2",
    )
    _run("train", *_train_flags(config_file, root))
    _run("evaluate", f"--workdir={root}/run", f"--out={root}/test")
    _run(
        "predict",
        f"--workdir={root}/run",
        f"--input={root}/phantoms/dicom/phantom-0001",
        f"--out={root}/person",
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory, config_file):
    """What the commands make on a disk."""
    root = tmp_path_factory.mktemp("local")
    _make(root, config_file)
    return root


def _data(root, address, tmp_path):
    folders.download_folder(f"{address}/data", tmp_path / "data", flag="--data")
    return root / "data", tmp_path / "data"


def _assert_same_records(ours, theirs):
    ours, theirs = open_data(ours), open_data(theirs)
    assert ours.fingerprint == theirs.fingerprint
    for split in ("train", "validation", "test"):
        for a, b in zip(
            ours.builder.info.splits[split].filepaths,
            theirs.builder.info.splits[split].filepaths,
            strict=True,
        ):
            assert Path(a).read_bytes() == Path(b).read_bytes()


def _arrays(workdir):
    """Checksums of all arrays of the latest checkpoint, and the log."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.latest_step
        sums = checkpoints._checksums(step)
    return step, {name: sums[name] for name in ("weights", "optimizer")}


def _assert_same_run(local_run, address):
    with open_mirror(address, writes=False, use="read") as mirror:
        assert _arrays(mirror.local) == _arrays(local_run)
        ours = (mirror.local / "metrics.jsonl").read_text()
        assert ours == (local_run / "metrics.jsonl").read_text()


def test_the_whole_path(store, folder, local, config_file, tmp_path):
    _make(folder, config_file)
    _assert_same_records(*_data(local, folder, tmp_path))
    _assert_same_run(local / "run", f"{folder}/run")
    _assert_same_results(local, folder)


def _assert_same_results(local, folder):
    for name in ("test/metrics.json", "test/persons.csv", "test/slices.csv"):
        assert objects.read(f"{folder}/{name}") == (local / name).read_bytes()
    ours = json.loads(objects.read(f"{folder}/person/result.json"))
    theirs = json.loads((local / "person" / "result.json").read_text())
    for name in ("person", "slices", "excluded"):
        assert ours[name] == theirs[name]


def test_faults_in_all_commands_change_nothing(store, folder, local, config_file, tmp_path):
    faults = {"error_rate": 0.02, "throttle_rate": 0.02, "drop_rate": 0.02, "lose_rate": 0.02}
    with store.proxy.with_faults(latency_s=0.01, **faults):
        _make(folder, config_file)
    _assert_same_records(*_data(local, folder, tmp_path))
    _assert_same_run(local / "run", f"{folder}/run")
    _assert_same_results(local, folder)


def _kill_at_a_random_moment(process, latest):
    """While it starts, while it trains, or while it copies a checkpoint."""
    moment = random.choice(("starts", "trains", "copies"))
    if moment == "starts":
        time.sleep(random.uniform(0, 6))
    else:
        for line in process.stdout:
            if line.startswith("train:"):
                break
        if moment == "trains":
            time.sleep(random.uniform(0, 3))
        else:
            before = latest()
            while process.poll() is None and latest() == before:
                time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_twenty_kills_of_a_training_change_nothing(store, folder, local, config_file, monkeypatch):
    _upload_data(local, folder)

    def n_objects():
        return len(objects.sizes(f"{run}/checkpoints"))

    kills, runs = 0, 0
    while kills < KILLS:
        runs += 1
        run = f"{folder}/run{runs}"
        flags = (*_train_flags(config_file, folder)[:-1], f"--workdir={run}")
        while True:
            # Every other time on another machine, which has no copy.
            monkeypatch.setenv("DRENET_JAX_CACHE", str(local / f"cache{kills // 2}-{store.scheme}"))
            process = _start("train", *flags)
            if kills < KILLS and random.random() < 0.8:
                _kill_at_a_random_moment(process, n_objects)
                kills += 1
                continue
            output, _ = process.communicate(timeout=900)
            assert process.returncode == 0, output
            break
        _assert_same_run(local / "run", run)
    print(f"{kills} kills of {runs} runs")


@pytest.mark.parametrize("command", ["prepare", "evaluate"])
def test_a_command_that_is_killed_leaves_no_folder(store, folder, local, config_file, command):
    flags = {
        "prepare": (
            f"--cohort={local}/phantoms/cohort.csv",
            "--fractions=50,25,25",
            "--config.image_size_px=96",
            "--workers=2",
        ),
        "evaluate": (f"--workdir={local}/run",),
    }[command]
    for _ in range(4):
        process = _start(command, *flags, f"--out={folder}/out")
        while process.poll() is None and len(objects.sizes(folder)) < random.randint(1, 6):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        there = objects.sizes(f"{folder}/out")
        if folders.COMPLETE in there:
            break
    else:
        _run(command, *flags, f"--out={folder}/out")
    contents = folders.read_contents(f"{folder}/out", flag="--out")
    left = objects.sizes(f"{folder}/out")
    assert {name: left[name] for name in contents.files} == contents.files


def _train_on_two_hosts(config_file, data, run, local):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for i in range(2):
        # Each host has a disk of its own.
        os.environ["DRENET_JAX_CACHE"] = str(local / f"host{i}")
        processes.append(
            _start(
                "train",
                f"--config={config_file}",
                f"--config.data.dir={data}",
                f"--workdir={run}",
                coordinator,
                "--num_processes=2",
                f"--process_id={i}",
            )
        )
    ends = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends


def test_two_processes_from_and_to_a_bucket_equal_two_and_one_on_a_disk(
    store, folder, local, config_file, tmp_path
):
    _upload_data(local, folder)
    _train_on_two_hosts(config_file, f"{folder}/data", f"{folder}/run", tmp_path)
    _train_on_two_hosts(config_file, local / "data", tmp_path / "run", tmp_path)
    _assert_same_run(tmp_path / "run", f"{folder}/run")
    # One process takes its sums in another order, which shows more and more: the first two epochs.
    ours, theirs = (_losses(run)[:2] for run in (tmp_path / "run", local / "run"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def _losses(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["validation"]["cross_entropy"] for line in lines]


def _upload_data(local, folder):
    _upload(local / "data", f"{folder}/data")
    contents = {"id": folder.rpartition("/")[2], "files": _sizes(local / "data")}
    objects.write(f"{folder}/data/{folders.COMPLETE}", json.dumps(contents).encode())


def _sizes(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_cross_validation_that_is_killed_and_goes_on_gives_the_same_table(
    store, folder, local, config_file, tmp_path, monkeypatch
):
    _upload_data(local, folder)

    def flags(data, workdir):
        return (
            f"--config={config_file}",
            "--config.train.epochs=1",
            f"--data={data}",
            f"--workdir={workdir}",
            "--folds=2",
        )

    if not (local / "cv").exists():
        _run("crossvalidate", *flags(local / "data", local / "cv"))
    process = _start("crossvalidate", *flags(f"{folder}/data", f"{folder}/cv"))
    while process.poll() is None and not objects.exists(f"{folder}/cv/repeat1/fold2/run"):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # On another machine.
    monkeypatch.setenv("DRENET_JAX_CACHE", str(tmp_path / "another machine"))
    output = _run("crossvalidate", *flags(f"{folder}/data", f"{folder}/cv"))
    assert "repeat 1, fold 1 (2 in all)" not in output
    for name in ("folds.csv", "slices.csv", "metrics.json"):
        ours = objects.read(f"{folder}/cv/result/{name}")
        assert ours == (local / "cv" / "result" / name).read_bytes()
    _run("audit", f"--workdir={folder}/cv", f"--out={folder}/audit", "--config.folds=2")
    assert objects.exists(f"{folder}/audit/audit.md")


def test_prepare_on_beam_from_and_to_a_bucket(store, folder, local):
    _upload(local / "phantoms", f"{folder}/phantoms")
    _run(
        "prepare",
        f"--cohort={folder}/phantoms/cohort.csv",
        f"--out={folder}/data",
        "--fractions=50,25,25",
        "--config.image_size_px=96",
        "--runner=DirectRunner",
        "--pipeline_options=--direct_running_mode=multi_processing --direct_num_workers=2",
    )
    ours, theirs = open_data(f"{folder}/data"), open_data(local / "data")
    assert ours.fingerprint == theirs.fingerprint
    for split in ("train", "validation", "test"):
        for a, b in zip(
            read_all(ours, ours.stored_records(split, None)),
            read_all(theirs, theirs.stored_records(split, None)),
            strict=True,
        ):
            assert a["slice_name"] == b["slice_name"]
            np.testing.assert_array_equal(a["image"], b["image"])


def _upload(local, address):
    sizes = _sizes(local)
    objects.each(
        objects.upload,
        [local / name for name in sizes],
        [f"{address}/{name}" for name in sizes],
    )
