"""When a study is complete: all instances that its source has are there, or it has been quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from drenet_jax.pacs.node_status import RESULTS
from drenet_jax.pacs.peer_error import PeerError
from drenet_jax.pacs.settings import NodeSettings
from drenet_jax.pacs.study_database import NOT_COUNTED, PARKED, READY, RECEIVING, Study
from drenet_jax.pacs.study_queue import StudyQueue
from drenet_jax.private_log import logger

# The number of CT instances that the source of a study has, by its UID; None if it does not say.
CountInstances = Callable[[str], int | None]

_NO_ANSWER = "its source did not answer"


def park(queue: StudyQueue, study: Study, reason: str) -> None:
    """Ends a study without a result; a new instance of it starts it again."""
    if queue.move(study, PARKED, reason):
        RESULTS.labels("parked").inc()
        logger.info("%s parked: %s", study.name, reason)


class Completeness:
    """Moves studies from receiving to ready, or parks what stays incomplete.

    A study is complete
    - when as many instances are there as its source has, where the source can be queried;
    - else `quiet_seconds` after its last instance, if every association that sent some was released
      and no instance was refused, since a result of a part of the lungs would be a wrong one.
    What is incomplete `missing_minutes` after the last instance is parked.

    Args:
      queue: of studies.
      settings: of the node.
      counts: by origin, how to query the source.
    """

    def __init__(
        self,
        queue: StudyQueue,
        settings: NodeSettings,
        counts: Mapping[str, CountInstances],
    ):
        self._queue = queue
        self._settings = settings
        self._counts = counts

    def update(self) -> None:
        """Looks at every study that is being received."""
        for study in self._queue.database.by_state(RECEIVING):
            quiet_s = time.time() - study.changed_s
            if quiet_s < self._settings.quiet_seconds and not self._is_counted(study):
                continue
            missing = self._missing(study)
            if not missing:
                self._queue.move(study, READY)
            elif quiet_s > 60 * self._settings.missing_minutes:
                park(self._queue, study, f"incomplete: {missing}")

    @staticmethod
    def _is_counted(study: Study) -> bool:
        return study.n_expected is not None and study.n_instances >= study.n_expected

    def _missing(self, study: Study) -> str:
        """Why a study is not complete; '' if it is."""
        if study.n_refused:
            return f"{study.n_refused} instances were refused"
        n_expected = study.n_expected
        count = self._counts.get(study.origin)
        if count is not None and study.expected is None:
            if study.next_try_s > time.time():
                return _NO_ANSWER
            try:
                n_expected = count(study.uid)
            except PeerError:
                delay_s = self._settings.retry_delay_s(study.retries)
                self._queue.retry_later(study, time.time() + delay_s)
                return _NO_ANSWER
            self._queue.expect(study, NOT_COUNTED if n_expected is None else n_expected)
        if n_expected is not None:
            if study.n_instances >= n_expected:
                return ""
            return f"{study.n_instances} of {n_expected} instances arrived"
        if study.n_senders:
            return "its sender has not released the association"
        if study.broken_off_s:
            return "its sender ended the association in the middle"
        return ""
