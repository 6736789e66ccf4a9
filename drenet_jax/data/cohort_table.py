"""The patients of a cohort: `cohort.csv`, read and checked."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import posixpath
import unicodedata
from collections.abc import Callable, Sequence

from drenet_jax.data.csv_tables import read_rows
from drenet_jax.data.identities import (
    clean,
    control_character,
    person_variants,
    shown,
    value_key,
    value_variants,
)
from drenet_jax.errors import InputError
from drenet_jax.storage import objects
from drenet_jax.storage.objects import AnyPath

SPLITS = ("train", "validation", "test")
# What published cohorts call their splits; "" is the empty field.
_SPLIT_NAMES = {name: name for name in (*SPLITS, "")} | {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "testing": "test",
}
_REQUIRED_COLUMNS = ("patient_id", "path", "label")
# Of which a person has one value.
_PERSON_COLUMNS = ("label", "split", "site", "series_uid")
_COLUMNS = ("patient_id", "path", *_PERSON_COLUMNS)

# A table may spell a name in another form of Unicode than the disk does.
_SPELLINGS = (str, clean, functools.partial(unicodedata.normalize, "NFD"))


@dataclasses.dataclass(frozen=True)
class Person:
    """One patient of a cohort.

    Attributes:
      patient_id: as `identities.clean` writes it.
      paths: one or more series (folders, zips, volumes) or single slices.
      label: the diagnosis.
      split: one of `SPLITS`, or "" where the cohort gives none.
      site: the hospital, or "".
      series_uid: the DICOM series to take where a folder holds several, or "": the largest.
    """

    patient_id: str
    paths: tuple[AnyPath, ...]
    label: str
    split: str
    site: str
    series_uid: str = ""


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The patients of a `cohort.csv`, in the order of their first rows.

    Attributes:
      path: the file.
      labels: names of the classes, in the order in which the model numbers them.
      persons: each once.
      unused_columns: columns of the file that have no meaning here.
    """

    path: AnyPath
    labels: tuple[str, ...]
    persons: tuple[Person, ...]
    unused_columns: tuple[str, ...] = ()

    @property
    def has_split(self) -> bool:
        return bool(self.persons[0].split)


def read_cohort(path: str | os.PathLike[str], labels: Sequence[str] = ()) -> Cohort:
    """Reads `cohort.csv`: columns patient_id, path, label and, if wanted, split, site, series_uid.

    A person has one or many rows; `path` is relative to the file. Columns are found by their names
    in any case. Names are read in the spelling of `identities.clean`; names that differ only in
    their spelling otherwise are refused, since they may or may not be the same person, class or
    hospital (`identities.person_key` and `value_key` say what counts as spelling).

    Args:
      path: the file, in UTF-8, on a disk or in a bucket.
      labels: names of the classes, in order; empty: the labels in the order of first appearance.

    Raises:
      InputError: the file cannot be read, a column is missing or there twice, a value is missing or
        holds a control character, a path does not exist, a label is unknown, two names are the same
        but for their spelling, a path is there twice or lies within another person's, or a person
        has two labels, splits, sites or series.
    """
    path = objects.as_path(path)
    rows, unused_columns = _read_rows(path)
    labels = _labels(path, labels, rows)

    first_rows: dict[str, tuple[int, dict[str, str]]] = {}
    paths: dict[str, list[AnyPath]] = {}
    file_paths = _Paths(path, [row["path"] for _, row in rows])
    ids, sites = person_variants(), value_variants("site")
    for line, row in rows:
        where = f"{path}, line {line}"
        if row["label"] not in labels:
            raise InputError(
                f"{where}: unknown label {shown(row['label'])}; use one of {', '.join(labels)}, "
                "or name it in --labels."
            )
        patient_id = row["patient_id"]
        ids.add(patient_id, path, f"line {line}")
        if row["site"]:
            sites.add(row["site"], path, f"line {line}")
        first_line, first = first_rows.setdefault(patient_id, (line, row))
        for column in _PERSON_COLUMNS:
            if row[column] != first[column]:
                raise InputError(
                    f"{where}: person {patient_id!r} has {column} {row[column]!r} here and "
                    f"{first[column]!r} in line {first_line}; give a person one {column}."
                )
        paths.setdefault(patient_id, []).append(file_paths.add(row["path"], patient_id, line))
    file_paths.check_nested()

    persons = tuple(
        Person(
            patient_id,
            tuple(paths[patient_id]),
            **{column: row[column] for column in _PERSON_COLUMNS},
        )
        for patient_id, (_, row) in first_rows.items()
    )
    without_split = [person.patient_id for person in persons if not person.split]
    if 0 < len(without_split) < len(persons):
        raise InputError(
            f"{path} gives a split for some persons but not for {without_split[0]!r}; "
            "fill the column for all, or leave it out."
        )
    return Cohort(path, labels, persons, unused_columns)


