"""What the node requests of other DICOM application entities."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    ComprehensiveSRStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)

from drenet_jax.ct.dicom.headers import CT_CLASSES
from drenet_jax.pacs.peer_error import PeerError
from drenet_jax.pacs.settings import NodeSettings, Peer

_RESULT_CLASSES = (ComprehensiveSRStorage, SecondaryCaptureImageStorage)
_SYNTAXES: list[str | pydicom.uid.UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_REQUEST_COMMITMENT = 1
_PENDING = (0xFF00, 0xFF01)
_COMMITMENT_WAIT_S = 0.5

# Of N-EVENT-REPORT: the event that some were not committed, and statuses (PS3.7, annex C).
_SOME_FAILED = 2
_SUCCESS = 0x0000
_NOT_RECOGNISED = 0x0112  # no such SOP instance
_INVALID_ARGUMENT = 0x0115

# Takes the transaction UID and the SOP instance UIDs that were not committed; returns whether the
# transaction is known.
OnCommitment = Callable[[str, list[str]], bool]


class DicomPeer:
    """What is requested of a peer: storage, storage commitment, and counts of instances."""

    def __init__(self, peer: Peer, ae_title: str, settings: NodeSettings):
        """A peer; no connection is made yet.

        Args:
          peer: it.
          ae_title: of this node.
          settings: of the node.
        """
        self._peer = peer
        self._tls = settings.client_tls()
        self._entity = AE(ae_title)
        self._entity.acse_timeout = self._entity.network_timeout = settings.network_seconds
        self._entity.dimse_timeout = self._entity.connection_timeout = settings.network_seconds

    def store(self, files: Sequence[Path], on_stored: Callable[[Path], None]) -> None:
        """Sends files.

        Args:
          files: to send.
          on_stored: called for each file that the peer has taken.

        Raises:
          PeerError: the peer has not taken all of them.
        """
        contexts = [build_context(sop_class, _SYNTAXES) for sop_class in _RESULT_CLASSES]
        with self._associated(contexts) as association:
            for file in files:
                try:
                    answer = association.send_c_store(pydicom.dcmread(file))
                except (ValueError, RuntimeError) as error:
                    raise PeerError("it does not take structured reports or images") from error
                code = answer.get("Status")
                if code is None:
                    raise PeerError("it ended the association")
                # Warnings (0xBxxx) say that it was stored, with changes. What it has already, it
                # has from here.
                if code != 0 and code >> 12 != 0xB and code != 0x0111:
                    raise PeerError(f"it refused a result with status 0x{code:04X}")
                on_stored(file)

    def request_commitment(
        self, files: Sequence[Path], transaction_uid: str, on_commitment: OnCommitment
    ) -> None:
        """Requests storage commitment of files.

        The answer comes to the receiver, or, of some peers, over the association of the request,
        which stays open for it a little.

        Args:
          files: that the peer has got.
          transaction_uid: of the request.
          on_commitment: takes the answer.

        Raises:
          PeerError: the peer does not take the request.
        """
        request = Dataset()
        request.TransactionUID = transaction_uid
        request.ReferencedSOPSequence = []
        for file in files:
            meta = pydicom.filereader.read_file_meta_info(file)
            item = Dataset()
            item.ReferencedSOPClassUID = meta.MediaStorageSOPClassUID
            item.ReferencedSOPInstanceUID = meta.MediaStorageSOPInstanceUID
            request.ReferencedSOPSequence.append(item)
        is_answered = threading.Event()

        def on_report(event: evt.Event) -> tuple[int, None]:
            is_answered.set()
            return take_commitment(event, on_commitment)

        contexts = [build_context(StorageCommitmentPushModel)]
        handlers = [(evt.EVT_N_EVENT_REPORT, on_report)]
        with self._associated(contexts, handlers) as association:
            answer, _ = association.send_n_action(
                request,
                _REQUEST_COMMITMENT,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
            code = answer.get("Status")
            if code != 0:
                text = "no status" if code is None else f"status 0x{code:04X}"
                raise PeerError(f"it answered the storage commitment with {text}")
            is_answered.wait(_COMMITMENT_WAIT_S)

    def count_ct(self, study_uid: str) -> int | None:
        """The number of CT instances that the peer has of a study; None if it does not say.

        Counted are the SOP classes that the node takes: dose reports, which are secondary captures
        in a CT series, are not sent to it.

        Raises:
          PeerError: it cannot be reached, or does not answer.
        """
        of_series = Dataset()
        of_series.QueryRetrieveLevel = "SERIES"
        of_series.StudyInstanceUID = study_uid
        of_series.SeriesInstanceUID = ""
        of_series.Modality = "CT"
        try:
            contexts = [build_context(StudyRootQueryRetrieveInformationModelFind)]
            with self._associated(contexts) as association:
                # Not all peers filter by what is no key of theirs.
                series_uids = [
                    str(series.get("SeriesInstanceUID", ""))
                    for series in _matches(association, of_series)
                    if series.get("Modality", "CT") == "CT"
                ]
                n_instances = 0
                for series_uid in series_uids:
                    of_instances = Dataset()
                    of_instances.QueryRetrieveLevel = "IMAGE"
                    of_instances.StudyInstanceUID = study_uid
                    of_instances.SeriesInstanceUID = series_uid
                    of_instances.SOPInstanceUID = ""
                    of_instances.SOPClassUID = ""
                    n_instances += sum(
                        # The class is optional (PS3.4, C.6.2.1.4).
                        not instance.get("SOPClassUID") or instance.SOPClassUID in CT_CLASSES
                        for instance in _matches(association, of_instances)
                    )
        except (ValueError, RuntimeError) as error:
            raise PeerError("it does not take queries of series") from error
        return n_instances or None

    def _associated(self, contexts: list, handlers: Sequence = ()) -> _Association:
        return _Association(self._entity, self._peer, contexts, self._tls, handlers)


def _matches(association: Association, query: Dataset) -> Iterator[Dataset]:
    """What a query finds.

    Raises:
      PeerError: the peer did not answer it to the end.
    """
    for answer, match in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
        code = answer.get("Status")
        if code in _PENDING and match is not None:
            yield match
        elif code != 0:
            raise PeerError("it did not answer the query")


def take_commitment(event: evt.Event, on_commitment: OnCommitment) -> tuple[int, None]:
    """The response to the answer to a storage commitment (PS3.4, J.3.3).

    Args:
      event: the N-EVENT-REPORT.
      on_commitment: takes the answer.
    """
    report = event.event_information
    failed = [
        str(item.get("ReferencedSOPInstanceUID", ""))
        for item in report.get("FailedSOPSequence", None) or ()
    ]
    if event.event_type == _SOME_FAILED and not failed:
        return _INVALID_ARGUMENT, None
    is_known = on_commitment(str(report.get("TransactionUID", "")), failed)
    return (_SUCCESS if is_known else _NOT_RECOGNISED), None


def give_back_answers(association: Association) -> None:
    """Lets `send_*` get each answer.

    pynetdicom's thread of the association, which serves requests of the peer, now and then takes an
    answer that `send_*` has just begun to wait for, and drops it.
    """
    serve = association._serve_request

    def serve_requests_only(message: Any, context_id: int) -> None:
        if message.is_valid_request:
            serve(message, context_id)
        else:
            association.dimse.msg_queue.put((context_id, message))

    association._serve_request = serve_requests_only  # type: ignore[assignment, method-assign]


class _Association:
    """An association for a `with` block; a PeerError if there is none."""

    def __init__(self, entity: AE, peer: Peer, contexts: list, tls: object, handlers: Sequence):
        self._open = lambda: entity.associate(
            peer.host,
            peer.port,
            contexts=contexts,
            ae_title=peer.ae_title,
            tls_args=(tls, None) if tls else None,  # type: ignore[arg-type]
            evt_handlers=list(handlers),
        )
        self._association: Association

    def __enter__(self) -> Association:
        self._association = self._open()
        if not self._association.is_established:
            # pynetdicom leaves it open.
            connection: Any = self._association.dul.socket
            if connection is not None and connection.socket is not None:
                connection.socket.close()
        if self._association.is_rejected:
            raise PeerError("it rejected the association")
        if not self._association.is_established:
            raise PeerError("it cannot be reached")
        give_back_answers(self._association)
        return self._association

    def __exit__(self, *error: object) -> None:
        if self._association.is_established:
            self._association.release()
