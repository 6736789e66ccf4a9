"""Watches a DICOMweb server: fetches its new CT studies into the queue."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from drenet_jax.ct.dicom.headers import CT_CLASSES
from drenet_jax.pacs.dicomweb_server import CtSeries, DicomwebServer, ServerAway
from drenet_jax.pacs.instance_files import read_instance_header
from drenet_jax.pacs.node_status import DICOMWEB_LOOKS, INSTANCES
from drenet_jax.pacs.peer_error import PeerError
from drenet_jax.pacs.refusals import OUT_OF_RESOURCES, Refused, SpoolFull
from drenet_jax.pacs.seen_studies import SeenStudies, SeenStudy
from drenet_jax.pacs.settings import NodeSettings
from drenet_jax.pacs.study_database import DICOMWEB, Study
from drenet_jax.pacs.study_queue import StudyQueue
from drenet_jax.private_log import log_error, logger


class _Stopped(Exception):
    pass


class DicomwebWatcher:
    """The thread that looks for studies.

    A study is fetched when it has the same number of CT instances in two looks, and again whenever
    that number has changed. Studies that the server had at the first look are taken with
    `dicomweb_backlog` only.

    Args:
      queue: takes what is fetched.
      server: to watch.
      settings: of the node.
    """

    def __init__(self, queue: StudyQueue, server: DicomwebServer, settings: NodeSettings):
        self._queue = queue
        self._server = server
        self._settings = settings
        self._seen = SeenStudies(queue.database, server.url)
        # Of studies that are not seen yet: the number of CT instances at the last look.
        self._counted: dict[str, int] = {}
        self._failures: dict[str, _Failures] = {}
        self._is_stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="dicomweb", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread; a study that it is fetching is fetched after the next start."""
        self._is_stopping.set()
        self.thread.join(self._settings.network_seconds)

    def _run(self) -> None:
        failures = _Failures(self._settings)
        wait_s = 0.0
        while not self._is_stopping.wait(wait_s):
            wait_s = self._settings.dicomweb_poll_seconds
            try:
                self._look()
            except _Stopped:
                return
            except PeerError as error:
                DICOMWEB_LOOKS.labels("failed").inc()
                if not failures.count:
                    logger.info("the DICOMweb server is not available: %s", error)
                failures.note()
                wait_s = max(wait_s, failures.next_try_s - time.monotonic())
            except Exception as error:
                # Such as a full disk: nothing is lost, and it may end.
                log_error(error)
            else:
                DICOMWEB_LOOKS.labels("done").inc()
                if failures.count:
                    logger.info("the DICOMweb server is available again")
                failures = _Failures(self._settings)

    def _look(self) -> None:
        studies = self._server.ct_studies()
        if self._seen.is_first_look:
            there: dict[str, SeenStudy] = {}
            if not self._settings.dicomweb_backlog:
                for uid, n_instances in studies.items():
                    there[uid] = SeenStudy(n_instances, self._count(self._chest_series(uid)))
            self._seen.note(there)
            logger.info(
                "the DICOMweb server has %d CT studies, which are %staken",
                len(studies),
                "" if self._settings.dicomweb_backlog else "not ",
            )
        self._counted = {uid: n_ct for uid, n_ct in self._counted.items() if uid in studies}
        for uid, n_instances in studies.items():
            failures = self._failures.get(uid)
            if failures is not None and failures.next_try_s > time.monotonic():
                continue
            try:
                self._look_at(uid, n_instances)
                self._failures.pop(uid, None)
            except (PeerError, SpoolFull) as error:
                self._note_failure(uid, n_instances, error)
                if isinstance(error, ServerAway):
                    raise

    def _look_at(self, uid: str, n_instances: int | None) -> None:
        """Fetches a study if there is something new, and it is not growing."""
        seen = self._seen.get(uid)
        if seen is not None and seen.n_instances == n_instances is not None:
            return
        series = self._chest_series(uid)
        now = SeenStudy(n_instances, self._count(series))
        # It may also have more of another kind only, such as results.
        if seen is None or seen.n_ct != now.n_ct:
            before = self._counted.get(uid)
            self._counted[uid] = now.n_ct
            if before != now.n_ct:
                return
            self._fetch(uid, series)
        self._seen.note({uid: now})
        self._counted.pop(uid, None)

    def _chest_series(self, uid: str) -> list[CtSeries]:
        if self._is_stopping.is_set():
            raise _Stopped
        return self._server.ct_series(uid)

    @staticmethod
    def _count(series: Sequence[CtSeries]) -> int:
        return sum(one.n_instances for one in series if one.is_chest)

    def _fetch(self, uid: str, series: Sequence[CtSeries]) -> None:
        """Fetches a study into the queue.

        Raises:
          PeerError: not all of it came.
          SpoolFull: there is no room for it now.
        """
        study: Study | None = None
        n_ct = 0
        for file in self._files(uid, [one for one in series if one.is_chest]):
            try:
                header = read_instance_header(file)
                # Such as dose reports, which are secondary captures in a CT series.
                if header.sop_class not in CT_CLASSES:
                    continue
                n_ct += 1
                if header.study_uid != uid:
                    raise ValueError("an instance of another study")
                study = self._queue.accept(file, header, DICOMWEB)
                INSTANCES.labels("stored").inc()
            except SpoolFull:
                raise
            except (Refused, ValueError) as error:
                INSTANCES.labels("refused").inc()
                logger.info("an instance is refused: %s", error)
                if isinstance(error, Refused) and error.status == OUT_OF_RESOURCES:
                    # The study is over a limit, so that more of it would be refused too.
                    n_ct = self._count(series)
                    break
        name = "a study"
        if study is not None:
            name = study.name
            self._queue.expect(study, n_ct)
            logger.info("%s: %d CT instances fetched", name, n_ct)
        skipped = [one for one in series if not one.is_chest]
        if skipped:
            numbers = ", ".join("?" if one.number is None else str(one.number) for one in skipped)
            logger.info("%s: another body part, not fetched: series %s", name, numbers)

    def _files(self, uid: str, series: Sequence[CtSeries]) -> Iterator[Path]:
        for one in series:
            with tempfile.TemporaryDirectory(dir=self._queue.receiving) as folder:
                for file in self._server.fetch_series(uid, one, Path(folder)):
                    if self._is_stopping.is_set():
                        raise _Stopped
                    yield file
                    file.unlink(missing_ok=True)

    def _note_failure(self, uid: str, n_instances: int | None, error: Exception) -> None:
        failures = self._failures.setdefault(uid, _Failures(self._settings))
        failures.note()
        if failures.is_given_up:
            self._seen.note({uid: SeenStudy(n_instances, self._counted.get(uid, 0))})
            logger.info("a study could not be fetched, and is given up: %s", error)
            return
        logger.info("a study could not be fetched, again in %g s: %s", failures.delay_s, error)


class _Failures:
    """Failures in a row, and the back-off that follows."""

    def __init__(self, settings: NodeSettings):
        self._settings = settings
        self._first_s = time.monotonic()
        self.count = 0
        self.delay_s = 0.0
        self.next_try_s = 0.0

    @property
    def is_given_up(self) -> bool:
        return time.monotonic() - self._first_s > 3600 * self._settings.retry_hours

    def note(self) -> None:
        self.delay_s = self._settings.retry_delay_s(self.count)
        self.count += 1
        self.next_try_s = time.monotonic() + self.delay_s


def not_counted(study_uid: str) -> int | None:
    """The count of a DICOMweb study for `Completeness`: the watcher notes it when all has come.

    Raises:
      PeerError: always; a study that is fetched half waits for the rest.
    """
    raise PeerError("not fetched completely")


def not_stored(files: Sequence[Path], on_stored: Callable[[Path], None]) -> None:
    """Delivers nothing: what to do with results of DICOMweb studies in a node without --dicomweb.

    Raises:
      PeerError: always, so that the results wait.
    """
    raise PeerError("the node was started without --dicomweb")
