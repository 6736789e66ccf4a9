"""What the node requests of other DICOM application entities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made when it is imported
    ComprehensiveSRStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)

from drenet_jax.pacs.peer_error import PeerError
from drenet_jax.pacs.settings import NodeSettings, Peer

_RESULT_CLASSES = (ComprehensiveSRStorage, SecondaryCaptureImageStorage)
_SYNTAXES: list[str | pydicom.uid.UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
_REQUEST_COMMITMENT = 1
_PENDING = (0xFF00, 0xFF01)


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

    def request_commitment(self, files: Sequence[Path], transaction_uid: str) -> None:
        """Requests storage commitment of files; the answer comes to the receiver.

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
        with self._associated([build_context(StorageCommitmentPushModel)]) as association:
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

    def count_ct(self, study_uid: str) -> int | None:
        """The number of CT instances that the peer has of a study; None if it does not say.

        Raises:
          PeerError: it cannot be reached, or does not answer.
        """
        query = Dataset()
        query.QueryRetrieveLevel = "SERIES"
        query.StudyInstanceUID = study_uid
        query.SeriesInstanceUID = ""
        query.Modality = "CT"
        query.NumberOfSeriesRelatedInstances = ""
        model = StudyRootQueryRetrieveInformationModelFind
        numbers = []
        try:
            with self._associated([build_context(model)]) as association:
                for answer, match in association.send_c_find(query, model):
                    code = answer.get("Status")
                    if code in _PENDING and match is not None:
                        # Not all peers filter by what is no key of theirs.
                        if match.get("Modality", "CT") == "CT":
                            numbers.append(match.get("NumberOfSeriesRelatedInstances"))
                    elif code != 0:
                        raise PeerError("it did not answer the query")
        except (ValueError, RuntimeError) as error:
            raise PeerError("it does not take queries of series") from error
        if not numbers or None in numbers:
            return None
        return sum(map(int, numbers))

    def _associated(self, contexts: list) -> _Association:
        return _Association(self._entity, self._peer, contexts, self._tls)


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

    def __init__(self, entity: AE, peer: Peer, contexts: list, tls: object):
        self._open = lambda: entity.associate(
            peer.host,
            peer.port,
            contexts=contexts,
            ae_title=peer.ae_title,
            tls_args=(tls, None) if tls else None,  # type: ignore[arg-type]
        )
        self._association: Association

    def __enter__(self) -> Association:
        self._association = self._open()
        if self._association.is_rejected:
            raise PeerError("it rejected the association")
        if not self._association.is_established:
            raise PeerError("it cannot be reached")
        give_back_answers(self._association)
        return self._association

    def __exit__(self, *error: object) -> None:
        if self._association.is_established:
            self._association.release()
