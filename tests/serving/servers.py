"""Servers on free ports of this machine, and requests for them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drenet_jax.serving.jobs import Jobs
from drenet_jax.serving.limits import Limits

REPOSITORY = Path(__file__).resolve().parents[2]

TOKEN = "0123456789abcdef-of-the-tests"


@dataclasses.dataclass
class Served:
    """A running `python -m drenet_jax.serve`."""

    process: subprocess.Popen
    url: str
    temporary: Path
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def left_files(self) -> list[Path]:
        """All files in its temporary folder."""
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def stop(self, by: int = signal.SIGTERM) -> int:
        self.process.send_signal(by)
        try:
            return self.process.wait(60)
        finally:
            self.process.stdout.close()


def start(folder: Path, workdir: Path, *flags: str, token: str = "") -> Served:
    """Starts a server whose temporary files and log lie in `folder`."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    log_file = folder / "log"
    environment = {**os.environ, "TMPDIR": str(temporary), "DRENET_TOKEN": token}
    # One device; with the tests' eight, each pass would take longer.
    environment["XLA_FLAGS"] = ""
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "drenet_jax.serve",
                f"--workdir={workdir}",
                "--port=0",
                *flags,
            ],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    line = process.stdout.readline()
    match = re.search(r"http://\S+(?=/ )", line)
    if match is None:
        process.stdout.close()
        pytest.fail(f"the server did not start: {line}{log_file.read_text()} ({process.wait(9)})")
    return Served(process, match[0], temporary, log_file)


def form(*files: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """What httpx sends as files of the form."""
    return [("files", file) for file in files]


def form_of(folder: Path, within: str = "") -> list:
    """A folder's files, as a browser sends a folder that is dropped."""
    return form(
        *(
            (f"{within}{path.relative_to(folder).as_posix()}", path.read_bytes())
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        )
    )


def multipart(*files: tuple[bytes, bytes], boundary: bytes = b"x") -> bytes:
    """A form as bytes, with file names that no client would send."""
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\n%b\r\n'
        % (boundary, name, content)
        for name, content in files
    ]
    return b"".join(parts) + b"--%b--\r\n" % boundary


FORM_HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}


def default_limits(**others) -> Limits:
    config = importlib.import_module("drenet_jax.configs.serve").get_config()
    return Limits.from_dict({**config.to_dict(), **others})


def answer(label: str = "healthy") -> types.SimpleNamespace:
    """A result of a fake model."""
    person = {"label": label, "probabilities": {label: 0.75}, "n_slices": 1}
    return types.SimpleNamespace(result={"person": person}, pictures=())


@dataclasses.dataclass
class Stage:
    """The server in this process, with a fake model."""

    url: str
    port: int
    jobs: Jobs
    folder: Path
    log: Path

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        yield connection
