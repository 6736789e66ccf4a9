"""The queue against a simple model, with a crash at any moment."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pacs.queues import accept, settings_of

from drenet_jax.pacs import study_queue
from drenet_jax.pacs.completeness import Completeness
from drenet_jax.pacs.refusals import DUPLICATE, Refused
from drenet_jax.pacs.study_database import DONE, PARKED, READY, RECEIVING, SENDING, Study
from drenet_jax.pacs.study_queue import StudyQueue

STUDIES = st.sampled_from(["1.1", "1.2"])
INSTANCES = st.sampled_from([f"2.{i}" for i in range(4)])
STEPS = st.sampled_from(["receive", "work", "deliver"])
CONTENTS = st.sampled_from([b"a" * 10, b"b" * 20])
ASSOCIATIONS = st.sampled_from(["A", "B"])
N_RESULTS = 2
_SYNC = study_queue.sync


class _Crash(BaseException):
    pass


def _now() -> float:
    """Later than all before, for the clock's resolution too."""
    time.sleep(1e-4)
    return time.time()


class QueueMachine(RuleBasedStateMachine):
    """Senders, the worker and the delivery in any order; each may hold an old view of a study."""

    def __init__(self) -> None:
        super().__init__()
        in_memory = Path("/dev/shm")
        self._top = Path(tempfile.mkdtemp(dir=in_memory if in_memory.is_dir() else None))
        self._n_spools = 0
        self._syncs_left = 0
        study_queue.sync = self._sync  # type: ignore[assignment]
        self._settings = settings_of(
            quiet_seconds=1e-9, missing_minutes=1e-9, keep_hours=1e-9, spool_gib=1.0
        )
        # The model: what has success, and why a study may not be complete.
        self._taken: dict[str, dict[str, bytes]] = {}
        self._open: dict[str, set[str]] = {}
        self._began: dict[str, float] = {}
        self._broken: dict[str, float] = {}
        self._refused: dict[str, set[str]] = {}
        self._archive: dict[str, set[str]] = {}
        self._work: tuple[Study, str] | None = None
        self._delivery: tuple[Study, list[Path]] | None = None

    @initialize()
    def begin(self) -> None:
        self._queue = StudyQueue(self._spool, self._settings)

    @property
    def _spool(self) -> Path:
        return self._top / str(self._n_spools)

    def _sync(self, path: Path) -> None:
        """Ends the process in place of the last of `_syncs_left` writes."""
        if self._syncs_left:
            self._syncs_left -= 1
            if not self._syncs_left:
                shutil.copytree(self._spool, self._top / str(self._n_spools + 1))
                raise _Crash

    def teardown(self) -> None:
        study_queue.sync = _SYNC
        self._queue.database.close()
        shutil.rmtree(self._top)

    def _find(self, uid: str) -> Study | None:
        return self._queue.database.find(uid)

    # Senders.

    def _accept(self, uid: str, sop_uid: str, content: bytes, association: str) -> None:
        known = self._taken.get(uid, {}).get(sop_uid)
        if association not in self._open:
            self._open[association] = set()
            self._began[association] = _now()
        try:
            accept(self._queue, uid, sop_uid, content=content, association=association)
        except Refused as refusal:
            assert (known not in (None, content), refusal.status) == (True, DUPLICATE)  # noqa: PT017
            self._refused.setdefault(uid, set()).add(sop_uid)
        else:
            assert known in (None, content)
            self._taken.setdefault(uid, {})[sop_uid] = content
            if known is None:
                self._refused.get(uid, set()).discard(sop_uid)
        self._open[association].add(uid)

    @rule(uid=STUDIES, sop_uid=INSTANCES, content=CONTENTS, association=ASSOCIATIONS)
    def accept(self, uid, sop_uid, content, association) -> None:
        self._accept(uid, sop_uid, content, association)

    @rule(association=ASSOCIATIONS, is_released=st.booleans())
    def end_association(self, association, is_released) -> None:
        if association in self._open:
            self._end(association, is_released=is_released)

    def _end(self, association: str, *, is_released: bool) -> None:
        began_s = self._began.pop(association)
        self._queue.note_association_end(association, began_s, is_released=is_released)
        for uid in self._open.pop(association):
            if not is_released:
                self._broken[uid] = _now()
            elif self._broken.get(uid, 0) < began_s:
                self._broken.pop(uid, None)

    # The worker.

    @rule()
    def update(self) -> None:
        may_be = {
            uid: not self._refused.get(uid)
            and uid not in self._broken
            and not any(uid in sent for sent in self._open.values())
            for uid in self._taken
        }
        _now()
        before = {uid: self._find(uid).state for uid in self._taken}
        Completeness(self._queue, self._settings, {}).update()
        for uid, is_complete in may_be.items():
            if before[uid] == RECEIVING:
                assert self._find(uid).state == (READY if is_complete else PARKED)

    @rule(uid=STUDIES, last=STEPS)
    def take_steps(self, uid, last) -> None:
        """A study without problems gets so far."""
        if self._broken.get(uid) or self._refused.get(uid):
            return
        self._accept(uid, "2.9", b"c", "C")
        for association in sorted(self._open):
            self._end(association, is_released=True)
        self.update()
        if last != "receive" and self._find(uid).state == READY:
            self.begin_work(uid)
            self.end_work()
        if last == "deliver" and self._find(uid).state == SENDING:
            self.begin_delivery(uid)
            while self._delivery and self._delivery[1]:
                self.deliver_one()
            if self._delivery:
                self.end_delivery()

    @rule(uid=STUDIES)
    def begin_work(self, uid) -> None:
        study = self._find(uid)
        if study is None or study.state != READY:
            return
        self._work = study, self._queue.digest(study, "model")

    @precondition(lambda self: self._work is not None)
    @rule()
    def end_work(self) -> None:
        study, digest = self._work
        self._work = None
        if study.answered == digest:
            self._queue.send_again(study)
            return
        folder = Path(tempfile.mkdtemp(dir=self._queue.receiving))
        for number in range(N_RESULTS):
            (folder / f"{number}.dcm").write_text(f"{digest} {number}")
        self._queue.keep_results(study, digest, folder)

    # The delivery.

    @rule(uid=STUDIES)
    def begin_delivery(self, uid) -> None:
        study = self._find(uid)
        if study is None or study.state != SENDING:
            return
        self._delivery = study, self._queue.unsent(study)

    @precondition(lambda self: self._delivery is not None and self._delivery[1])
    @rule()
    def deliver_one(self) -> None:
        study, files = self._delivery
        # It was read for the transfer, and meanwhile there may be another one of the same name.
        content = self._read(files.pop(0))
        if content is None:
            self._delivery = None
            return
        self._archive.setdefault(study.uid, set()).add(content[1])
        self._queue.note_sent(study, content[0])

    @staticmethod
    def _read(file: Path) -> tuple[Path, str] | None:
        return (file, file.read_text()) if file.exists() else None

    @precondition(lambda self: self._delivery is not None and not self._delivery[1])
    @rule()
    def end_delivery(self) -> None:
        study, _ = self._delivery
        self._delivery = None
        self._queue.move(study, DONE)

    @rule()
    def remove_ended(self) -> None:
        _now()
        self._queue.remove_ended()
        for uid in list(self._taken):
            if self._find(uid) is None:
                for table in (self._taken, self._broken, self._refused, self._archive):
                    table.pop(uid, None)
                for sent in self._open.values():
                    sent.discard(uid)

    # Crashes.

    @rule()
    def crash(self) -> None:
        shutil.copytree(self._spool, self._top / str(self._n_spools + 1))
        self._reopen()

    @rule(
        at=st.integers(1, 4),
        uid=STUDIES,
        sop_uid=INSTANCES,
        content=CONTENTS,
        association=ASSOCIATIONS,
    )
    def crash_in_accept(self, at, uid, sop_uid, content, association) -> None:
        self._syncs_left = at
        try:
            self._accept(uid, sop_uid, content, association)
        except _Crash:
            self._reopen()
        self._syncs_left = 0

    @precondition(lambda self: self._work is not None)
    @rule(at=st.integers(1, N_RESULTS + 2))
    def crash_in_end_work(self, at) -> None:
        self._syncs_left = at
        try:
            self.end_work()
        except _Crash:
            self._reopen()
        self._syncs_left = 0

    def _reopen(self) -> None:
        """A node is started on the disk as it was at the crash."""
        self._queue.database.close()
        shutil.rmtree(self._spool)
        self._n_spools += 1
        self._queue = StudyQueue(self._spool, self._settings)
        self._work = self._delivery = None
        for sent in self._open.values():
            for uid in sent:
                self._broken[uid] = _now()
        self._open.clear()
        self._began.clear()

    # What always holds.

    @invariant()
    def what_has_success_is_kept(self) -> None:
        if not hasattr(self, "_queue"):
            return
        for uid, instances in self._taken.items():
            study = self._find(uid)
            files = self._queue.images(study).iterdir()
            assert sorted(file.read_bytes() for file in files) == sorted(instances.values())
            assert study.n_instances == len(instances)
        n_bytes = sum(len(c) for instances in self._taken.values() for c in instances.values())
        [row] = self._queue.database.rows("SELECT COALESCE(SUM(n_bytes), 0) FROM results")
        assert self._queue.n_bytes == self._queue.database.n_bytes() == n_bytes + row[0]

    @invariant()
    def what_is_done_has_its_whole_answer_in_the_archive(self) -> None:
        for uid in self._taken:
            study = self._find(uid)
            digest = self._queue.digest(study, "model")
            if study.state == DONE:
                whole = {f"{digest} {number}" for number in range(N_RESULTS)}
                assert whole <= self._archive.get(uid, set())
            elif study.state == SENDING:
                assert study.answered == digest
                assert all(file.exists() for file in self._queue.unsent(study))


TestStudyQueue = QueueMachine.TestCase
TestStudyQueue.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
class TestStudyQueueLonger(TestStudyQueue):
    settings = settings(TestStudyQueue.settings, max_examples=1500, stateful_step_count=60)
