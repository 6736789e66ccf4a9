"""Servers for the tests: the real one, and one with a fake model."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from serving.servers import Served, Stage, default_limits, start

from drenet_jax.private_log import log_to
from drenet_jax.serving import server
from drenet_jax.serving.app import make_app
from drenet_jax.serving.jobs import Jobs


@pytest.fixture(scope="session")
def served(trained, tmp_path_factory) -> Iterator[Served]:
    """The server with its defaults, of the model `trained`."""
    running = start(tmp_path_factory.mktemp("served"), trained)
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0


@pytest.fixture
def client(served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def person(phantoms) -> Path:
    """A folder of DICOM files."""
    return sorted((phantoms / "dicom").iterdir())[0]


@pytest.fixture
def stage(tmp_path):
    """Starts servers with fake models in this process: `stage(explain, token=..., places=1)`."""
    with contextlib.ExitStack() as stack:

        def make(explain: Callable, *, token: str = "", **others) -> Stage:
            limits = default_limits(**{"shutdown_seconds": 1.0, **others})
            uploads, scratch = tmp_path / "uploads", tmp_path / "scratch"
            uploads.mkdir()
            scratch.mkdir()
            handler = stack.enter_context(contextlib.closing(logging.FileHandler(tmp_path / "log")))
            log_to(handler)
            jobs = Jobs(explain, lambda result: "<p>the report</p>", scratch, limits)
            app = make_app(
                jobs,
                model={"name": "stand-in", "step": 1, "labels": ["ill", "healthy"]},
                folder=uploads,
                limits=limits,
                token=token,
                local_only=True,
            )
            bound = stack.enter_context(server.bound_socket("127.0.0.1", 0))
            ready = threading.Event()
            running = server.Server(app, limits=limits, on_ready=ready.set, on_shutdown=jobs.close)
            thread = threading.Thread(target=running.run, args=([bound],))
            thread.start()

            def end() -> None:
                running.should_exit = True
                thread.join(30)
                assert not thread.is_alive()

            stack.callback(end)
            assert ready.wait(20)
            port = bound.getsockname()[1]
            return Stage(f"http://127.0.0.1:{port}", port, jobs, uploads, tmp_path / "log")

        yield make
