"""The persons of a study: `cohort.csv`, read and checked (DESIGN section 2)."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from drenet_jax.errors import InputError

SPLITS = ("train", "validation", "test")
# What published cohorts call their splits.
_SPLIT_NAMES = {name: name for name in SPLITS} | {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "testing": "test",
}
_REQUIRED_COLUMNS = ("patient_id", "path", "label")


@dataclasses.dataclass(frozen=True)
class Person:
    """One person of a cohort.

    Attributes:
      patient_id: as the cohort has it.
      paths: one or more series (folders, zips, volumes) or single slices.
      label: the diagnosis.
      split: one of `SPLITS`, or "" where the cohort gives none.
      site: the hospital, or "".
      series_uid: the DICOM series to take where a folder holds several, or "": the largest.
    """

    patient_id: str
    paths: tuple[Path, ...]
    label: str
    split: str
    site: str
    series_uid: str = ""


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The persons of a `cohort.csv`, in the order of their first rows.

    Attributes:
      path: the file.
      labels: names of the classes, in the order in which the model numbers them.
      persons: each once.
    """

    path: Path
    labels: tuple[str, ...]
    persons: tuple[Person, ...]

    @property
    def has_split(self) -> bool:
        return bool(self.persons[0].split)


def read_cohort(path: str | os.PathLike, labels: Sequence[str] = ()) -> Cohort:
    """Reads `cohort.csv`: columns patient_id, path, label and, if wanted, split, site, series_uid.

    A person has one or many rows; `path` is relative to the file.

    Args:
      path: the file, in UTF-8.
      labels: names of the classes, in order; empty: the labels in the order of first appearance.

    Raises:
      InputError: the file cannot be read, a column or a value is missing, a path does not exist, a
        label is unknown, a path is there twice, or a person has two labels, splits, sites or
        series.
    """
    path = Path(path)
    rows = _read_rows(path)
    labels = tuple(labels) or tuple(dict.fromkeys(row["label"] for _, row in rows))
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise InputError(
            f"{path} has the labels {', '.join(labels)}; a diagnosis needs two or more."
        )

    first_rows: dict[str, tuple[int, dict[str, str]]] = {}
    paths: dict[str, list[Path]] = {}
    lines: dict[Path, int] = {}
    for line, row in rows:
        where = f"{path}, line {line}"
        if row["label"] not in labels:
            raise InputError(
                f"{where}: unknown label {row['label']!r}; use one of {', '.join(labels)}, "
                "or name it in --labels."
            )
        patient_id = row["patient_id"]
        first_line, first = first_rows.setdefault(patient_id, (line, row))
        for column in ("label", "split", "site", "series_uid"):
            if row[column] != first[column]:
                raise InputError(
                    f"{where}: person {patient_id!r} has {column} {row[column]!r} here and "
                    f"{first[column]!r} in line {first_line}; give a person one {column}."
                )
        file = path.parent / row["path"]
        # os.path's, which take a path that may not be looked at for one that is not there.
        if not os.path.exists(file):
            raise InputError(
                f"{where}: {file} does not exist or may not be read; "
                f"paths are relative to {path.parent}."
            )
        if file in lines:
            raise InputError(
                f"{where}: {row['path']} is in line {lines[file]} already; remove one of the rows."
            )
        lines[file] = line
        paths.setdefault(patient_id, []).append(file)

    persons = tuple(
        Person(
            patient_id=patient_id,
            paths=tuple(paths[patient_id]),
            label=row["label"],
            split=row["split"],
            site=row["site"],
            series_uid=row["series_uid"],
        )
        for patient_id, (_, row) in first_rows.items()
    )
    without_split = [person.patient_id for person in persons if not person.split]
    if 0 < len(without_split) < len(persons):
        raise InputError(
            f"{path} gives a split for some persons but not for {without_split[0]!r}; "
            "fill the column for all, or leave it out."
        )
    return Cohort(path, labels, persons)


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        # utf-8-sig: spreadsheets put a mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(
            f"--cohort={path} cannot be read ({error.strerror}); check the path."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--cohort={path} is not a CSV file in UTF-8 ({error}).") from error
    for column in _REQUIRED_COLUMNS:
        if column not in header:
            raise InputError(
                f"{path} has no column {column!r}; its first line must name "
                f"{', '.join(_REQUIRED_COLUMNS)} and may name split, site and series_uid."
            )
    if not rows:
        raise InputError(f"{path} lists no person; add a row for each.")
    return [(line, _checked_row(f"{path}, line {line}", row)) for line, row in rows]


def _checked_row(where: str, row: dict) -> dict[str, str]:
    if None in row or None in row.values():
        raise InputError(f"{where}: the row has not as many fields as the first line; mend it.")
    row = {column: value.strip() for column, value in row.items()}
    for column in _REQUIRED_COLUMNS:
        if not row[column]:
            raise InputError(f"{where}: {column} is empty; fill it or remove the row.")
    split = row.get("split", "")
    if split and split.lower() not in _SPLIT_NAMES:
        raise InputError(f"{where}: unknown split {split!r}; use one of {', '.join(SPLITS)}.")
    return {
        **{column: row[column] for column in _REQUIRED_COLUMNS},
        "split": _SPLIT_NAMES[split.lower()] if split else "",
        "site": row.get("site", ""),
        "series_uid": row.get("series_uid", ""),
    }
