"""Delivery, limits and retention: what is tried again, what is parked, and what is removed."""

from __future__ import annotations

import collections
import contextlib
import socket
from collections.abc import Iterator

import pydicom
import pytest
from pacs.nodes import Archive, wait_until
from pacs.queues import accept, answer, settings_of
from pydicom.uid import generate_uid

from drenet_jax.pacs.dicom_peer import DicomPeer
from drenet_jax.pacs.refusals import OUT_OF_RESOURCES, Refused
from drenet_jax.pacs.sender import Sender
from drenet_jax.pacs.settings import NodeSettings, Peer
from drenet_jax.pacs.study_database import DIMSE, DONE, PARKED, READY, RECEIVING, SENDING
from drenet_jax.pacs.study_queue import StudyQueue


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def _sender(queue: StudyQueue, port: int, settings: NodeSettings) -> Iterator[None]:
    peer = DicomPeer(Peer("ARCHIVE", "127.0.0.1", port), "DRENET", settings)
    sender = Sender(queue, {DIMSE: peer.store}, None, settings)
    sender.start()
    try:
        yield
    finally:
        sender.stop()


@pytest.fixture
def settings():
    return settings_of(retry_seconds=0.3, retry_most_seconds=1.0, network_seconds=5.0)


@pytest.fixture
def queue(tmp_path, settings):
    queue = StudyQueue(tmp_path / "spool", settings)
    yield queue
    queue.database.close()


def _add_answer(queue: StudyQueue) -> str:
    uid = generate_uid()
    accept(queue, uid, generate_uid())
    assert answer(queue, uid)
    return uid


def _state(queue: StudyQueue, uid: str) -> str:
    study = queue.database.find(uid)
    assert study is not None
    return study.state


# pynetdicom leaves a socket that was not connected to the garbage collection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_destination_that_was_away_gets_each_result_once(queue, settings):
    port = _free_port()
    uids = [_add_answer(queue) for _ in range(2)]
    with _sender(queue, port, settings):
        wait_until(lambda: all(queue.database.find(uid).retries >= 2 for uid in uids))
        with contextlib.closing(Archive(port)) as archive:
            wait_until(lambda: {_state(queue, uid) for uid in uids} == {DONE})
            counts = collections.Counter(dataset.SOPInstanceUID for dataset in archive.stored)
            studies = collections.Counter(dataset.StudyInstanceUID for dataset in archive.stored)
    assert set(counts.values()) == {1}
    assert studies == dict.fromkeys(uids, 3)


def test_what_was_taken_is_not_sent_again_with_what_was_refused(queue, settings, archive):
    uid = _add_answer(queue)
    tries: collections.Counter = collections.Counter()

    def refuse_the_last(dataset) -> int:
        tries[dataset.SOPInstanceUID] += 1
        is_last = dataset.SOPInstanceUID == list(tries)[-1] and len(tries) == 3
        return 0xA700 if is_last and tries[dataset.SOPInstanceUID] < 3 else 0

    archive.answer = refuse_the_last
    with _sender(queue, archive.port, settings):
        wait_until(lambda: _state(queue, uid) == DONE)
    assert list(tries.values()) == [1, 1, 3]
    assert len(archive.stored) == 3


def test_results_that_cannot_be_delivered_are_parked_and_go_when_the_study_comes_again(
    tmp_path, archive
):
    settings = settings_of(
        retry_seconds=0.1, retry_most_seconds=0.1, retry_hours=1e-4, network_seconds=5.0
    )
    queue = StudyQueue(tmp_path / "spool", settings)
    uid, sop_uid = generate_uid(), generate_uid()
    accept(queue, uid, sop_uid)
    answer(queue, uid)
    archive.answer = lambda dataset: 0xA700
    with _sender(queue, archive.port, settings):
        wait_until(lambda: _state(queue, uid) == PARKED)
        reason = queue.database.find(uid).reason
        assert reason == "the results were not delivered: it refused a result with status 0xA700"
        archive.answer = lambda dataset: 0
        accept(queue, uid, sop_uid)
        assert _state(queue, uid) == RECEIVING
        queue.move(queue.database.find(uid), READY)
        queue.send_again(queue.database.find(uid))
        wait_until(lambda: _state(queue, uid) == DONE)
    assert len(archive.stored) == 3
    queue.database.close()


def test_a_study_whose_results_are_gone_does_not_hold_up_the_others(queue, settings, archive):
    broken, whole = (_add_answer(queue) for _ in range(2))
    for path in queue.results(queue.database.find(broken)).iterdir():
        path.unlink()
    with _sender(queue, archive.port, settings):
        wait_until(lambda: _state(queue, whole) == DONE)
        assert _state(queue, broken) == SENDING


def test_an_instance_that_comes_during_the_delivery_is_not_overtaken(queue, settings, archive):
    uid = _add_answer(queue)

    def store(dataset) -> int:
        if len(archive.stored) == 1:
            accept(queue, uid, generate_uid())
            answer(queue, uid)  # of both instances
        return 0

    archive.answer = store
    with _sender(queue, archive.port, settings):
        wait_until(lambda: _state(queue, uid) == DONE)
    files = queue.results(queue.database.find(uid)).iterdir()
    second = {pydicom.dcmread(file).SOPInstanceUID for file in files}
    assert second <= {dataset.SOPInstanceUID for dataset in archive.stored}


def test_an_old_view_of_a_study_changes_nothing(queue):
    uid = _add_answer(queue)
    queue.move(queue.database.find(uid), READY)
    before = queue.database.find(uid)
    accept(queue, uid, generate_uid())

    queue.send_again(before)
    assert not queue.begin_commitment(before, "1.2", 0.0)
    assert not queue.move(before, DONE)

    assert _state(queue, uid) == RECEIVING


def test_a_full_spool_refuses_until_old_studies_are_removed(tmp_path):
    # Room for two instances of 1000 bytes.
    settings = settings_of(spool_gib=2500 / (1 << 30), keep_hours=1e-5)
    queue = StudyQueue(tmp_path / "spool", settings)
    first, second = generate_uid(), generate_uid()
    accept(queue, first, generate_uid())
    accept(queue, first, generate_uid())
    late = generate_uid()
    with pytest.raises(Refused, match="the spool holds") as refusal:
        accept(queue, second, late)
    assert refusal.value.status == OUT_OF_RESOURCES
    assert len(list(queue.images(queue.database.find(first)).iterdir())) == 2
    folder = queue.images(queue.database.find(first)).parent

    answer(queue, first)
    queue.move(queue.database.find(first), DONE)
    wait_until(lambda: queue.remove_ended() == 1)

    assert not folder.exists()
    assert queue.n_bytes == 0
    study = accept(queue, second, late)
    assert queue.database.find(second).n_refused == 0
    assert [path.stat().st_size for path in queue.images(study).iterdir()] == [1000]
    assert not list(queue.receiving.glob("tmp*.dcm"))
    queue.database.close()
