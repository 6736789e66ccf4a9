"""`python -m drenet_jax.serve`: refused flags and shutdown."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from serving.servers import form_of, start


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "workstation"])
def test_other_hosts_require_a_token(host, command, tmp_path, monkeypatch):
    monkeypatch.delenv("DRENET_TOKEN", raising=False)
    done = command("serve", f"--workdir={tmp_path}", f"--host={host}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "DRENET_TOKEN" in done.stderr


def test_a_short_or_unreadable_token_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setenv("DRENET_TOKEN", "secret")
    done = command("serve", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "16 or more" in done.stderr
    assert "secret" not in done.stderr
    done = command("serve", f"--workdir={tmp_path}", f"--token_file={tmp_path / 'none'}")
    assert done.returncode == 2
    assert "cannot be read" in done.stderr


def test_a_port_in_use_is_reported(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("serve", f"--workdir={tmp_path}", f"--port={port}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"--port={port} is taken" in done.stderr


def test_a_workdir_without_a_model_is_reported(command, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = command("serve", f"--workdir={tmp_path}", "--port=0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("drenet_jax_serve*"))


def test_a_limit_of_zero_is_refused(command, tmp_path):
    done = command("serve", f"--workdir={tmp_path}", "--config.places=0")
    assert done.returncode == 2
    assert "--config.places=0 must be above 0" in done.stderr


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_it_shuts_down_with_its_child_and_removes_its_files(by, trained, tmp_path, person):
    # A folder left by a killed server, and one in use by a running server.
    left = tmp_path / "tmp" / "drenet_jax_serve.left"
    held = tmp_path / "tmp" / "drenet_jax_serve.held"
    for folder in (left, held):
        (folder / "uploads" / "x").mkdir(parents=True)
        (folder / "uploads" / "x" / "a.dcm").write_text("a person's")
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    served = start(tmp_path, trained)
    try:
        assert not left.exists()
        assert held.exists()
        answers = []

        def ask() -> None:
            answers.append(
                httpx.post(f"{served.url}/api/predict", files=form_of(person), timeout=60)
            )

        asking = threading.Thread(target=ask)
        asking.start()
        children = _children(served)
        # Stopped while a job is running.
        end = time.monotonic() + 20
        while not children and time.monotonic() < end:
            children = _children(served)
        assert served.stop(by) == 0
        asking.join(20)
        assert [answer.status_code for answer in answers] == [200]
        assert children
        assert not [child for child in children if Path(f"/proc/{child}").exists()]
        assert [path.name for path in (tmp_path / "tmp").iterdir()] == [held.name]
        assert "Traceback" not in served.log
    finally:
        os.close(lock)


def _children(served) -> list[int]:
    pid = served.process.pid
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in threads for child in file.read_text().split()]
