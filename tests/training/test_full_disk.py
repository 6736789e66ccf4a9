"""A disk that gets full while training: one sentence, and the run goes on when there is space."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from drenet_jax.errors import InputError
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.output_files import is_disk_full, new_folder
from drenet_jax.training import loop
from drenet_jax.training.loop import train_and_evaluate

REPOSITORY = Path(__file__).resolve().parents[2]


def _config(tiny_config, prepared):
    tiny_config.data.dir = str(prepared)
    tiny_config.train.epochs = 2
    return tiny_config


def _weights(workdir):
    with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
        step = checkpoints.latest_step
        return step, jax.tree.leaves(checkpoints.weights(step, checkpoints.weight_shapes(step)))


def _assert_same(workdir, other):
    (step, weights), (last, wanted) = _weights(workdir), _weights(other)
    assert step == last
    assert all(np.array_equal(a, b) for a, b in zip(weights, wanted, strict=True))


@pytest.fixture(scope="module")
def whole(prepared, trained, tmp_path_factory):
    """The run that was never interrupted."""
    with Checkpoints.of(trained, flag="--workdir") as checkpoints:
        config = checkpoints.meta(checkpoints.latest_step).config.copy_and_resolve_references()
    workdir = tmp_path_factory.mktemp("whole")
    train_and_evaluate(_config(config, prepared), workdir)
    return workdir


@pytest.fixture(scope="module")
def kib_of_a_checkpoint(trained):
    files = [path for path in (trained / "checkpoints").rglob("*") if path.is_file()]
    return sum(file.stat().st_size for file in files) // 1024


def _train(config, workdir, tmp_path):
    """`train` in a process of its own, whose stderr is all that it says."""
    path = tmp_path / "config.py"
    path.write_text(
        "import ml_collections\n"
        f"def get_config():\n    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "drenet_jax.train",
            f"--config={path}",
            f"--workdir={workdir}",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# Parts of what two checkpoints take: nothing fits, half of the first, the first and half of the
# second.
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.5, 1.5])
def test_a_full_disk_is_reported_and_the_run_goes_on(
    share, small_disk, kib_of_a_checkpoint, whole, prepared, tiny_config, tmp_path
):
    config = _config(tiny_config, prepared)
    # Sixteen more, for the logs.
    place = small_disk(f"size={int(share * kib_of_a_checkpoint) + 16}k")
    workdir = place / "run"
    done = _train(config, workdir, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [part for part in done.stderr.splitlines() if part.startswith("error: ")]
    assert line.startswith(f"error: --workdir={workdir}: the disk is full")
    assert "free some space and call again" in line
    kept = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert kept == (["6"] if share > 1 else [])
    small_disk("remount", "size=64m")
    done = _train(config, workdir, tmp_path)
    assert done.returncode == 0, done.stderr
    _assert_same(workdir, whole)


@pytest.mark.slow
def test_logs_that_cannot_grow_are_reported(whole, prepared, tiny_config, tmp_path, monkeypatch):
    """As above where nothing can be mounted: the second validation finds the disk full."""
    config = _config(tiny_config, prepared)
    write = loop.RunLog.validation
    calls = []

    def full(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.unfinished")
        write(self, *args)

    monkeypatch.setattr(loop.RunLog, "validation", full)
    workdir = tmp_path / "run"
    with pytest.raises(InputError, match=f"--workdir={workdir}: the disk is full"):
        train_and_evaluate(config, workdir)
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["6"]
    train_and_evaluate(config, workdir)
    _assert_same(workdir, whole)


def test_errors_of_every_library_are_understood():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert is_disk_full(full)
    assert is_disk_full(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    # As tensorstore and TensorFlow say it.
    assert is_disk_full(
        ValueError("RESOURCE_EXHAUSTED: ... [OS error 28: No space left on device]")
    )
    assert is_disk_full(ExceptionGroup("several", [ValueError("a"), full]))
    wrapped = RuntimeError("it failed")
    wrapped.__cause__ = full
    assert is_disk_full(wrapped)
    assert not is_disk_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert not is_disk_full(RuntimeError("RESOURCE_EXHAUSTED: out of memory"))


def test_new_folders_tell_a_full_disk_whatever_the_library(tmp_path):
    with pytest.raises(InputError, match="the disk is full"), new_folder(tmp_path / "out"):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")
    assert not list(tmp_path.iterdir())
