"""`prepare` killed at any moment: --out is absent or complete, and calling it again succeeds."""

from __future__ import annotations

import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drenet_jax.data.prepared_data import open_data

REPOSITORY = Path(__file__).resolve().parents[1]


class _Run:
    """A `prepare` of `phantoms`, in a session of its own by which its processes are known."""

    def __init__(self, phantoms: Path, out: Path):
        self.out = out
        self.scratch = out.with_name(f".{out.name}.unfinished")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "drenet_jax.prepare",
                f"--cohort={phantoms / 'cohort.csv'}",
                f"--out={out}",
                "--fractions=50,25,25",
                "--config.image_size_px=96",
                "--workers=2",
            ],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill_when(self, is_time) -> None:
        """Kills the parent process alone, as a machine short of memory does."""
        while self.process.poll() is None and not is_time():
            time.sleep(0.002)
        self.process.kill()
        self.process.wait()

    def wait_for_all(self, timeout_s: float) -> list[str]:
        """Waits for the session's processes to end; returns those that do not."""
        deadline = time.monotonic() + timeout_s
        while left := _processes_of_session(self.process.pid):
            if time.monotonic() > deadline:
                return left
            time.sleep(0.05)
        return []


def _processes_of_session(session: int) -> list[str]:
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # pid (command) state parent group session ...; a command may hold anything.
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                processes.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return processes


def _is_whole(out: Path, n_slices: dict[str, int]) -> bool:
    # Raises if the counts are not those of the records.
    data = open_data(out)
    names = ("excluded.csv", "notes.csv", "qc.html", "split.json")
    return data.n_slices == n_slices and all((out / name).is_file() for name in names)


def _check_after_kill(run: _Run, n_slices: dict[str, int]) -> None:
    assert run.wait_for_all(timeout_s=10) == []
    if run.out.exists():
        assert _is_whole(run.out, n_slices)
        os.rename(run.out, run.out.with_name(f"whole-{run.process.pid}"))


def _check_a_run_to_the_end(phantoms: Path, out: Path, prepared: Path) -> None:
    run = _Run(phantoms, out)
    assert run.process.wait() == 0
    assert not run.scratch.exists()
    names = [path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file()]
    assert sorted(names) == sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    for name in names:
        # TFDS writes its version and the folder into this one.
        if name.name != "dataset_info.json":
            assert filecmp.cmp(prepared / name, out / name, shallow=False), name


def test_killed_at_its_turning_points_it_starts_over_cleanly(phantoms, prepared, tmp_path):
    n_slices = open_data(prepared).n_slices
    turning_points = ("work-*/staging/*/*.pickle", "ct_slices/*/*", "qc.html")
    for pattern in turning_points:
        run = _Run(phantoms, tmp_path / "out")
        run.kill_when(lambda run=run, pattern=pattern: any(run.scratch.glob(pattern)))
        assert run.process.returncode == -signal.SIGKILL, f"ended before {pattern} was there"
        _check_after_kill(run, n_slices)
    _check_a_run_to_the_end(phantoms, tmp_path / "out", prepared)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_starts_over_cleanly(phantoms, prepared, tmp_path):
    n_slices = open_data(prepared).n_slices
    start = time.monotonic()
    _check_a_run_to_the_end(phantoms, tmp_path / "never killed", prepared)
    duration_s = time.monotonic() - start
    moments = random.Random(0)
    for _ in range(20):
        run = _Run(phantoms, tmp_path / "out")
        moment = time.monotonic() + moments.uniform(0, duration_s)
        run.kill_when(lambda moment=moment: time.monotonic() > moment)
        _check_after_kill(run, n_slices)
    _check_a_run_to_the_end(phantoms, tmp_path / "out", prepared)