def _labels(
    path: AnyPath, given: Sequence[str], rows: Sequence[tuple[int, dict[str, str]]]
) -> tuple[str, ...]:
    """The names of the classes, in order."""
    given = [clean(label) for label in given]
    if "" in given:
        raise InputError(f"--labels={','.join(given)} holds an empty label; name each class.")
    twins = value_variants("label")
    for label in given:
        if control_character(label):
            raise InputError(
                f"--labels: {label!r} holds a control character ({control_character(label)}); "
                "remove it."
            )
        twins.add(label, "--labels", "the list")
    for line, row in rows:
        twins.add(row["label"], path, f"line {line}")
    labels = tuple(given) or tuple(dict.fromkeys(row["label"] for _, row in rows))
    if len(labels) < 2 or len(set(labels)) < len(labels):
        where = f"--labels={','.join(given)}" if given else str(path)
        raise InputError(
            f"{where} has the labels {', '.join(labels)}; a diagnosis needs two or more, each "
            "named once."
        )
    return labels


class _Paths:
    """The files that the rows name; two rows must not name the same."""

    def __init__(self, cohort: AnyPath, texts: Sequence[str]):
        """Looks for those in buckets.

        Args:
          cohort: the file.
          texts: the paths, as in its rows.
        """
        self._cohort = cohort
        addresses = list(
            {self._address(text, spelling) for text in texts for spelling in _SPELLINGS} - {None}
        )
        self._in_buckets = {
            address
            for address, is_there in zip(
                addresses, objects.each(objects.exists, addresses), strict=True
            )
            if is_there
        }
        # By the path without links and "..", and by the file system's own number of the file,
        # which hard links, and other mounts of a folder, have in common.
        self._by_path: dict[str, tuple[int, str, str]] = {}
        self._by_file: dict[tuple[int, ...], int] = {}

    def add(self, text: str, patient_id: str, line: int) -> AnyPath:
        """The path of a row, which must exist and be in no earlier row."""
        file = self._existing(text, line)
        number = None
        if objects.is_remote(file):
            resolved = str(file)
        else:
            resolved = os.path.realpath(file)
            status = os.stat(file)
            # Size and time, too: some network file systems number files by a short hash.
            if status.st_ino:
                number = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        earlier = self._by_path.get(resolved, (None,))[0]
        if earlier is None and number is not None:
            earlier = self._by_file.get(number)
        if earlier is not None:
            raise InputError(
                f"{self._cohort}, line {line}: {text} is in line {earlier} already, if perhaps in "
                "another spelling or by a link; remove one of the rows."
            )
        self._by_path[resolved] = line, patient_id, text
        if number is not None:
            self._by_file[number] = line
        return file

    def _address(self, text: str, spelling: Callable[[str], str]) -> str | None:
        """The address that a row names; None if it names a file on a disk."""
        text = spelling(text)
        if not objects.is_remote(text):
            if not objects.is_remote(self._cohort) or text.startswith("/"):
                return None
            text = objects.child(str(self._cohort.parent), text)
        scheme, _, name = text.partition("://")
        # As on a disk, and so that one object has one address.
        return f"{scheme}://{posixpath.normpath(name)}"

    def _existing(self, text: str, line: int) -> AnyPath:
        for spelling in _SPELLINGS:
            address = self._address(text, spelling)
            if address is None:
                file = self._cohort.parent / spelling(text)
                # ValueError: a name that no file can have, as with NUL
                with contextlib.suppress(OSError, ValueError):
                    os.stat(file)
                    return file
            elif address in self._in_buckets:
                return objects.as_path(address)
        path = str(self._cohort.parent / text)
        raise InputError(
            f"{self._cohort}, line {line}: {path if path.isprintable() else repr(path)} does not "
            f"exist or may not be read; paths are relative to {self._cohort.parent}."
        )

    def check_nested(self) -> None:
        """Refuses a path that lies within the folder of another patient."""
        for inner, (line, patient_id, text) in self._by_path.items():
            for folder in map(str, objects.as_path(inner).parents):
                other_line, other_id, other_text = self._by_path.get(folder, (0, patient_id, ""))
                if other_id != patient_id:
                    raise InputError(
                        f"{self._cohort}, line {line}: {text} of person {patient_id!r} lies "
                        f"within {other_text} of person {other_id!r} (line {other_line}), so "
                        "its files would be both persons'; name a folder of one person in "
                        "each row."
                    )


