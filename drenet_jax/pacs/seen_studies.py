"""Which studies of a DICOMweb server need no work: read already, or there before the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from drenet_jax.pacs.study_database import StudyDatabase


class SeenStudy(NamedTuple):
    """What a server had of a study when its work was done.

    Attributes:
      n_instances: of all kinds; None if it did not say.
      n_ct: of the CT series to fetch.
    """

    n_instances: int | None
    n_ct: int


class SeenStudies:
    """The durable list of one server.

    Attributes:
      is_first_look: whether no look at the server has ended yet.
    """

    def __init__(self, database: StudyDatabase, server_url: str):
        self._database = database
        self._url = server_url
        known = database.rows("SELECT url FROM dicomweb_servers WHERE url = ?", server_url)
        self.is_first_look = not known
        rows = database.rows("SELECT uid, n_instances, n_ct FROM seen WHERE server = ?", server_url)
        self._studies = {row["uid"]: SeenStudy(row["n_instances"], row["n_ct"]) for row in rows}

    def get(self, uid: str) -> SeenStudy | None:
        """What was noted of a study."""
        return self._studies.get(uid)

    def note(self, studies: Mapping[str, SeenStudy]) -> None:
        """Notes studies by their UIDs, and that the server was looked at."""
        with self._database.transaction() as run:
            run("INSERT OR IGNORE INTO dicomweb_servers VALUES (?)", (self._url,))
            for uid, study in studies.items():
                run("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", (self._url, uid, *study))
        self._studies |= studies
        self.is_first_look = False
