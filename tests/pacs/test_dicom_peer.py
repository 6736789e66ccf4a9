"""What the node requests of an archive."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator

import pytest
from pacs.nodes import wait_until
from pydicom import Dataset
from pydicom.uid import CTImageStorage, SecondaryCaptureImageStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)

from drenet_jax.pacs.dicom_peer import DicomPeer
from drenet_jax.pacs.peer_error import PeerError
from drenet_jax.pacs.settings import NodeSettings, Peer


@contextlib.contextmanager
def _archive(*handlers) -> Iterator[DicomPeer]:
    """A peer that answers with these handlers."""
    entity = AE("ARCHIVE")
    entity.add_supported_context(StorageCommitmentPushModel)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers))
    config = importlib.import_module("drenet_jax.configs.node").get_config()
    settings = NodeSettings.from_dict({**config.to_dict(), "network_seconds": 5.0})
    try:
        yield DicomPeer(Peer("ARCHIVE", *server.server_address[:2]), "DRENET", settings)
    finally:
        server.shutdown()


@pytest.fixture
def result(tmp_path):
    """A file to be committed."""
    dataset = Dataset()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.ensure_file_meta()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.save_as(tmp_path / "result.dcm", enforce_file_format=True)
    return tmp_path / "result.dcm"


@pytest.mark.parametrize("is_failed", [False, True])
def test_a_commitment_may_be_answered_over_the_association_of_its_request(result, is_failed):
    answered: list[tuple[str, list[str]]] = []
    reports = []

    def on_action(event):
        request = event.action_information
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        rows = list(request.ReferencedSOPSequence)
        if is_failed:
            rows[0].FailureReason = 0x0110
            report.FailedSOPSequence = rows
        else:
            report.ReferencedSOPSequence = rows

        def send():
            status, _ = event.assoc.send_n_event_report(
                report,
                2 if is_failed else 1,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
            reports.append(status.Status)

        threading.Timer(0.1, send).start()
        return 0x0000, None

    with _archive((evt.EVT_N_ACTION, on_action)) as peer:
        peer.request_commitment(
            [result], "1.2.3", lambda uid, failed: bool(answered.append((uid, failed)) or True)
        )

    [(transaction_uid, failed)] = answered
    assert transaction_uid == "1.2.3"
    assert len(failed) == int(is_failed)
    wait_until(lambda: reports == [0])


def test_a_commitment_that_is_refused(result):
    with (
        _archive((evt.EVT_N_ACTION, lambda event: (0x0110, None))) as peer,
        pytest.raises(PeerError, match="status 0x0110"),
    ):
        peer.request_commitment([result], "1.2.3", lambda uid, failed: True)


def _on_find(with_classes: bool):
    """Two CT series, of 3 images and of 2 with a dose report, and a series of reports."""
    ct, dose = CTImageStorage, SecondaryCaptureImageStorage
    series = {"1.1": ("CT", [ct] * 3), "1.2": ("CT", [ct, ct, dose]), "1.3": ("SR", [dose])}

    def on_find(event):
        query = event.identifier
        if query.QueryRetrieveLevel == "SERIES":
            for uid, (modality, _) in series.items():
                match = Dataset()
                match.SeriesInstanceUID, match.Modality = uid, modality
                yield 0xFF00, match
            return
        for number, sop_class in enumerate(series[query.SeriesInstanceUID][1]):
            match = Dataset()
            match.SOPInstanceUID = f"{query.SeriesInstanceUID}.{number}"
            if with_classes:
                match.SOPClassUID = sop_class
            yield 0xFF00, match

    return on_find


@pytest.mark.parametrize(("with_classes", "expected"), [(True, 5), (False, 6)])
def test_counted_are_ct_images(with_classes, expected):
    with _archive((evt.EVT_C_FIND, _on_find(with_classes))) as peer:
        assert peer.count_ct("1.2.3.4") == expected


def test_a_study_that_the_peer_does_not_know_has_no_count():
    with _archive((evt.EVT_C_FIND, lambda event: iter(()))) as peer:
        assert peer.count_ct("1.2.3.4") is None


# pynetdicom drops its socket without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_peer_that_is_away():
    with _archive() as peer:
        pass
    with pytest.raises(PeerError, match="cannot be reached"):
        peer.count_ct("1.2.3.4")
