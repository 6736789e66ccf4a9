"""Hostile peers by how they connect, and slow ones."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

from pacs import hostile_pdus as pdus
from pacs.hostile_pdus import ECHO
from pacs.hostile_peer import (
    ABORT_REQUEST,
    RELEASE_REQUEST,
    REQUEST,
    Peer,
    kind,
    many_instances,
    new_uid,
    play,
    slow_kind,
)

# Connections.


@kind
def fifty_aborted_associations(peer: Peer) -> None:
    for _ in range(50):
        with peer.associated() as connection:
            connection.sendall(ABORT_REQUEST)


@kind
def two_hundred_connections_that_close(peer: Peer) -> None:
    for _ in range(200):
        with peer.connected():
            pass


@kind
def connections_that_are_reset(peer: Peer) -> None:
    for content in (b"", REQUEST[:50], REQUEST, REQUEST + pdus.command(ECHO, 0x0030)):
        with peer.connected() as connection:
            connection.sendall(content)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@kind
def half_closed_connections(peer: Peer) -> None:
    uid = new_uid()
    instance = pdus.store(pdus.image(uid), sop_uid=uid)
    for content in (b"", REQUEST[:50], REQUEST, REQUEST + instance[:200], REQUEST + instance):
        with peer.connected() as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            play(connection, b"")


@kind
def more_idle_connections_than_are_allowed(peer: Peer) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            with contextlib.suppress(OSError):
                stack.enter_context(peer.connected())


@kind
def more_associations_than_are_allowed(peer: Peer) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            with contextlib.suppress(OSError):
                stack.enter_context(peer.associated())


# Of some seconds each.


@slow_kind
def an_association_that_is_idle(peer: Peer) -> None:
    with peer.associated() as connection:
        play(connection, b"", wait_s=30)


@slow_kind
def a_connection_that_is_idle(peer: Peer) -> None:
    with peer.connected() as connection:
        play(connection, b"", wait_s=30)


def _slowly(
    connection: socket.socket, content: bytes, *, step: int = 1, pause_s: float = 0.1
) -> None:
    with contextlib.suppress(OSError):
        for start in range(0, len(content), step):
            connection.sendall(content[start : start + step])
            time.sleep(pause_s)
        play(connection, b"", wait_s=15)


@slow_kind
def a_request_byte_by_byte(peer: Peer) -> None:
    with peer.connected() as connection:
        _slowly(connection, REQUEST)


@slow_kind
def a_header_byte_by_byte(peer: Peer) -> None:
    with peer.associated() as connection:
        _slowly(connection, pdus.command(ECHO, 0x0030)[:6], pause_s=3)


@slow_kind
def a_command_byte_by_byte(peer: Peer) -> None:
    with peer.associated() as connection:
        _slowly(connection, pdus.command(ECHO, 0x0030))


@slow_kind
def a_data_set_byte_by_byte(peer: Peer) -> None:
    uid = new_uid()
    whole = pdus.store(pdus.image(uid, after=pdus.element(0x00090010, bytes(400))), sop_uid=uid)
    with peer.associated() as connection:
        connection.sendall(whole[:-350])
        _slowly(connection, whole[-350:])


@slow_kind
def a_data_set_in_slow_pieces(peer: Peer) -> None:
    """Each PDU is fast enough: it stays, and is whole in the end."""
    uid = new_uid()
    content = pdus.image(uid, study_uid=f"{uid}.7", after=pdus.element(0x00090010, bytes(400)))
    with peer.associated() as connection:
        for part in pdus.store(content, sop_uid=uid, most=50).split(b"\x04\x00\x00\x00\x00")[1:]:
            connection.sendall(b"\x04\x00\x00\x00\x00" + part)
            time.sleep(0.5)
        connection.sendall(RELEASE_REQUEST)
        play(connection, b"", wait_s=5)


@slow_kind
def a_peer_that_does_not_read(peer: Peer) -> None:
    """Answers fill its window until the node gives up."""
    with peer.associated() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.settimeout(20)
        with contextlib.suppress(OSError):
            for _ in range(2000):
                connection.sendall(pdus.command(ECHO, 0x0030, sop_class=b"1.2.840.10008.1.1") * 20)


@slow_kind
def echos_for_a_while(peer: Peer) -> None:
    with peer.associated() as connection:
        for _ in range(20):
            play(connection, pdus.command(ECHO, 0x0030), wait_s=0.5)


@slow_kind
def idle_connections_for_a_while(peer: Peer) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            with contextlib.suppress(OSError):
                stack.enter_context(peer.connected())
        time.sleep(15)


@slow_kind
def two_thousand_instances_without_waiting(peer: Peer) -> None:
    with peer.associated() as connection:
        connection.settimeout(60)
        play(connection, many_instances(2000), wait_s=5)
