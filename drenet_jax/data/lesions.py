"""`lesions.csv`: boxes of the lesions of some slices, of `synthesize` or a radiologist."""

from __future__ import annotations

import os

from drenet_jax.ct.orientation import Box
from drenet_jax.data.csv_tables import read_rows
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
    usage = f"a table of lesions has {', '.join(_COLUMNS)}"
    _, rows = read_rows(path, required=_COLUMNS, usage=usage, filled=_COLUMNS[:2])
    lesions: dict[tuple[str, str], list[Box]] = {}
    for line, row in rows:
        # The patient_id is spelled as in the records.
        key = clean(row["patient_id"]), row["slice_name"]
        lesions.setdefault(key, []).append(_box(row, f"{path}, line {line}"))
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
