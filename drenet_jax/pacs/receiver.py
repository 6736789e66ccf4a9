"""The DICOM server: verification (C-ECHO), storage (C-STORE) and answers to storage commitment.

pynetdicom does the protocol. Added here is what it leaves to its user: an end of each connection
that leaves no thread, socket or file behind; limits are in `connections`.
"""

from __future__ import annotations

import logging
import sqlite3
import tempfile
import threading
import time
import warnings
from typing import Any, cast

import pynetdicom
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE, A_RELEASE
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    StorageCommitmentPushModel,
    Verification,
)

from drenet_jax.ct.dicom.headers import CT_CLASSES
from drenet_jax.errors import InputError
from drenet_jax.pacs import node_status
from drenet_jax.pacs.connections import Server, Traffic, count
from drenet_jax.pacs.dicom_peer import OnCommitment, take_commitment
from drenet_jax.pacs.instance_files import read_instance_header
from drenet_jax.pacs.refusals import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, Refused
from drenet_jax.pacs.settings import NodeSettings
from drenet_jax.pacs.study_database import DIMSE
from drenet_jax.pacs.study_queue import StudyQueue
from drenet_jax.private_log import log_error, logger

SUCCESS = 0x0000
_LONGEST_COMMENT = 64

# Refused instances of one association that are noted: one is enough to keep a study from being
# complete.
_MOST_NOTED = 1000
_PROCESSING_FAILURE = 0x0110

# For what is still open when the node ends.
_CLOSE_S = 2.0
_POLL_S = 0.01

# A-ASSOCIATE-RJ (PS3.8, 9.3.4): permanent, by the user of the service, calling AE title.
_CALLING_AE_TITLE = (0x01, 0x01, 0x03)


class Receiver:
    """The listening application entity.

    Args:
      queue: takes what is received.
      ae_title: of this node.
      host, port: to listen on; port 0 is any free one.
      settings: of the node.
      on_commitment: takes answers to storage commitment.

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
        on_commitment: OnCommitment,
    ):
        self._queue = queue
        self._settings = settings
        self._on_commitment = on_commitment
        self._traffic: dict[Association, Traffic] = {}
        # Associations that ended, whether they were released, and when, if not noted yet.
        self._ends: list[tuple[Traffic, bool, float]] = []
        self._ends_lock = threading.Lock()
        pynetdicom._config.STORE_RECV_CHUNKED_DATASET = True
        # Its log has AE titles, UIDs and data sets.
        pynetdicom._config.LOG_HANDLER_LEVEL = "none"
        for name in ("pynetdicom", "pydicom"):
            logging.getLogger(name).propagate = False
        # pydicom's warnings quote values.
        warnings.simplefilter("ignore")
        threading.excepthook = _on_thread_error
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
        for association in list(self._traffic):
            association.abort(block=False)
        end_s = time.monotonic() + _CLOSE_S
        while self._traffic and time.monotonic() < end_s:
            time.sleep(_POLL_S)
        # Of peers that are slow: their threads would keep the process.
        for traffic in list(self._traffic.values()):
            traffic.shut()

    def _make_server(self, ae_title: str, host: str, port: int) -> Server:
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
            server = entity.make_server(
                (host, port),
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._on_requested),
                    (evt.EVT_REJECTED, lambda event: count("rejected")),
                    (evt.EVT_ACCEPTED, lambda event: count("accepted")),
                    (evt.EVT_ACSE_RECV, self._on_acse),
                    (evt.EVT_C_ECHO, lambda event: SUCCESS),
                    (evt.EVT_C_STORE, self._on_store),
                    (evt.EVT_N_EVENT_REPORT, take_commitment, [self._on_commitment]),
                ],
                server_class=Server,
                settings=settings,
                serve=self._serve,
            )
            return cast(Server, server)
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"--host={host} --port={port} cannot be listened on "
                f"({getattr(error, 'strerror', None) or error}); use another address or port."
            ) from error

    def _serve(self, association: Association) -> None:
        """Runs an association from its start to its end, in the thread of its connection."""
        traffic = self._traffic[association] = Traffic(association, self._settings)
        try:
            association.start()
            association.join()
        finally:
            # Where one of its two threads failed, the other one is still there.
            association.dul.kill_dul()
            traffic.shut()
            if association.dul.is_alive():
                association.dul.join()
            traffic.remove_files()
            self._note_end(traffic, is_released=False)
            del self._traffic[association]

    def _on_requested(self, event: Event) -> None:
        """Rejects a pair of AE title and address that may not send."""
        allowed = self._settings.allowed_senders
        requestor = event.assoc.requestor
        request = cast(A_ASSOCIATE, requestor.primitive)
        pair = (request.calling_ae_title.strip(), requestor.address)
        if allowed and pair not in {(peer.ae_title, peer.host) for peer in allowed}:
            event.assoc.acse.send_reject(*_CALLING_AE_TITLE)
            count("rejected")
            event.assoc.kill()  # once the rejection is sent

    def _on_acse(self, event: Event) -> None:
        """Notes a release before it is confirmed: a sender that has seen it sends nothing again."""
        dimse = event.assoc.dimse
        primitive: object = event.primitive  # type: ignore[attr-defined]  # of this event
        if isinstance(primitive, A_RELEASE) and primitive.result is None:
            is_all = dimse.message is None and dimse.msg_queue.empty()
            self._note_end(self._traffic[event.assoc], is_released=is_all)

    def _note_end(self, traffic: Traffic, *, is_released: bool) -> None:
        if traffic.is_ended:
            return
        traffic.is_ended = True
        if not is_released:
            count("broken_off")
        with self._ends_lock:
            self._ends.append((traffic, is_released, time.time()))
            try:
                while self._ends:
                    ended, is_released, ended_s = self._ends[0]
                    self._queue.note_association_end(
                        ended.association,
                        ended.began_s,
                        is_released=is_released,
                        ended_s=ended_s,
                        refused=ended.refused,
                    )
                    del self._ends[0]
            except sqlite3.Error as error:
                # Such as a full disk. Noted with the next one; nothing is complete before.
                log_error(error)

    def _on_store(self, event: Event) -> int | Dataset:
        try:
            self._store(event, self._traffic[event.assoc])
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
        except Exception as error:
            node_status.INSTANCES.labels("refused").inc()
            log_error(error)
            return _PROCESSING_FAILURE
        node_status.INSTANCES.labels("stored").inc()
        return SUCCESS

    def _store(self, event: Event, traffic: Traffic) -> None:
        path = event.dataset_path
        request = cast(C_STORE, event.request)
        uids = (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID)
        try:
            if path is None:
                raise ValueError("a request without a data set")
            header = read_instance_header(path)
            if (header.sop_class, header.sop_uid) != uids:
                raise ValueError("a data set whose UIDs differ from those of its request")
        except ValueError as error:
            # No study is known that it could be noted with.
            if len(traffic.refused) < _MOST_NOTED:
                traffic.refused[str(request.AffectedSOPInstanceUID)] = str(error)
            raise Refused(CANNOT_UNDERSTAND, str(error)) from error
        self._queue.accept(path, header, DIMSE, traffic.association)


def _on_thread_error(arguments: threading.ExceptHookArgs) -> None:
    # Python prints a traceback. In pynetdicom's threads it is what a peer sent.
    if not isinstance(arguments.thread, Association | DULServiceProvider):
        if arguments.exc_value is not None:
            log_error(arguments.exc_value)
        return
    count("failed")
    if isinstance(arguments.thread, DULServiceProvider):
        # The association's thread waits for a request from there.
        cast(Any, arguments.thread.to_user_queue).put(None)
