"""Writes what was found of a data set as a `cohort.csv`."""

from __future__ import annotations

import contextlib
import os
import posixpath
from pathlib import Path

from drenet_jax.ct.sources import printable
from drenet_jax.data.csv_tables import write_rows
from drenet_jax.data.identities import control_character, person_variants, value_variants
from drenet_jax.data.public.scan import ScanResult
from drenet_jax.errors import InputError
from drenet_jax.output_files import made_folder


def require_new(out: Path) -> None:
    """Raises an InputError if there is something at `out` already."""
    if os.path.lexists(out):
        raise InputError(f"--out={out} exists already; name a new file, or remove that one first.")


def write_cohort(scan: ScanResult, out: Path) -> None:
    """Writes `scan` as a cohort file, whole or not at all.

    Columns: patient_id, path (relative to the file's folder), label, and split and site where the
    data set has them.

    Args:
      scan: of one data set.
      out: the file to make. It must not exist yet; its parents are made.

    Raises:
      InputError: `out` exists or cannot be written; there are fewer than two labels, a patient
        has two of them, two names differ only in their spelling, or a name cannot be written in a
        CSV file in UTF-8.
    """
    require_new(out)
    columns, rows = _table(scan, out)
    scratch = out.with_name(f".{out.name}.unfinished")
    try:
        with made_folder(out.absolute().parent):
            try:
                write_rows(scratch, columns, rows)
                scratch.rename(out)
            except BaseException:
                with contextlib.suppress(OSError):
                    scratch.unlink()
                raise
    except OSError as error:
        raise InputError(
            f"--out={out} cannot be written ({error.strerror}); "
            "name a file in a place where you may write."
        ) from error


def _table(scan: ScanResult, out: Path) -> tuple[list[str], list[list[str]]]:
    labels = dict.fromkeys(row.label for row in scan.rows)
    if len(labels) < 2:
        raise InputError(
            f"--root={scan.root} holds persons with the label {', '.join(labels) or '(none)'} "
            "only; a diagnosis needs two labels or more."
        )
    # Both without links, since `..` after a link leads elsewhere than its name says.
    root = Path(os.path.relpath(os.path.realpath(scan.root), os.path.realpath(out.parent)))
    columns = ["patient_id", "path", "label"]
    columns += [name for name in ("split", "site") if any(getattr(row, name) for row in scan.rows)]
    label_of: dict[str, str] = {}
    spellings = {
        "patient_id": person_variants(),
        "label": value_variants("label"),
        "site": value_variants("site"),
    }
    lines = []
    for row in scan.rows:
        if label_of.setdefault(row.patient_id, row.label) != row.label:
            raise InputError(
                f"--root={scan.root} has a person {row.patient_id!r} under two labels, "
                f"{label_of[row.patient_id]} and {row.label}; keep one."
            )
        path = posixpath.normpath(posixpath.join(root.as_posix(), row.path))
        if path != path.strip() or path.splitlines() != [path] or printable(path) != path:
            raise InputError(
                f"{printable(path)!r} ends in a blank, has a line break or is not UTF-8, which a "
                "cohort file cannot hold; rename it."
            )
        for column, variants in spellings.items():
            value = getattr(row, column)
            if control_character(value) or (not value and column != "site"):
                raise InputError(
                    f"{printable(path)!r} would have the {column} {value!r}, which is empty or "
                    "holds a control character; rename it."
                )
            if value:
                variants.add(value, f"--root={scan.root}", path)
        lines.append([path if name == "path" else getattr(row, name) for name in columns])
    return columns, lines
