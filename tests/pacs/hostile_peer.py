"""A hostile peer: each kind is a name and what it does to a node's port."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator

from pacs import hostile_pdus as pdus
from pacs.hostile_pdus import ROOT

# How long a peer waits for what the node does.
_PATIENCE_S = 0.3

ABORT_REQUEST = pdus.pdu(pdus.ABORT, bytes(4))
RELEASE_REQUEST = pdus.pdu(pdus.RELEASE, bytes(4))
REQUEST = pdus.request()
_numbers = itertools.count(1)


class Peer:
    """Connections to a node."""

    def __init__(self, port: int):
        self._port = port

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self._port), timeout=5) as connection:
            yield connection

    @contextlib.contextmanager
    def associated(self) -> Iterator[socket.socket]:
        with self.connected() as connection:
            connection.sendall(pdus.request())
            if not _read_pdu(connection).startswith(b"\x02"):
                raise ConnectionError("no association")
            yield connection

    def send(self, content: bytes, *, first: bytes = b"") -> None:
        """Sends bytes on a new connection, and looks what comes for a while."""
        with self.connected() as connection:
            connection.sendall(first)
            play(connection, content)

    def send_in_association(self, content: bytes) -> None:
        with self.associated() as connection:
            play(connection, content)


def play(connection: socket.socket, content: bytes, *, wait_s: float = _PATIENCE_S) -> None:
    """Sends, then reads until the node closes the connection or is silent."""
    # It may close before all is sent.
    with contextlib.suppress(OSError):
        connection.sendall(content)
    with contextlib.suppress(OSError):
        connection.settimeout(wait_s)
        while connection.recv(1 << 16):
            pass


def _read_pdu(connection: socket.socket) -> bytes:
    head = connection.recv(6, socket.MSG_WAITALL)
    return head + connection.recv(int.from_bytes(head[2:], "big"), socket.MSG_WAITALL)


Kind = Callable[[Peer], None]
KINDS: dict[str, Kind] = {}
SLOW_KINDS: dict[str, Kind] = {}


def kind(play_it: Kind) -> Kind:
    KINDS[play_it.__name__] = play_it
    return play_it


def slow_kind(play_it: Kind) -> Kind:
    SLOW_KINDS[play_it.__name__] = play_it
    return play_it


def sends(name: str, content: bytes) -> None:
    """A kind that sends bytes at once."""
    assert name not in KINDS
    KINDS[name] = lambda peer: peer.send(content)


def sends_in_association(name: str, content: bytes | Callable[[], bytes]) -> None:
    """A kind that sends bytes in an accepted association."""
    assert name not in KINDS
    KINDS[name] = lambda peer: peer.send_in_association(
        content if isinstance(content, bytes) else content()
    )


def new_uid() -> str:
    return f"{ROOT}.2.{next(_numbers)}"


def many_instances(n: int) -> bytes:
    uid = new_uid()
    return b"".join(
        pdus.store(pdus.image(f"{uid}.{i}", study_uid=uid), sop_uid=f"{uid}.{i}", message=i)
        for i in range(1, n + 1)
    )
