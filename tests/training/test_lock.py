"""Two runs in one workdir: the second is refused, however the first ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drenet_jax.errors import InputError
from drenet_jax.output_files import locked_folder
from drenet_jax.training.crossvalidation import cross_validate
from drenet_jax.training.loop import train_and_evaluate
from drenet_jax.training.run_folder import LOCK_FILE

REPOSITORY = Path(__file__).resolve().parents[2]


def _hold(folder):
    """Another process that holds the lock until it is killed."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from drenet_jax.output_files import locked_folder\n"
        f"with locked_folder(Path({str(folder)!r}), name={LOCK_FILE!r}, use='trained'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def _tree(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.slow
def test_a_second_run_is_refused_until_the_first_is_dead(prepared, tiny_config, tmp_path, command):
    tiny_config.data.dir = str(prepared)
    # A network that is compiled quickly.
    tiny_config.model = {
        "name": "resnet18",
        "width": 4,
        "image_size_px": 96,
        "dropout": 0.0,
        "dtype": "float32",
    }
    tiny_config.train.epochs = 1
    tiny_config.train.steps = 1
    workdir = tmp_path / "run"
    train_and_evaluate(tiny_config, workdir)
    assert not (workdir / LOCK_FILE).exists()
    tiny_config.train.steps = 2
    first = _hold(workdir)
    try:
        before = _tree(workdir)
        for fresh in (False, True):
            with pytest.raises(InputError) as refusal:
                train_and_evaluate(tiny_config, workdir, fresh=fresh)
            assert f"--workdir={workdir} is being trained in by another process" in str(
                refusal.value
            )
        assert _tree(workdir) == before
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    # The file is still there; the lock went with the process.
    assert (workdir / LOCK_FILE).exists()
    train_and_evaluate(tiny_config, workdir)
    assert "2" in {path.name for path in (workdir / "checkpoints").iterdir()}
    assert not (workdir / LOCK_FILE).exists()


def test_the_command_says_so(prepared, tmp_path, command):
    workdir = tmp_path / "run"
    first = _hold(workdir)
    try:
        done = command(
            "train",
            "--config=configs/resnet50.py",
            f"--config.data.dir={prepared}",
            "--config.model.image_size_px=96",
            "--config.train.accumulate=1",
            f"--workdir={workdir}",
        )
    finally:
        first.kill()
        first.communicate()
    assert done.returncode == 2, done.stderr
    assert f"error: --workdir={workdir} is being trained in by another process; " in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in workdir.iterdir()] == [LOCK_FILE]


def test_a_lock_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked_folder(folder, name="lock", use="trained"):
        assert (folder / "lock").is_file()
        with (
            pytest.raises(InputError, match="is being trained in by another process"),
            locked_folder(folder, name="lock", use="trained"),
        ):
            pass
        assert (folder / "lock").is_file()
    assert not list(tmp_path.iterdir())
    folder.mkdir(parents=True)
    (folder / "other").touch()
    with locked_folder(folder, name="lock", use="trained"):
        pass
    assert [path.name for path in folder.iterdir()] == ["other"]


def _count(folder, barrier, n):
    """Adds one to a number in a file, n times, with no other help than the lock."""
    number = folder.with_name("number")
    barrier.wait()
    for _ in range(n):
        while True:
            try:
                with locked_folder(folder, name="lock", use="trained"):
                    value = int(number.read_text())
                    os.sched_yield()
                    number.write_text(str(value + 1))
                break
            except InputError:
                time.sleep(0)


@pytest.mark.slow
def test_no_two_hold_it_while_files_come_and_go(tmp_path):
    context = multiprocessing.get_context("spawn")
    folder, n, processes = tmp_path / "run", 25, 2
    # It stays, as a workdir does, so that only the file of the lock comes and goes.
    folder.mkdir()
    (tmp_path / "number").write_text("0")
    barrier = context.Barrier(processes)
    running = [context.Process(target=_count, args=(folder, barrier, n)) for _ in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert int((tmp_path / "number").read_text()) == n * processes


def test_a_second_cross_validation_is_refused(prepared, tiny_config, tmp_path):
    workdir = tmp_path / "cv"
    with (
        locked_folder(workdir, name=".crossvalidate.lock", use="cross-validated"),
        pytest.raises(InputError, match="is being cross-validated in by another process"),
    ):
        cross_validate(tiny_config, str(prepared), "2", 1, workdir)
    assert not workdir.exists()
