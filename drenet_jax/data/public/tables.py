"""Tables that come with data sets: CSV files and spreadsheets."""

from __future__ import annotations

import csv
import itertools
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from drenet_jax.data.identities import clean
from drenet_jax.errors import InputError


def read_table(
    path: Path, columns: Sequence[tuple[str, ...]], optional: Sequence[tuple[str, ...]] = ()
) -> list[tuple[str, ...]]:
    """Reads some columns of a CSV file or of an .xlsx file's first sheet.

    Args:
      path: the file; its first line names the columns. Bytes that are not UTF-8 are replaced.
      columns: for each column wanted the names that it may have, in small letters.
      optional: likewise, for columns that may be missing.

    Returns:
      For each line the values of `columns` and `optional`, with single blanks between words; ""
      where there is none.

    Raises:
      InputError: the file cannot be read, or has no such column.
    """
    try:
        lines = list(_xlsx_lines(path) if path.suffix.lower() == ".xlsx" else _csv_lines(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check it.") from error
    # A damaged spreadsheet raises errors of zip, XML and openpyxl.
    except Exception as error:
        raise InputError(
            f"{path} is no table that can be read; download it again, or save it as CSV."
        ) from error
    header = [clean(name).lower() for name in lines[0]] if lines else []
    for name in itertools.chain(*columns, *optional):
        if header.count(name) > 1:
            raise InputError(f"{path} has the column {name!r} twice; remove or rename one.")
    indices = [
        next((header.index(name) for name in names if name in header), None)
        for names in (*columns, *optional)
    ]
    for names, index in zip(columns, indices, strict=False):
        if index is None:
            raise InputError(
                f"{path} has no column {names[0]!r} in its first line; download it again."
            )
    return [tuple(_value(line, index) for index in indices) for line in lines[1:]]


def _value(line: Sequence[str], index: int | None) -> str:
    return " ".join(clean(line[index]).split()) if index is not None and index < len(line) else ""


def _csv_lines(path: Path) -> Iterable[list[str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield from csv.reader(file)


def _xlsx_lines(path: Path) -> Iterable[list[str]]:
    import openpyxl  # not needed by most data sets

    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles and extensions that it does not know
        sheet = openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # some programs write wrong ones
        for row in sheet.iter_rows(values_only=True):
            yield ["" if value is None else str(value) for value in row]
