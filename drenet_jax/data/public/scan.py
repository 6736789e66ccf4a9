"""Scanning the folders of a data set, and the rows of a cohort found there."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from drenet_jax.ct.sources import natural, printable
from drenet_jax.data.identities import clean
from drenet_jax.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg")

# Left by archivers and desktops.
_JUNK_FILES = ("__MACOSX", "Thumbs.db", "desktop.ini")
_MOST_NAMED = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the cohort; `path` is relative to the data set's root, with forward slashes."""

    patient_id: str
    path: str
    label: str
    split: str = ""
    site: str = ""


@dataclasses.dataclass
class ScanResult:
    """The rows found below `root`, what was left out, and notes for the user.

    Attributes:
      root: the data set's folder.
      title: of the data set, for messages.
      rows: in the order of the cohort.
      notes: sentences on the limits of the rows.
    """

    root: Path
    title: str = ""
    rows: list[Row] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    _left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict, init=False)

    def add(
        self, patient_id: str, path: Path, label: str, *, split: str = "", site: str = ""
    ) -> None:
        """Adds a row; names are stored as `identities.clean` writes them."""
        row = Row(clean(patient_id), self._relative(path), clean(label), split, clean(site))
        self.rows.append(row)

    def leave_out(self, kind: str, item: Path | str) -> None:
        """Counts `item` among the things of a kind that are not in the cohort."""
        name = self._relative(item) if isinstance(item, Path) else item
        self._left_out.setdefault(kind, []).append(printable(name))

    def left_out(self) -> list[str]:
        """A line for each kind of thing that was left out, with its number and the first one."""
        return [
            f"{kind}: {len(names)} (the first: {names[0]})"
            for kind, names in self._left_out.items()
        ]

    def leave_out_contradictions(self) -> None:
        """Leaves out the patients who have two labels or are in two splits."""
        for column in ("label", "split"):
            values: dict[str, set[str]] = collections.defaultdict(set)
            for row in self.rows:
                values[row.patient_id].add(getattr(row, column))
            bad = [patient_id for patient_id, seen in values.items() if len(seen) > 1]
            for patient_id in bad:
                self.leave_out(f"persons with more than one {column}", patient_id)
            self.rows = [row for row in self.rows if len(values[row.patient_id]) == 1]

    def persons(self, column: str) -> dict[str, collections.Counter[str]]:
        """{label: {value of a column: number of patients}}."""
        counts: dict[str, collections.Counter[str]] = {}
        for _, label, value in dict.fromkeys(
            (row.patient_id, row.label, getattr(row, column)) for row in self.rows
        ):
            counts.setdefault(label, collections.Counter())[value] += 1
        return counts

    def named_folders(
        self, names: Mapping[str, Sequence[str]], inside: Path | None = None
    ) -> list[tuple[str, Path]]:
        """Pairs of a label (or split) and its folder, in the order of `names`.

        Args:
          names: for each key the names that its folder may have, the documented one first, in any
            case. A key without a folder is noted.
          inside: where to look, if not in `root`.

        Raises:
          InputError: there is none.
        """
        inside = inside or self.root
        here = {entry.name.lower(): entry for entry in entries(inside) if os.path.isdir(entry)}
        folders = []
        for key, accepted in names.items():
            present = [here[name.lower()] for name in accepted if name.lower() in here]
            folders += [(key, folder) for folder in present]
            if not present:
                self.notes.append(f"there is no folder {accepted[0]!r} in {inside}.")
        if not folders:
            wanted = ", ".join(repr(accepted[0]) for accepted in names.values())
            raise self.layout_error(inside, f"the folders {wanted}")
        return folders

    def filled_folders(self, folder: Path) -> Iterator[Path]:
        """The folders in `folder` that hold a file, at any depth; all else is left out."""
        for entry in entries(folder):
            if not os.path.isdir(entry):
                self.leave_out("files beside the folders of the persons or scans", entry)
            elif not holds_a_file(entry):
                self.leave_out("folders without a file that may be read", entry)
            else:
                yield entry

    def files(self, folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
        """The files in `folder` with one of the suffixes; all else is left out."""
        for entry in entries(folder):
            if entry.name.lower().endswith(suffixes) and not os.path.isdir(entry):
                yield entry
            else:
                self.leave_out(f"files and folders not named *{', *'.join(suffixes)}", entry)

    def layout_error(self, folder: Path, looked_for: str) -> InputError:
        """The error for a folder that is not laid out as in the published data set."""
        names = [printable(entry.name) for entry in entries(folder)]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        present = ", ".join(names[:_MOST_NAMED]) + more or "nothing"
        return InputError(
            f"{folder} is not laid out as {self.title} is: looked for {looked_for}, found "
            f"{present}; give --root the data set's folder, unpacked."
        )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def entries(folder: Path) -> list[Path]:
    """What a folder holds, in natural order, without hidden and junk files.

    Raises:
      InputError: it cannot be read.
    """
    names = (name for name in names_in(folder) if not is_junk_file(name))
    return [folder / name for name in sorted(names, key=natural)]


def names_in(folder: Path) -> list[str]:
    """The names of all that a folder holds, unsorted. Raises InputError if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({error.strerror}); check the path and its permissions."
        ) from error


def read_lines(path: Path, remedy: str) -> list[str]:
    """The lines of a text file without blanks at their ends; an InputError names the remedy."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}.") from error
    return [line.strip() for line in text.splitlines()]


def holds_a_file(folder: Path) -> bool:
    """True if there is a file in `folder`, at any depth, that is not a junk file."""
    return any(
        not is_junk_file(name)
        for _, _, names in os.walk(folder, followlinks=True)
        for name in names
    )


def is_junk_file(name: str) -> bool:
    return name.startswith(".") or name in _JUNK_FILES
