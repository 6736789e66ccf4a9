"""The DICOM server: verification (C-ECHO), storage (C-STORE) and answers to storage commitment.

pynetdicom does the protocol. Added here is what it leaves to its user: limits on the size and the
time of a PDU and on the bytes of an instance, and TLS handshakes outside of the accepting thread.
"""

from __future__ import annotations

import logging
import secrets
import socket
import sqlite3
import ssl
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pynetdicom
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    StorageCommitmentPushModel,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from drenet_jax.ct.dicom.headers import CT_CLASSES
from drenet_jax.errors import InputError
from drenet_jax.pacs import node_status
from drenet_jax.pacs.instance_files import read_instance_header
from drenet_jax.pacs.settings import NodeSettings
from drenet_jax.pacs.study_database import DIMSE
from drenet_jax.pacs.study_queue import (
    CANNOT_UNDERSTAND,
    OUT_OF_RESOURCES,
    Refused,
    StudyQueue,
)
from drenet_jax.private_log import log_error, logger

SUCCESS = 0x0000
_LONGEST_COMMENT = 64

# Refused instances of one association that are noted: one is enough to keep a study from being
# complete.
_MOST_NOTED = 1000
_NOT_RECOGNISED = 0x0112  # of N-EVENT-REPORT: no such SOP instance

# What a PDU has beside its data, and the longest association request: some hundred presentation
# contexts with all transfer syntaxes.
_PDU_OVERHEAD_BYTES = 1 << 16

# A-ASSOCIATE-RJ (PS3.8, 9.3.4): permanent, by the user of the service, calling AE title.
_CALLING_AE_TITLE = (0x01, 0x01, 0x03)

# PS3.4, J.3.3: an association's own messages need no more connections than these per place.
_CONNECTIONS_PER_ASSOCIATION = 3


class Receiver:
    """The listening application entity.

    Args:
      queue: takes what is received.
      ae_title: of this node.
      host, port: to listen on; port 0 is any free one.
      settings: of the node.
      on_commitment: called with the transaction UID and the SOP instance UIDs that were not
        committed; returns whether the transaction is known.

    Attributes:
      port: on which it listens.

    Raises:
      InputError: the address or the TLS files cannot be used.
    """

    def __init__(
        self,
        queue: StudyQueue,
        ae_title: str,
        host: str,
        port: int,
        settings: NodeSettings,
        on_commitment: Callable[[str, list[str]], bool],
    ):
        self._queue = queue
        self._settings = settings
        self._on_commitment = on_commitment
        self._traffic: weakref.WeakKeyDictionary[Any, _Traffic] = weakref.WeakKeyDictionary()
        pynetdicom._config.STORE_RECV_CHUNKED_DATASET = True
        # Its log has AE titles, UIDs and data sets.
        pynetdicom._config.LOG_HANDLER_LEVEL = "none"
        logging.getLogger("pynetdicom").propagate = False
        # pynetdicom writes what it receives to the folder of temporary files.
        tempfile.tempdir = str(queue.receiving)
        self._server = self._make_server(ae_title, host, port)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends listening, and aborts what is still open."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def _make_server(self, ae_title: str, host: str, port: int) -> ThreadedAssociationServer:
        settings = self._settings
        entity = AE(ae_title)
        entity.maximum_associations = settings.associations
        entity.maximum_pdu_size = settings.pdu_kib << 10
        entity.acse_timeout = entity.network_timeout = settings.network_seconds
        entity.dimse_timeout = settings.network_seconds
        entity.require_called_aet = True
        entity.add_supported_context(Verification)
        for sop_class in CT_CLASSES:
            entity.add_supported_context(sop_class, pynetdicom.ALL_TRANSFER_SYNTAXES)
        # The destination, which provides the service, opens an association for its answer.
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        try:
            return entity.make_server(
                (host, port),
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, self._on_open),
                    (evt.EVT_REQUESTED, self._on_requested),
                    (evt.EVT_REJECTED, _count, ["rejected"]),
                    (evt.EVT_ACCEPTED, _count, ["accepted"]),
                    (evt.EVT_RELEASED, self._on_released),
                    (evt.EVT_CONN_CLOSE, self._on_close),
                    (evt.EVT_C_ECHO, lambda event: SUCCESS),
                    (evt.EVT_C_STORE, self._on_store),
                    (evt.EVT_N_EVENT_REPORT, self._on_event_report),
                ],
                server_class=_Server,
                settings=settings,
            )
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"--host={host} --port={port} cannot be listened on "
                f"({getattr(error, 'strerror', None) or error}); use another address or port."
            ) from error

    def _on_open(self, event: Event) -> None:
        connection: Any = event.assoc.dul.socket
        traffic = _Traffic(connection.socket, self._settings)
        self._traffic[event.assoc] = traffic
        connection.recv = traffic.receive

    def _on_requested(self, event: Event) -> None:
        """Rejects a pair of AE title and address that may not send."""
        allowed = self._settings.allowed_senders
        requestor = event.assoc.requestor
        request = cast(A_ASSOCIATE, requestor.primitive)
        pair = (request.calling_ae_title.strip(), requestor.address)
        if allowed and pair not in {(peer.ae_title, peer.host) for peer in allowed}:
            event.assoc.acse.send_reject(*_CALLING_AE_TITLE)
            event.assoc.kill()  # once the rejection is sent
            _count(None, "rejected")

    def _on_released(self, event: Event) -> None:
        self._end(event, is_released=True)

    def _on_close(self, event: Event) -> None:
        self._end(event, is_released=False)

    def _end(self, event: Event, *, is_released: bool) -> None:
        traffic = self._traffic.get(event.assoc)
        if traffic is None or traffic.is_ended:
            return
        traffic.is_ended = True
        if not is_released:
            _count(None, "broken_off")
        # What was received of an instance that is not complete.
        message = event.assoc.dimse.message
        if message is not None and message._data_set_file is not None:
            Path(message._data_set_file.name).unlink(missing_ok=True)
        self._note_end(traffic, is_released=is_released)

    def _note_end(self, traffic: _Traffic, *, is_released: bool) -> None:
        try:
            self._queue.note_association_end(
                traffic.association,
                traffic.began_s,
                is_released=is_released,
                refused=traffic.refused,
            )
        except sqlite3.Error as error:
            # Noted after the next start: nothing is complete before.
            log_error(error)

    def _on_store(self, event: Event) -> int | Dataset:
        traffic = self._traffic[event.assoc]
        traffic.n_bytes = 0
        try:
            self._store(event, traffic)
        except Refused as refusal:
            node_status.INSTANCES.labels("refused").inc()
            logger.info("an instance is refused: %s", refusal)
            response = Dataset()
            response.Status = refusal.status
            response.ErrorComment = str(refusal)[:_LONGEST_COMMENT]
            return response
        except (OSError, sqlite3.Error) as error:
            node_status.INSTANCES.labels("refused").inc()
            log_error(error)
            return OUT_OF_RESOURCES
        finally:
            if traffic.is_ended:  # meanwhile, in another thread
                self._note_end(traffic, is_released=False)
        node_status.INSTANCES.labels("stored").inc()
        return SUCCESS

    def _store(self, event: Event, traffic: _Traffic) -> None:
        path = Path(event.dataset_path)
        request = cast(C_STORE, event.request)
        uids = (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID)
        try:
            header = read_instance_header(path)
            if (header.sop_class, header.sop_uid) != uids:
                raise ValueError("a data set whose UIDs differ from those of its request")
        except ValueError as error:
            # No study is known that it could be noted with.
            if len(traffic.refused) < _MOST_NOTED:
                traffic.refused[str(request.AffectedSOPInstanceUID)] = str(error)
            raise Refused(CANNOT_UNDERSTAND, str(error)) from error
        self._queue.accept(path, header, DIMSE, traffic.association)

    def _on_event_report(self, event: Event) -> tuple[int, None]:
        """The answer of the destination to a storage commitment (PS3.4, J.3.3)."""
        report = event.event_information
        failed = [
            str(item.get("ReferencedSOPInstanceUID", ""))
            for item in report.get("FailedSOPSequence", None) or ()
        ]
        is_known = self._on_commitment(str(report.get("TransactionUID", "")), failed)
        return (SUCCESS if is_known else _NOT_RECOGNISED), None


