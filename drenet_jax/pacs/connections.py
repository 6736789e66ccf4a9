"""The connections of the receiver, within limits.

Limited are their number, the size and the time of a PDU and the bytes of a message. TLS handshakes
are made outside of the accepting thread.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from drenet_jax.pacs import node_status
from drenet_jax.pacs.settings import NodeSettings

_PDU_HEADER_BYTES = 6

# What a PDU has beside its data, and the longest association request: some hundred presentation
# contexts with all transfer syntaxes.
_PDU_OVERHEAD_BYTES = 1 << 16

# pynetdicom keeps data sets of C-STORE in files, and all else in memory: commands, and answers to
# storage commitment with a hundred bytes for each of some twenty results.
_MOST_IN_MEMORY_BYTES = 1 << 20

# Connections for each association that is allowed: the others get a rejection, which tells their
# peer why, or have not sent a request yet.
_CONNECTIONS_PER_ASSOCIATION = 3

_POLL_S = 0.01

# Senders wait with the last part of a PDU until the one before is acknowledged (Nagle), which Linux
# delays by 40 ms. It returns to that by itself, so this is set again and again.
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)


def count(outcome: str) -> None:
    """Counts a connection by what became of it."""
    node_status.ASSOCIATIONS.labels(outcome).inc()


class Traffic:
    """What has come over one connection, and in which limits more may come.

    Attributes:
      association: identifies it in the queue.
      began_s: when, in seconds since 1970.
      refused: SOP Instance UID -> why, of what names no study.
      is_ended: its end is noted.
    """

    def __init__(self, association: Association, settings: NodeSettings):
        self.association = secrets.token_hex(8)
        self.refused: dict[str, str] = {}
        self.began_s = time.time()
        self.is_ended = False
        self._association = association
        self._settings = settings
        self._n_bytes = 0  # of the message that is being received
        self._deadline_s = 0.0
        connection = cast(AssociationSocket, association.dul.socket)
        self._socket = cast(socket.socket, connection.socket)
        self._serve_request = association._serve_request
        association._serve_request = self._serve_and_clean  # type: ignore[assignment, method-assign]
        connection.recv = self._receive  # type: ignore[assignment, method-assign]

    def shut(self) -> None:
        """Ends the connection, and what waits for it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def remove_files(self) -> None:
        """Removes what has been received of instances that the queue has not seen."""
        dimse = self._association.dimse
        _remove(dimse.message and dimse.message._data_set_file)
        for _, message in dimse.msg_queue.queue:
            _remove(getattr(message, "_dataset_file", None))

    def _serve_and_clean(self, message: Any, context_id: int) -> None:
        # pynetdicom leaves the file of an instance whose command is not valid.
        try:
            self._serve_request(message, context_id)
        finally:
            _remove(getattr(message, "_dataset_file", None))

    def _receive(self, n_bytes: int) -> bytearray:
        """In place of AssociationSocket.recv, which waits for as much as a header claims.

        pynetdicom reads the six bytes of a PDU's header first, then as many as that says.

        Raises:
          OSError: the PDU is too long or comes too slowly; the connection ends.
        """
        settings = self._settings
        if n_bytes == _PDU_HEADER_BYTES:
            self._begin_pdu()
        self._n_bytes += n_bytes
        self._check_size(n_bytes)
        received = bytearray()
        while len(received) < n_bytes:
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0:
                raise OSError("a PDU that comes too slowly")
            self._socket.settimeout(left_s)
            piece = self._socket.recv(min(n_bytes - len(received), 1 << 16))
            if not piece:
                return received
            received += piece
            if _QUICK_ACK is not None:
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
        self._socket.settimeout(settings.network_seconds)
        return received

    def _begin_pdu(self) -> None:
        association = self._association
        # One request at a time is negotiated. What comes ahead waits in the network: each one takes
        # a file here.
        while not association.dimse.msg_queue.empty() and association.is_alive():
            time.sleep(_POLL_S)
        self._deadline_s = time.monotonic() + self._settings.network_seconds
        if association.dimse.message is None:
            self._n_bytes = 0

    def _check_size(self, n_pdu_bytes: int) -> None:
        if n_pdu_bytes > (self._settings.pdu_kib << 10) + _PDU_OVERHEAD_BYTES:
            raise OSError("a PDU that is too long")
        message = self._association.dimse.message
        is_in_file = message is not None and message._data_set_file is not None
        most = self._settings.instance_mib << 20 if is_in_file else _MOST_IN_MEMORY_BYTES
        if self._n_bytes > most + _PDU_OVERHEAD_BYTES:
            raise OSError("a message that is too large")


def _remove(file: Any) -> None:
    if file is not None:
        file.close()
        Path(file.name).unlink(missing_ok=True)


class _Handler(RequestHandler):
    """Stays until the association ends, so that one thread sees all of a connection."""

    def handle(self) -> None:
        cast(Server, self.server).serve(self._create_association())


class Server(ThreadedAssociationServer):
    """Accepts connections within limits; handshakes and refusals cost other peers no time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        *args: Any,
        settings: NodeSettings,
        serve: Callable[[Association], None],
        **kwargs: Any,
    ):
        self._settings = settings
        self._connections = threading.BoundedSemaphore(
            _CONNECTIONS_PER_ASSOCIATION * settings.associations
        )
        self.serve = serve
        super().__init__(*args, **{**kwargs, "request_handler": _Handler})
        self.ssl_context = settings.server_tls()
        # `shutdown` removes it from there.
        self.ae._servers.append(self)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = cast(socket.socket, self.socket).accept()
        connection.settimeout(self._settings.network_seconds)
        if self.ssl_context is not None:
            connection = self.ssl_context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        allowed = {peer.host for peer in self._settings.allowed_senders}
        is_allowed = not allowed or client_address[0] in allowed
        if is_allowed and self._connections.acquire(blocking=False):
            return True
        count("refused")
        return False

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except BaseException:  # such as no more threads
            self._connections.release()
            raise

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            if isinstance(request, ssl.SSLSocket):
                request.do_handshake()
            super().finish_request(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # socketserver prints a traceback.
        count("failed")
