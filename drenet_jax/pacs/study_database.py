"""The states of studies in SQLite."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from drenet_jax.errors import InputError

# A study's state.
RECEIVING, READY, SENDING, COMMITTING, DONE, PARKED = (
    "receiving",
    "ready",
    "sending",
    "committing",
    "done",
    "parked",
)
STATES = (RECEIVING, READY, SENDING, COMMITTING, DONE, PARKED)

# Where a study came from, which is where its result goes.
DIMSE, DICOMWEB = "dimse", "dicomweb"

# In place of a number of instances: the source does not say it.
NOT_COUNTED = -1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
  id INTEGER PRIMARY KEY,
  uid TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL UNIQUE,     -- of its folder, and in logs: says nothing of the patient
  origin TEXT NOT NULL,
  state TEXT NOT NULL,
  reason TEXT NOT NULL DEFAULT '',
  expected INTEGER,              -- instances, as the source counts them; NOT_COUNTED
  broken_off_s REAL NOT NULL DEFAULT 0,  -- when a sender ended without release; 0: not
  attempts INTEGER NOT NULL DEFAULT 0,
  retries INTEGER NOT NULL DEFAULT 0,
  next_try_s REAL NOT NULL DEFAULT 0,
  answered TEXT NOT NULL DEFAULT '',   -- the digest of the images and the model of the result
  answered_s REAL NOT NULL DEFAULT 0,
  transaction_uid TEXT NOT NULL DEFAULT '',
  first_s REAL NOT NULL,         -- seconds since 1970
  changed_s REAL NOT NULL,       -- of the last instance
  state_since_s REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS instances (
  study INTEGER NOT NULL REFERENCES studies ON DELETE CASCADE,
  sop_uid TEXT NOT NULL,
  syntax TEXT NOT NULL,
  digest TEXT NOT NULL,
  file TEXT NOT NULL,
  n_bytes INTEGER NOT NULL,
  PRIMARY KEY (study, sop_uid)
);
CREATE TABLE IF NOT EXISTS senders (     -- open associations that sent instances
  study INTEGER NOT NULL REFERENCES studies ON DELETE CASCADE,
  association TEXT NOT NULL,
  PRIMARY KEY (study, association)
);
CREATE TABLE IF NOT EXISTS refusals (
  study INTEGER NOT NULL REFERENCES studies ON DELETE CASCADE,
  sop_uid TEXT NOT NULL,
  why TEXT NOT NULL,
  PRIMARY KEY (study, sop_uid)
);
CREATE TABLE IF NOT EXISTS results (
  study INTEGER NOT NULL REFERENCES studies ON DELETE CASCADE,
  file TEXT NOT NULL,
  n_bytes INTEGER NOT NULL,
  is_sent INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (study, file)
);
CREATE TABLE IF NOT EXISTS dicomweb_servers (
  url TEXT PRIMARY KEY           -- of servers that were looked at
);
CREATE TABLE IF NOT EXISTS seen (
  server TEXT NOT NULL REFERENCES dicomweb_servers,
  uid TEXT NOT NULL,             -- of a study that needs no work as it is
  n_instances INTEGER,           -- of all kinds, if the server says how many
  n_ct INTEGER NOT NULL,
  PRIMARY KEY (server, uid)
);
"""


@dataclasses.dataclass(frozen=True)
class Study:
    """A row of the queue. `uid` identifies the patient's study: not for logs."""

    id: int
    uid: str
    name: str
    origin: str
    state: str
    reason: str
    expected: int | None
    broken_off_s: float
    attempts: int
    retries: int
    next_try_s: float
    answered: str
    answered_s: float
    transaction_uid: str
    first_s: float
    changed_s: float
    state_since_s: float
    n_instances: int
    n_refused: int
    n_senders: int

    @property
    def n_expected(self) -> int | None:
        """How many instances the source has; None if it was not queried, or does not say."""
        return None if self.expected == NOT_COUNTED else self.expected


_STUDIES = """
SELECT studies.*,
  (SELECT COUNT(*) FROM instances WHERE study = studies.id) AS n_instances,
  (SELECT COUNT(*) FROM refusals WHERE study = studies.id) AS n_refused,
  (SELECT COUNT(*) FROM senders WHERE study = studies.id) AS n_senders
FROM studies
"""


class StudyDatabase:
    """The database of a spool. Thread-safe; one process at a time."""

    def __init__(self, path: Path):
        """Opens the database, or makes it.

        Raises:
          InputError: it is damaged.
        """
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A commit is on disk when it returns.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{path} is damaged ({error}); move its folder away, start the node again and send "
                "its studies once more."
            ) from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def transaction(
        self, undo: contextlib.ExitStack | None = None
    ) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Yields a function that runs statements; all are on disk after the block, or none.

        Args:
          undo: closed if none are, before another transaction begins.
        """
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it
                    self._connection.execute("ROLLBACK")
                if undo is not None:
                    undo.close()
                raise

    def rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def select(self, where: str, *values: object) -> list[Study]:
        """The studies for which a clause of SQL holds."""
        return [Study(**dict(row)) for row in self.rows(f"{_STUDIES} {where}", *values)]

    def find(self, uid: str) -> Study | None:
        """The study of this UID."""
        return next(iter(self.select("WHERE uid = ?", uid)), None)

    def by_state(self, *states: str) -> list[Study]:
        """The studies in these states, the oldest first."""
        marks = ", ".join("?" * len(states))
        return self.select(f"WHERE state IN ({marks}) ORDER BY state_since_s, id", *states)

    def latest(self, most: int) -> list[Study]:
        """The studies that changed last."""
        return self.select("ORDER BY MAX(changed_s, state_since_s) DESC LIMIT ?", most)

    def counts(self) -> dict[str, int]:
        """The number of studies by state."""
        rows = self.rows("SELECT state, COUNT(*) FROM studies GROUP BY state")
        return {**dict.fromkeys(STATES, 0), **dict(map(tuple, rows))}

    def n_bytes(self, study: Study | None = None) -> int:
        """Of the instances and results of a study, or of all."""
        where, values = ("WHERE study = ?", (study.id,)) if study else ("", ())
        return sum(
            self.rows(f"SELECT COALESCE(SUM(n_bytes), 0) FROM {table} {where}", *values)[0][0]
            for table in ("instances", "results")
        )

    def find_transaction(self, transaction_uid: str) -> Study | None:
        """The study whose results wait for this storage commitment."""
        found = self.select("WHERE transaction_uid = ? AND state = ?", transaction_uid, COMMITTING)
        return found[0] if found else None
