"""The server process: socket, temporary folder, connections, signals, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from drenet_jax.errors import InputError
from drenet_jax.serving.limits import Limits

_PREFIX = "drenet_jax_serve."


def bound_socket(host: str, port: int, *, flag: str = "--port") -> socket.socket:
    """A socket that is bound to its address, but does not listen yet; port 0 is any free one.

    Raises:
      InputError: the address is not available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        messages = {
            errno.EADDRINUSE: f"{flag}={port} is taken by another program; use another port.",
            errno.EACCES: f"{flag}={port} is reserved for the system; use a port above 1023.",
        }
        other = f"--host={host} is no address of this machine; check it."
        raise InputError(messages.get(getattr(error, "errno", 0), other)) from error
    return bound


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields a folder in TMPDIR, locked while in use, and removes it in the end.

    Also removes the folders of killed servers, on which nobody holds a lock.
    """
    parent = Path(tempfile.gettempdir())
    for left_over in parent.glob(f"{_PREFIX}*"):
        _remove_if_unused(left_over)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another server that starts may have removed it before it was locked.
        if folder.is_dir():
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_if_unused(folder: Path) -> None:
    # TMPDIR is shared: no links are followed, folders of other users are left alone.
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        finally:
            os.close(lock)


class Server(uvicorn.Server):
    """`run([socket])` serves until SIGTERM or Ctrl-C, or `should_exit = True`.

    ASGI's lifespan events do not fit: uvicorn sends startup before it listens, and shutdown after
    all requests have ended, but requests end only when the jobs are stopped.

    Args:
      app: the ASGI application.
      limits: of connections and times.
      on_ready: called when clients can connect.
      on_shutdown: called in a thread when no more can connect, while open requests still wait.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        on_ready: Callable[[], None],
        on_shutdown: Callable[[], None],
    ):
        config = uvicorn.Config(
            app,
            http=functools.partial(_Connection, limits=limits),  # type: ignore[arg-type]
            ws="none",
            loop="asyncio",
            lifespan="off",
            # uvicorn logs paths, and errors with their messages; ours logs neither.
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # A little more than the running job gets (see Jobs.close).
            timeout_graceful_shutdown=round(limits.shutdown_seconds) + 5,
        )
        super().__init__(config)
        self._on_ready = on_ready
        self._on_shutdown = on_shutdown

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.ensure_future(asyncio.to_thread(self._on_shutdown))
        await super().shutdown(sockets)
        await stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Does not note the signal, which uvicorn would raise again before the temporary folders
        # are removed.
        self.force_exit |= self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class _Connection(H11Protocol):
    """A connection that is closed when it is silent too long, or one too many.

    uvicorn has no time limit for a request's head or for a client that does not read, and its
    `limit_concurrency` does not count connections without a request.
    """

    def __init__(self, *args: Any, limits: Limits, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._request_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._request_timer, self._send_timer):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        # What is buffered would otherwise stay in memory as long as the client likes.
        self._send_timer = self.loop.call_later(self._limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()

    def _watch(self) -> None:
        """Starts the timer when a request's head is due, and stops it when one has arrived."""
        if not self._is_idle():
            if self._request_timer is not None:
                self._request_timer.cancel()
                self._request_timer = None
        elif self._request_timer is None:
            seconds = self._limits.patience_seconds
            self._request_timer = self.loop.call_later(seconds, self._close_if_idle)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        self._request_timer = None
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()
