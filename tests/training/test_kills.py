"""A run that is killed, or stopped by a signal, and called again ends like an uninterrupted one."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from training.runs import assert_same_run, latest_state

from drenet_jax import parallel
from drenet_jax.train import PREEMPTED
from drenet_jax.training import loop
from drenet_jax.training.loop import train_and_evaluate
from drenet_jax.training.stopping import Preempted

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small_config(prepared):
    """A network that is compiled soon, with batch norm, dropout and momentum."""
    config = importlib.import_module("drenet_jax.configs.resnet50").get_config()
    config.model.update(name="resnet18", width=4, image_size_px=96, dropout=0.2)
    config.data.update(dir=str(prepared), batch_size=8)
    config.train.update(accumulate=1, epochs=3)
    return config


@pytest.fixture(scope="module")
def whole(small_config, tmp_path_factory):
    """A run that was left alone."""
    workdir = tmp_path_factory.mktemp("whole")
    train_and_evaluate(small_config, workdir)
    return workdir


def _start(config, workdir, *flags, devices=8):
    """`train` as a user calls it."""
    path = workdir.with_suffix(".py")
    path.write_text(
        "import ml_collections\n"
        f"def get_config():\n    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "drenet_jax.train",
            f"--config={path}",
            f"--workdir={workdir}",
            *flags,
        ],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process):
    """Its exit code and what it said."""
    _, output = process.communicate()
    return process.returncode, output


def _latest(workdir):
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def _is_saving(workdir):
    return any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))


def _wait_until(is_so, process):
    while not is_so():
        assert process.poll() is None, _end(process)
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_and_asked_to_stop_ends_bit_for_bit_like_one_that_is_not(
    small_config, whole, tmp_path
):
    killed = tmp_path / "killed"
    # While the first checkpoint is saved; in the second epoch; at any moment.
    for moment in (
        lambda: _is_saving(killed),
        lambda: _latest(killed) > 0,
        lambda: True,
    ):
        process = _start(small_config, killed)
        _wait_until(moment, process)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.communicate()
    assert 0 < _latest(killed) < _latest(whole)
    process = _start(small_config, killed)
    _wait_until(lambda: process.stderr.readline().startswith("train:"), process)
    process.terminate()
    code, output = _end(process)
    assert code == PREEMPTED
    stood_at = _latest(killed)
    assert (
        f"{killed} received a stop signal at step {stood_at} of {_latest(whole)} and saved it; "
        "call again to go on.\n"
    ) in output
    assert _end(_start(small_config, killed))[0] == 0
    assert_same_run(small_config, killed, whole)


@pytest.mark.slow
def test_no_step_is_repeated_and_no_metric_lost_by_a_run_that_is_asked_to_stop(
    small_config, whole, tmp_path, monkeypatch
):
    made = []
    honest = loop.make_train_step

    def watched(*args, **kwargs):
        step = honest(*args, **kwargs)

        def stopping(*batch):
            state, metrics = step(*batch)
            made.append(int(parallel.to_host(state.step)))
            # At the start, in an epoch, and at a validation.
            if made[-1] in (1, 4, 12):
                os.kill(os.getpid(), signal.SIGTERM)
            return state, metrics

        return stopping

    monkeypatch.setattr(loop, "make_train_step", watched)
    for stands_at in (1, 4, 12):
        with pytest.raises(Preempted, match=f"at step {stands_at} of {_latest(whole)}"):
            train_and_evaluate(small_config, tmp_path)
        assert _latest(tmp_path) == stands_at
    train_and_evaluate(small_config, tmp_path)
    assert made == list(range(1, _latest(whole) + 1))
    assert_same_run(small_config, tmp_path, whole)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, PREEMPTED)]
)
def test_thirty_stops_at_random_moments_change_nothing(how, code, small_config, whole, tmp_path):
    stops, runs, torn, later = 0, 0, 0, 0
    while stops < 30:
        runs += 1
        stopped = tmp_path / f"stopped{runs}"
        ended = None
        while ended != 0:
            process = _start(small_config, stopped)
            if stops < 30:
                _wait_for_a_random_moment(process, stopped)
                process.send_signal(how)
            ended, output = _end(process)
            # Until it handles SIGTERM, a run just ends by it; it has made no step then.
            assert ended in (0, code, -how), output
            stops += ended != 0
            torn += _is_saving(stopped)
            later += 0 < _latest(whole) / 3 <= _latest(stopped) < _latest(whole)
        assert_same_run(small_config, stopped, whole)
    print(f"{stops} stops of {runs} runs, {later} after the first epoch, {torn} while saving")
    assert later >= 3
    assert torn >= (how == signal.SIGKILL)


def _wait_for_a_random_moment(process, workdir):
    """While the run starts, while it trains, or while it saves; or until it has ended."""
    moment = random.choice(("starts", "trains", "trains", "saves", "saves"))
    if moment == "starts":
        time.sleep(random.uniform(0, 4))
        return
    # By then, what an earlier kill left of a checkpoint is removed.
    while process.poll() is None and not process.stderr.readline().startswith("train:"):
        pass
    if moment == "trains":
        time.sleep(random.uniform(0, 3))
        return
    while process.poll() is None and not _is_saving(workdir):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1))


@pytest.mark.slow
def test_hosts_of_which_one_is_asked_to_stop_stop_at_the_same_step(small_config, whole, tmp_path):
    run = tmp_path / "run"

    def start():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        return [
            _start(small_config, run, address, "--num_processes=2", f"--process_id={i}", devices=4)
            for i in range(2)
        ]

    first, second = start()
    _wait_until(lambda: first.stderr.readline().startswith("train:"), first)
    second.terminate()
    ends = [_end(process) for process in (first, second)]
    assert [code for code, _ in ends] == [PREEMPTED, PREEMPTED], ends
    stood_at = _latest(run)
    assert 0 < stood_at < _latest(whole)
    assert f"received a stop signal at step {stood_at} of" in ends[0][1]
    assert [_end(process)[0] for process in start()] == [0, 0]
    steps = [[json.loads(line)["step"] for line in _log(folder)] for folder in (run, whole)]
    assert steps[0] == steps[1]
    for a, b in zip(
        jax.tree.leaves(latest_state(small_config, run)),
        jax.tree.leaves(latest_state(small_config, whole)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def _log(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()
