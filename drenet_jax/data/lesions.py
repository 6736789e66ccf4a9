"""`lesions.csv`: where the lesions of some slices are, as `synthesize` or a radiologist says."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from drenet_jax.ct.orientation import Box
from drenet_jax.data.identities import clean
from drenet_jax.errors import InputError

# Looked for beside `cohort.csv`, and kept in the prepared folder.
LESIONS_FILE = "lesions.csv"

_EDGES = ("y0", "x0", "y1", "x1")
_COLUMNS = ("patient_id", "slice_name", *_EDGES)


def read_lesions(path: str | os.PathLike[str]) -> dict[tuple[str, str], list[Box]]:
    """(patient_id, slice_name) -> the boxes of the slice's lesions, in pixels as stored, half open.

    The slices of a volume are called by its file, `#` and their number from 1 along the slice axis
    of the array as stored; `ct.orientation.FileAxes` says how y and x count there.

    Args:
      path: a table with the columns patient_id, slice_name (as in the records and in slices.csv),
        y0, x0, y1, x1; others are ignored. One row a box; lesions of a slice may overlap.

    Raises:
      InputError: the file is missing, is no such table, or a box is none.
    """
    path = Path(path)
    lesions: dict[tuple[str, str], list[Box]] = {}
    try:
        # utf-8-sig: spreadsheets put a mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            reader.fieldnames = [clean(name) for name in reader.fieldnames or ()]
            twice = [name for name in _COLUMNS if reader.fieldnames.count(name) > 1]
            if twice:
                raise InputError(f"{path} has the column {twice[0]!r} twice; remove or rename one.")
            missing = [name for name in _COLUMNS if name not in reader.fieldnames]
            if missing:
                raise InputError(
                    f"{path} has no column {', '.join(missing)}; a table of lesions has "
                    f"{', '.join(_COLUMNS)}."
                )
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in (row["patient_id"], row["slice_name"]):
                    raise InputError(
                        f"{where}: the row has not as many fields as the first line; fix it."
                    )
                # The spelling of the records.
                key = clean(row["patient_id"]), row["slice_name"]
                lesions.setdefault(key, []).append(_box(row, where))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV table in UTF-8 ({error}).") from error
    if not lesions:
        raise InputError(f"{path} names no lesion; give a table with a row for each box.")
    return lesions


def _box(row: dict[str, str], where: str) -> Box:
    try:
        y0, x0, y1, x1 = (float(row[name]) for name in _EDGES)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: y0, x0, y1 and x1 must be numbers; fix the row.") from error
    if not (0 <= y0 < y1 < float("inf") and 0 <= x0 < x1 < float("inf")):
        raise InputError(
            f"{where}: the box {y0:g}, {x0:g}, {y1:g}, {x1:g} (y0, x0, y1, x1) is empty or lies "
            "outside the slice; fix the row."
        )
    return y0, x0, y1, x1
