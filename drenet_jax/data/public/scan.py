"""What a reader of a public data set found, and how it becomes a `cohort.csv`."""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import io
import os
import posixpath
from pathlib import Path

from drenet_jax.ct.sources import printable
from drenet_jax.data.identities import clean, control_character, person_variants, value_variants
from drenet_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the cohort.

    Attributes:
      patient_id: one and the same for all rows of a person.
      path: a series or a slice, relative to the data set's root, with forward slashes.
      label: the diagnosis.
      split: "train", "validation", "test", or "" where none is published.
      site: where the person comes from, or "".
    """

    patient_id: str
    path: str
    label: str
    split: str = ""
    site: str = ""


@dataclasses.dataclass
class ScanResult:
    """Rows, and notes for the user, collected by a reader below `root`.

    Attributes:
      root: the data set's folder.
      rows: in the order of the cohort.
      notes: sentences on what the rows cannot be trusted for.
    """

    root: Path
    rows: list[Row] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    _left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict, init=False)

    def add(
        self, patient_id: str, path: Path, label: str, *, split: str = "", site: str = ""
    ) -> None:
        """Adds a row; names are stored in the spelling of `identities.clean`."""
        row = Row(clean(patient_id), self._relative(path), clean(label), split, clean(site))
        self.rows.append(row)

    def leave_out(self, what: str, item: Path | str) -> None:
        """Counts a path, or whatever has the name `one`, among `what` is not in the cohort."""
        name = self._relative(item) if isinstance(item, Path) else item
        self._left_out.setdefault(what, []).append(printable(name))

    def left_out(self) -> list[str]:
        """A line for each kind of thing that was left out, with its number and the first one."""
        return [
            f"{what}: {len(names)} (the first: {names[0]})"
            for what, names in self._left_out.items()
        ]

    def leave_out_contradictions(self) -> None:
        """Leaves out the persons who have two labels or are in two splits."""
        for column in ("label", "split"):
            values: dict[str, set[str]] = collections.defaultdict(set)
            for row in self.rows:
                values[row.patient_id].add(getattr(row, column))
            bad = {patient_id for patient_id, seen in values.items() if len(seen) > 1}
            for patient_id in dict.fromkeys(row.patient_id for row in self.rows):
                if patient_id in bad:
                    self.leave_out(f"persons with more than one {column}", patient_id)
            self.rows = [row for row in self.rows if row.patient_id not in bad]

    def persons(self, column: str) -> dict[str, dict[str, int]]:
        """How many persons have which value of a column: {label: {value: persons}}."""
        seen = dict.fromkeys((row.patient_id, row.label, getattr(row, column)) for row in self.rows)
        counts: dict[str, dict[str, int]] = {}
        for _, label, value in seen:
            of_label = counts.setdefault(label, {})
            of_label[value] = of_label.get(value, 0) + 1
        return counts

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def require_new(out: Path) -> None:
    """Raises an InputError if there is something at `out` already."""
    if os.path.lexists(out):
        raise InputError(f"--out={out} exists already; name a new file, or remove that one first.")


def write_cohort(scanned: ScanResult, out: Path) -> None:
    """Writes `found` as a cohort file, whole or not at all.

    Columns: patient_id, path (relative to the file's folder), label, and split and site where the
    data set has them.

    Args:
      scanned: of one reader.
      out: the file to make. It must not exist yet; its parents are made.

    Raises:
      InputError: `out` exists or cannot be written; there are fewer than two labels, one person
        has two of them, two names differ only in their spelling, or a name cannot be written in a
        CSV file in UTF-8.
    """
    require_new(out)
    text = _text(scanned, out)
    scratch = out.with_name(f".{out.name}.unfinished")
    missing = [parent for parent in scratch.absolute().parents if not os.path.exists(parent)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8", newline="")
        scratch.rename(out)
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise InputError(
                f"--out={out} cannot be written ({error.strerror}); "
                "name a file in a place where you may write."
            ) from error
        raise


def _text(scanned: ScanResult, out: Path) -> str:
    labels = dict.fromkeys(row.label for row in scanned.rows)
    if len(labels) < 2:
        raise InputError(
            f"--root={scanned.root} holds persons with the label {', '.join(labels) or '(none)'} "
            "only; a diagnosis needs two labels or more."
        )
    # Both without links, since `..` after a link leads elsewhere than its name says.
    root = Path(os.path.relpath(os.path.realpath(scanned.root), os.path.realpath(out.parent)))
    columns = ["patient_id", "path", "label"]
    columns += [
        name for name in ("split", "site") if any(getattr(row, name) for row in scanned.rows)
    ]
    label_of: dict[str, str] = {}
    twins = {
        "patient_id": person_variants(),
        "label": value_variants("label"),
        "site": value_variants("site"),
    }
    lines = []
    for row in scanned.rows:
        if label_of.setdefault(row.patient_id, row.label) != row.label:
            raise InputError(
                f"--root={scanned.root} has a person {row.patient_id!r} under two labels, "
                f"{label_of[row.patient_id]} and {row.label}; keep one."
            )
        path = posixpath.normpath(posixpath.join(root.as_posix(), row.path))
        if path != path.strip() or path.splitlines() != [path] or printable(path) != path:
            raise InputError(
                f"{printable(path)!r} ends in a blank, has a line break or is not UTF-8, which a "
                "cohort file cannot hold; rename it."
            )
        for column, of_column in twins.items():
            value = getattr(row, column)
            if control_character(value) or (not value and column != "site"):
                raise InputError(
                    f"{printable(path)!r} would have the {column} {value!r}, which is empty or "
                    "holds a control character; rename it."
                )
            if value:
                of_column.add(value, f"--root={scanned.root}", path)
        lines.append([path if name == "path" else getattr(row, name) for name in columns])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return stream.getvalue()