def _read_rows(path: AnyPath) -> tuple[list[tuple[int, dict[str, str]]], tuple[str, ...]]:
    """The rows with their line numbers, and the columns that have no meaning."""
    unused: list[str] = []
    _, rows = read_rows(
        path,
        required=_REQUIRED_COLUMNS,
        usage=f"its first line must name {', '.join(_REQUIRED_COLUMNS)} and may name split, site "
        "and series_uid, separated by commas",
        header=lambda names: _header(path, names, unused),
        flag="--cohort",
    )
    if not rows:
        raise InputError(f"{path} lists no person; add a row for each.")
    return [(line, _checked_row(path, line, row)) for line, row in rows], tuple(unused)


def _header(path: AnyPath, names: Sequence[str], unused: list[str]) -> list[str]:
    """The columns under their own names; those without a meaning are added to `unused`."""
    known = {value_key(column): column for column in _COLUMNS}
    written: dict[str, str] = {}
    header = []
    for place, name in enumerate(map(clean, names), 1):
        column = known.get(value_key(name))
        if column is None:
            # Not by their names: spreadsheets leave several columns without any.
            header.append(f"column {place}")
            unused += [name] if name else []
            continue
        if column in written:
            raise InputError(
                f"{path} has the column {column!r} twice, as {shown(written[column])} and "
                f"{shown(name)}; remove or rename one."
            )
        written[column] = name
        header.append(column)
    return header


def _checked_row(path: AnyPath, line: int, row: dict[str, str]) -> dict[str, str]:
    where = f"{path}, line {line}"
    # A path is the file system's: another spelling would be another file.
    row = {
        column: (str.strip if column == "path" else clean)(row.get(column, ""))
        for column in _COLUMNS
    }
    for column in _REQUIRED_COLUMNS:
        if not row[column]:
            raise InputError(f"{where}: {column} is empty; fill it or remove the row.")
    for column, value in row.items():
        if column != "path" and control_character(value):
            raise InputError(
                f"{where}: {column} {value!r} holds a control character "
                f"({control_character(value)}); remove it."
            )
    split = row["split"]
    if split.lower() not in _SPLIT_NAMES:
        raise InputError(f"{where}: unknown split {split!r}; use one of {', '.join(SPLITS)}.")
    return {**row, "split": _SPLIT_NAMES[split.lower()]}
