"""The server's process: its socket, its connections, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from drenet_jax.errors import InputError
from drenet_jax.serving.limits import Limits


@contextlib.contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has its address, but does not listen yet.

    Args:
      host: a name or an address.
      port: 0 for a free one.

    Raises:
      InputError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"--host={host} is no address of this machine; check it.") from error
    with socket.socket(family, kind, protocol) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"--port={port} is taken by another program; name another port."
                ) from error
            if error.errno == errno.EACCES:
                raise InputError(
                    f"--port={port} is for the system; name a port above 1023."
                ) from error
            raise InputError(
                f"--host={host} is no address of this machine ({error.strerror}); check it."
            ) from error
        yield bound


def run(
    app: Callable,
    bound: socket.socket,
    *,
    limits: Limits,
    on_ready: Callable[[], None],
    on_end: Callable[[], None],
) -> None:
    """Serves until a SIGTERM or a Ctrl-C.

    Args:
      app: the ASGI application.
      bound: where to listen.
      limits: of connections.
      on_ready: called when visitors can come.
      on_end: called, in a thread, when no more can come, while those that are there wait.
    """
    make_server(app, limits=limits, on_ready=on_ready, on_end=on_end).run([bound])


def make_server(
    app: Callable,
    *,
    limits: Limits,
    on_ready: Callable[[], None],
    on_end: Callable[[], None],
) -> uvicorn.Server:
    """As `run`, without running it; `should_exit = True` ends it from another thread."""

    class Connection(_Connection):
        most = limits.connections
        timeout_s = limits.patience_seconds
        send_s = limits.send_seconds

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        # uvicorn's log tells paths, and with errors what they quote; the app has its own.
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # The person in work has its time twice in the worst case (see Jobs.close).
        timeout_graceful_shutdown=round(limits.shutdown_seconds) + 5,
    )
    return _Server(config, on_ready, on_end)


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], on_end: Callable[[], None]
    ):
        super().__init__(config)
        self._on_ready = on_ready
        self._on_end = on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.ensure_future(asyncio.to_thread(self._on_end))
        await super().shutdown(sockets)
        await ending

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again in the end: before temporary folders are removed.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {entry: signal.signal(entry, self.handle_exit) for entry in signals}
        try:
            yield
        finally:
            for item, handler in before.items():
                signal.signal(item, handler)


class _Connection(H11Protocol):
    """A connection that must ask and listen in time; uvicorn itself waits for ever."""

    most: int
    timeout_s: float
    send_s: float
    _unheard: asyncio.TimerHandle | None = None
    _silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()
        self._stop_sending()

    def pause_writing(self) -> None:
        super().pause_writing()
        # What is written already would stay in memory as long as the visitor likes.
        self._unheard = self.loop.call_later(self.send_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_sending()

    def _stop_sending(self) -> None:
        if self._unheard is not None:
            self._unheard.cancel()
            self._unheard = None

    def _watch(self) -> None:
        """Starts the clock where a request's head is due, and stops it where one has come."""
        if not self._is_idle():
            self._stop_watching()
        elif self._silence is None:
            self._silence = self.loop.call_later(self.timeout_s, self._close_if_idle)

    def _stop_watching(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        self._silence = None
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()
