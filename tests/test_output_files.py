"""Output folders appear only when they are complete."""

from __future__ import annotations

import os
import signal

import pytest

from drenet_jax.errors import InputError
from drenet_jax.output_files import new_folder


def test_the_folder_appears_when_the_work_is_done(tmp_path):
    out = tmp_path / "a" / "b"
    with new_folder(out) as folder:
        (folder / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x"
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", out, out / "file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind_not_even_parents(error, tmp_path):
    def fail():
        with new_folder(tmp_path / "a" / "b") as folder:
            (folder / "file").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert not list(tmp_path.iterdir())


def test_sigterm_leaves_nothing_behind(tmp_path):
    with pytest.raises(SystemExit), new_folder(tmp_path / "out"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_call_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished" / "half").touch()
    with new_folder(tmp_path / "out") as folder:
        assert not list(folder.iterdir())
    assert not (tmp_path / ".out.unfinished").exists()


def test_two_calls_do_not_write_the_same_folder(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "file").touch()
        with pytest.raises(InputError, match="another call"), new_folder(out):
            pass
    assert (out / "file").exists()


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()


def test_a_place_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    with pytest.raises(InputError, match="cannot be written"), new_folder(out):
        pass