def _count(event: Event | None, outcome: str) -> None:
    node_status.ASSOCIATIONS.labels(outcome).inc()


class _Traffic:
    """What has come over one connection, and in which limits more may come."""

    def __init__(self, connection: socket.socket, settings: NodeSettings):
        self.association = secrets.token_hex(8)
        self.refused: dict[str, str] = {}  # SOP Instance UID -> why
        self.began_s = time.time()
        self.n_bytes = 0  # since the last instance
        self.is_ended = False
        self._socket = connection
        self._settings = settings
        self._is_header = True
        self._deadline_s = 0.0

    def receive(self, n_bytes: int) -> bytearray:
        """In place of AssociationSocket.recv, which waits for as much as a header claims.

        pynetdicom reads the six bytes of a PDU's header first, then as many as that says.

        Raises:
          OSError: the PDU is too long or comes too slowly; the connection ends.
        """
        settings = self._settings
        if self._is_header:
            self._deadline_s = time.monotonic() + settings.network_seconds
        elif n_bytes > (settings.pdu_kib << 10) + _PDU_OVERHEAD_BYTES:
            raise OSError("a PDU that is too long")
        self._is_header = not self._is_header
        self.n_bytes += n_bytes
        if self.n_bytes > (settings.instance_mib << 20) + _PDU_OVERHEAD_BYTES:
            raise OSError("an instance that is too large")
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
        self._socket.settimeout(settings.network_seconds)
        return received


class _Server(ThreadedAssociationServer):
    """Accepts connections within limits; handshakes and refusals cost other peers no time."""

    daemon_threads = True

    def __init__(self, *args: Any, settings: NodeSettings, **kwargs: Any):
        self._settings = settings
        super().__init__(*args, **kwargs)
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
        most = _CONNECTIONS_PER_ASSOCIATION * self._settings.associations
        is_allowed = not allowed or client_address[0] in allowed
        if not is_allowed or len(self.active_associations) >= most:
            _count(None, "refused")
            return False
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # socketserver prints a traceback.
        _count(None, "failed")
