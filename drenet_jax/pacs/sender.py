"""Delivers results: C-STORE to the destination, with storage commitment, or STOW-RS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pydicom
from pydicom.uid import generate_uid

from drenet_jax.pacs.completeness import park
from drenet_jax.pacs.dicom_peer import DicomPeer
from drenet_jax.pacs.node_status import DELIVERIES
from drenet_jax.pacs.peer_error import PeerError
from drenet_jax.pacs.settings import NodeSettings
from drenet_jax.pacs.study_database import COMMITTING, DONE, SENDING, Study
from drenet_jax.pacs.study_queue import StudyQueue
from drenet_jax.private_log import log_error, logger

_POLL_S = 1.0

# Delivers files, calling back for each one that the destination has taken.
Deliver = Callable[[Sequence[Path], Callable[[Path], None]], None]


class Sender:
    """The thread that delivers results.

    Args:
      queue: of studies.
      deliveries: how to deliver, by the study's origin; results of others stay in the spool.
      commitment: of whom storage commitment is requested, or None.
      settings: of the node.
    """

    def __init__(
        self,
        queue: StudyQueue,
        deliveries: Mapping[str, Deliver],
        commitment: DicomPeer | None,
        settings: NodeSettings,
    ):
        self._queue = queue
        self._deliveries = deliveries
        self._commitment = commitment
        self._settings = settings
        self._is_stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread after the delivery in work, if that ends soon."""
        self._is_stopping.set()
        self.thread.join(self._settings.network_seconds)

    def on_commitment(self, transaction_uid: str, failed: Sequence[str]) -> bool:
        """Takes the answer to a storage commitment.

        Args:
          transaction_uid: of the request.
          failed: SOP Instance UIDs that the destination has not.

        Returns:
          Whether there was such a request.
        """
        study = self._queue.database.find_transaction(transaction_uid)
        if study is None:
            return False
        if not failed:
            self._queue.move(study, DONE)
            logger.info("%s: results are committed", study.name)
            return True
        for file in sorted(self._queue.results(study).iterdir()):
            meta = pydicom.filereader.read_file_meta_info(file)
            if meta.MediaStorageSOPInstanceUID in failed:
                self._queue.note_sent(study, file, is_sent=False)
        logger.info("%s: %d results were not committed", study.name, len(failed))
        # Not at once: the destination may need its time.
        if self._queue.move(study, SENDING):
            self._queue.retry_later(study, time.time() + self._settings.retry_most_seconds)
        return True

    def _run(self) -> None:
        while not self._is_stopping.wait(_POLL_S):
            try:
                for study in self._queue.database.by_state(SENDING, COMMITTING):
                    if self._is_stopping.is_set():
                        return
                    if study.next_try_s <= time.time():
                        self._deliver(study)
            except Exception as error:
                log_error(error)

    def _deliver(self, study: Study) -> None:
        deliver = self._deliveries.get(study.origin)
        if deliver is None:
            self._queue.move(study, DONE)
            return
        try:
            unsent = self._queue.unsent(study)
            if unsent:
                deliver(unsent, lambda file: self._queue.note_sent(study, file))
            DELIVERIES.labels("sent").inc()
            if self._commitment is not None and deliver == self._commitment.store:
                self._request_commitment(study, self._commitment)
            elif self._queue.move(study, DONE):
                logger.info("%s: results are delivered", study.name)
        except PeerError as error:
            DELIVERIES.labels("failed").inc()
            self._retry(study, str(error))
        except Exception as error:
            # Of this study: the others are delivered.
            log_error(error)
            self._retry(study, "an internal error; see the log")

    def _request_commitment(self, study: Study, peer: DicomPeer) -> None:
        if study.state == COMMITTING and self._is_too_late(study):
            raise PeerError("it did not answer the storage commitment")
        # Known before the request: the answer may come before the request's own.
        transaction_uid = generate_uid()
        again_s = time.time() + 60 * self._settings.commitment_minutes
        if not self._queue.begin_commitment(study, transaction_uid, again_s):
            return
        files = sorted(self._queue.results(study).iterdir())
        peer.request_commitment(files, transaction_uid, self.on_commitment)

    def _retry(self, study: Study, why: str) -> None:
        if self._is_too_late(study):
            park(self._queue, study, f"the results were not delivered: {why}")
            return
        delay_s = self._settings.retry_delay_s(study.retries)
        self._queue.retry_later(study, time.time() + delay_s)
        logger.info("%s: not delivered, again in %g s: %s", study.name, delay_s, why)

    def _is_too_late(self, study: Study) -> bool:
        return time.time() - study.answered_s > 3600 * self._settings.retry_hours
