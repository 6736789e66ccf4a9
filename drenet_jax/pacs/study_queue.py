"""The durable queue: studies on disk, and their states in SQLite.

An instance is on disk, and known to the queue, before its sender gets the success status; a result
is on disk before it is sent. So a node that is killed at any moment goes on where it was.

Folder of the spool:
  queue.sqlite     states
  receiving/       instances that are not complete
  studies/NAME/images/    the received files
  studies/NAME/results/   the objects to send
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from drenet_jax.pacs.instance_files import InstanceHeader, file_digest, sync
from drenet_jax.pacs.refusals import DUPLICATE, OUT_OF_RESOURCES, Refused, SpoolFull
from drenet_jax.pacs.settings import NodeSettings
from drenet_jax.pacs.study_database import (
    COMMITTING,
    DONE,
    PARKED,
    RECEIVING,
    SENDING,
    Study,
    StudyDatabase,
)


class StudyQueue:
    """The spool folder and its database. Thread-safe; one process at a time.

    Attributes:
      database: of the states.
      receiving: the folder for files that are not complete.
      n_bytes: of all instances and results in the spool.
      changed: set whenever there may be something to do.
    """

    def __init__(self, spool: Path, settings: NodeSettings):
        """Opens the queue, and removes what a killed node left half received.

        Raises:
          InputError: the database is damaged.
        """
        self._settings = settings
        self._studies = spool / "studies"
        self.changed = threading.Event()
        self.receiving = spool / "receiving"
        shutil.rmtree(self.receiving, ignore_errors=True)
        for folder in (self.receiving, self._studies):
            folder.mkdir(parents=True, exist_ok=True)
        self.database = StudyDatabase(spool / "queue.sqlite")
        self._remove_orphans()
        # Associations that were open when a node was killed have not been released.
        for row in self.database.rows("SELECT DISTINCT association FROM senders"):
            self.note_association_end(row["association"], 0.0, is_released=False)
        # Summed once: a sum over all instances for each new one is slow.
        self.n_bytes = self.database.n_bytes()

    def images(self, study: Study) -> Path:
        """The folder of the study's instances."""
        return self._studies / study.name / "images"

    def results(self, study: Study) -> Path:
        """The folder of the objects to send."""
        return self._studies / study.name / "results"

    def accept(
        self, received: Path, header: InstanceHeader, origin: str, association: str = ""
    ) -> Study:
        """Keeps a received file, which is on disk when this returns; returns its study.

        An instance that is there already is not kept twice.

        Args:
          received: the whole file, in `receiving`; it is moved, or removed.
          header: of the file.
          origin: `DIMSE` or `DICOMWEB`.
          association: an identifier of that over which it came, whose end will be noted.

        Raises:
          Refused: a limit is reached, or another instance has the same UID.
        """
        n_bytes = received.stat().st_size
        digest = file_digest(received)
        sync(received)
        undo = contextlib.ExitStack()
        with self.database.transaction(undo) as run:
            study = self._study_for(run, header.study_uid, origin)
            known = run(
                "SELECT syntax, digest FROM instances WHERE study = ? AND sop_uid = ?",
                (study.id, header.sop_uid),
            ).fetchone()
            if association:
                run("INSERT OR IGNORE INTO senders VALUES (?, ?)", (study.id, association))
            refused: Refused | None = None
            if known is not None:
                received.unlink()
                # In another transfer syntax the same image has other bytes.
                if known["digest"] != digest and known["syntax"] == header.syntax:
                    refused = Refused(DUPLICATE, "another instance has the same SOPInstanceUID")
            elif refused := self._over_limit(study, n_bytes):
                received.unlink()
            else:
                # Named after its UID, so that a file that a killed node did not commit is replaced.
                name = hashlib.sha256(header.sop_uid.encode()).hexdigest()[:24] + ".dcm"
                self._make_folder(study)
                # All in the folder is read: nothing may stay there without a commit.
                undo.callback((self.images(study) / name).unlink, missing_ok=True)
                received.replace(self.images(study) / name)
                sync(self.images(study))
                undo.callback(self._add_bytes, -n_bytes)
                self._add_bytes(n_bytes)
                run(
                    "INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?)",
                    (study.id, header.sop_uid, header.syntax, digest, name, n_bytes),
                )
                run(
                    "DELETE FROM refusals WHERE study = ? AND sop_uid = ?",
                    (study.id, header.sop_uid),
                )
            if refused is None:
                self._reopen(run, study, is_new=known is None)
            else:
                self._note_refusal(run, study.id, header.sop_uid, str(refused))
        if refused is not None:
            raise refused
        self.changed.set()
        return study

    def note_association_end(
        self,
        association: str,
        began_s: float,
        *,
        is_released: bool,
        ended_s: float | None = None,
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Notes how an association ended.

        One that was not released may have left out instances of the studies that it sent; one that
        began later and was released has sent them.

        Args:
          association: as given to `accept`.
          began_s: when, in seconds since 1970.
          is_released: by its sender.
          ended_s: when, if not now.
          refused: SOP Instance UID -> why, of what came over it and names no study.
        """
        with self.database.transaction() as run:
            rows = run("DELETE FROM senders WHERE association = ? RETURNING study", (association,))
            for row in rows.fetchall():
                for sop_uid, why in refused.items():
                    self._note_refusal(run, row["study"], sop_uid, why)
                if is_released:
                    run(
                        "UPDATE studies SET broken_off_s = 0 WHERE id = ? AND broken_off_s < ?",
                        (row["study"], began_s),
                    )
                else:
                    run(
                        "UPDATE studies SET broken_off_s = ? WHERE id = ?",
                        (time.time() if ended_s is None else ended_s, row["study"]),
                    )
        self.changed.set()

    def expect(self, study: Study, n_instances: int) -> None:
        """Notes how many instances the source has, or `NOT_COUNTED`."""
        with self.database.transaction() as run:
            run("UPDATE studies SET expected = ? WHERE id = ?", (n_instances, study.id))
        self.changed.set()

    def digest(self, study: Study, model: str) -> str:
        """Of the study's instances and the model: the same result has the same digest."""
        rows = self.database.rows(
            "SELECT sop_uid, digest FROM instances WHERE study = ? ORDER BY sop_uid", study.id
        )
        text = "\n".join([study.uid, model, *(f"{row['sop_uid']} {row['digest']}" for row in rows)])
        return hashlib.sha256(text.encode()).hexdigest()

    def begin_attempt(self, study: Study) -> int:
        """Counts an attempt to answer a study, and returns its number, from 1."""
        with self.database.transaction() as run:
            run("UPDATE studies SET attempts = attempts + 1 WHERE id = ?", (study.id,))
            return run("SELECT attempts FROM studies WHERE id = ?", (study.id,)).fetchone()[0]

    def forget_attempt(self, study: Study) -> None:
        """Does not count the last attempt: the study was not the reason that it ended."""
        with self.database.transaction() as run:
            run("UPDATE studies SET attempts = attempts - 1 WHERE id = ?", (study.id,))

    def keep_results(self, study: Study, digest: str, folder: Path) -> bool:
        """Keeps a study's new results, to be sent.

        Args:
          study: as it was when the work began.
          digest: of what the results were made from.
          folder: of their files, on the spool's file system; it is moved.

        Returns:
          Whether they were kept: not if instances have arrived meanwhile.
        """
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        for path in (*folder.iterdir(), folder):
            sync(path)
        with self.database.transaction() as run:
            if not self._is_same(study):
                return False
            # After a kill between here and the commit they are made again.
            shutil.rmtree(self.results(study), ignore_errors=True)
            folder.replace(self.results(study))
            sync(self.results(study).parent)
            n_bytes = self.database.n_bytes(study)
            run("DELETE FROM results WHERE study = ?", (study.id,))
            for file, size in sizes.items():
                run(
                    "INSERT INTO results (study, file, n_bytes) VALUES (?, ?, ?)",
                    (study.id, file, size),
                )
            self.n_bytes += self.database.n_bytes(study) - n_bytes
            run("UPDATE studies SET answered = ? WHERE id = ?", (digest, study.id))
            self._send(run, study)
        return True

    def send_again(self, study: Study) -> None:
        """Lets the results be delivered that have not been yet; not if instances have arrived."""
        with self.database.transaction() as run:
            if self._is_same(study):
                self._send(run, study)

    def unsent(self, study: Study) -> list[Path]:
        """The results that have not been sent."""
        rows = self.database.rows(
            "SELECT file FROM results WHERE study = ? AND NOT is_sent ORDER BY file", study.id
        )
        return [self.results(study) / row["file"] for row in rows]

    def note_sent(self, study: Study, file: Path, *, is_sent: bool = True) -> None:
        """Notes that the destination has a result; or that it has not, after all.

        Not if the study has another result meanwhile, whose files have the same names.
        """
        with self.database.transaction() as run:
            run(
                "UPDATE results SET is_sent = ? WHERE study = ? AND file = ? "
                "AND study IN (SELECT id FROM studies WHERE answered = ?)",
                (is_sent, study.id, file.name, study.answered),
            )

    def retry_later(self, study: Study, next_try_s: float) -> None:
        """Counts a failed try of what the study waits for."""
        with self.database.transaction() as run:
            run(
                "UPDATE studies SET retries = retries + 1, next_try_s = ? WHERE id = ?",
                (next_try_s, study.id),
            )

    def begin_commitment(self, study: Study, transaction_uid: str, next_try_s: float) -> bool:
        """Notes a storage commitment that is requested, and when to do so again.

        Not if instances have arrived since `study` was read; returns whether it did.
        """
        with self.database.transaction() as run:
            if not self._is_same(study):
                return False
            if study.state != COMMITTING:  # else its tries are counted on
                self._move(run, study, COMMITTING)
            run(
                "UPDATE studies SET transaction_uid = ?, next_try_s = ? WHERE id = ?",
                (transaction_uid, next_try_s, study.id),
            )
        return True

    def move(self, study: Study, state: str, reason: str = "") -> bool:
        """Changes a study's state; not if instances have arrived since `study` was read."""
        with self.database.transaction() as run:
            if not self._is_same(study):
                return False
            self._move(run, study, state, reason)
        self.changed.set()
        return True

    def remove_ended(self) -> int:
        """Removes studies that ended longer than `keep_hours` ago; returns their number."""
        oldest_s = time.time() - 3600 * self._settings.keep_hours
        ended = [
            study
            for study in self.database.by_state(DONE, PARKED)
            if study.state_since_s < oldest_s
        ]
        for study in ended:
            n_bytes = self.database.n_bytes(study)
            with self.database.transaction() as run:
                run(
                    "DELETE FROM studies WHERE id = ? AND state = ? AND state_since_s < ?",
                    (study.id, study.state, oldest_s),
                )
                is_removed = not self.database.select("WHERE id = ?", study.id)
                self._add_bytes(-n_bytes if is_removed else 0)
            # After the commit: a study without its files could not be answered again.
            if is_removed:
                shutil.rmtree(self._studies / study.name, ignore_errors=True)
        return len(ended)

    def _study_for(self, run: Callable[..., sqlite3.Cursor], uid: str, origin: str) -> Study:
        now_s = time.time()
        run(
            "INSERT OR IGNORE INTO studies "
            "(uid, name, origin, state, first_s, changed_s, state_since_s) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (uid, secrets.token_hex(6), origin, RECEIVING, now_s, now_s, now_s),
        )
        return self.database.select("WHERE uid = ?", uid)[0]

    def _add_bytes(self, n_bytes: int) -> None:
        """Within a transaction, whose lock this needs."""
        self.n_bytes += n_bytes

    def _make_folder(self, study: Study) -> None:
        """Makes the folder of a study's instances, on disk when this returns."""
        images = self.images(study)
        if not images.is_dir():
            images.mkdir(parents=True, exist_ok=True)
            sync(images.parent)
            sync(self._studies)

    def _is_same(self, study: Study) -> bool:
        """Whether no instance has arrived, nor the state changed, since `study` was read."""
        now = self.database.select("WHERE id = ?", study.id)
        return bool(now) and (now[0].state, now[0].n_instances) == (study.state, study.n_instances)

    def _over_limit(self, study: Study, n_bytes: int) -> Refused | None:
        """Why the study cannot have one more instance of this size; None if it can."""
        settings = self._settings
        if study.n_instances >= settings.study_instances:
            why = f"the study has more than {settings.study_instances} instances"
        elif self.database.n_bytes(study) + n_bytes > settings.study_mib << 20:
            why = f"the study is larger than {settings.study_mib} MiB"
        elif self.n_bytes + n_bytes > settings.spool_gib * (1 << 30):
            return SpoolFull(OUT_OF_RESOURCES, f"the spool holds {settings.spool_gib:g} GiB")
        else:
            return None
        return Refused(OUT_OF_RESOURCES, why)

    def _reopen(self, run: Callable[..., sqlite3.Cursor], study: Study, *, is_new: bool) -> None:
        """Lets a study wait for more; one that has ended only if an instance is new."""
        if is_new or study.state in (RECEIVING, PARKED):
            self._move(run, study, RECEIVING)
            run(
                "UPDATE studies SET changed_s = ?, expected = NULL, attempts = 0 WHERE id = ?",
                (time.time(), study.id),
            )

    def _note_refusal(
        self, run: Callable[..., sqlite3.Cursor], study_id: int, sop_uid: str, why: str
    ) -> None:
        run("INSERT OR REPLACE INTO refusals VALUES (?, ?, ?)", (study_id, sop_uid, why))
        run("UPDATE studies SET changed_s = ? WHERE id = ?", (time.time(), study_id))

    @staticmethod
    def _move(
        run: Callable[..., sqlite3.Cursor], study: Study, state: str, reason: str = ""
    ) -> None:
        run(
            "UPDATE studies SET state = ?, reason = ?, state_since_s = ?, retries = 0, "
            "next_try_s = 0 WHERE id = ?",
            (state, reason, time.time(), study.id),
        )

    def _send(self, run: Callable[..., sqlite3.Cursor], study: Study) -> None:
        self._move(run, study, SENDING)
        run("UPDATE studies SET answered_s = ? WHERE id = ?", (time.time(), study.id))

    def _remove_orphans(self) -> None:
        """Removes files that a killed node did not commit."""
        studies = self.database.select("")
        names = {study.name for study in studies}
        for folder in self._studies.iterdir():
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)
        for study in studies:
            if not self.images(study).is_dir():
                continue
            rows = self.database.rows("SELECT file FROM instances WHERE study = ?", study.id)
            known = {row["file"] for row in rows}
            for path in {path for path in self.images(study).iterdir() if path.name not in known}:
                path.unlink()
