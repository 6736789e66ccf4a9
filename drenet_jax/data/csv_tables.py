"""CSV tables: all that is read from users and written for them is in one dialect."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from drenet_jax.data.identities import clean
from drenet_jax.errors import InputError
from drenet_jax.storage import objects


def read_rows(
    path: str | os.PathLike[str],
    *,
    required: Sequence[str] = (),
    usage: str = "",
    header: Callable[[Sequence[str]], list[str]] | None = None,
    flag: str = "",
    filled: Sequence[str] = (),
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns of a CSV file in UTF-8, and its rows with their line numbers.

    Args:
      path: the file, also in a bucket; its first line names the columns.
      required: columns that must be there.
      usage: what such a table has, for the message if one is missing.
      header: the keys of the rows from the names in the file; None: names by `identities.clean`.
      flag: the command-line flag that `path` came from, for messages.
      filled: columns that every row must reach; others than `required` are then ignored. Empty:
        every row has a field for every column.

    Raises:
      InputError: the file cannot be read, is not CSV in UTF-8, lacks a column or has one twice, or
        a row has more or fewer fields than the first line.
    """
    name = f"{flag}={path}" if flag else str(path)
    try:
        # utf-8-sig: spreadsheets put a mark before the first column's name.
        with objects.open_text(path, encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or ()
            columns = header(names) if header else [clean(column) for column in names]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name} is not a CSV file in UTF-8 ({error}).") from error
    for column in filter(None, required if filled else columns):
        if columns.count(column) > 1:
            raise InputError(f"{path} has the column {column!r} twice; remove or rename one.")
    missing = [column for column in required if column not in columns]
    if missing:
        named = ", ".join(missing) if filled else repr(missing[0])
        raise InputError(f"{path} has no column {named}; {usage}.")
    for line, row in rows:
        is_long = None in row and not filled
        if is_long or any(row[column] is None for column in filled or columns):
            raise InputError(
                f"{path}, line {line}: the row has not as many fields as the first line; fix it."
            )
    return columns, rows


@contextlib.contextmanager
def table_writer(path: str | os.PathLike[str], columns: Sequence[str]) -> Iterator[Any]:
    """A `csv.writer` of a new table in UTF-8 whose first line names the columns."""
    # A file name that is not UTF-8 reaches us with lone surrogates, which no encoding can write.
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        yield writer


def write_rows(
    path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Writes a table as `table_writer` does."""
    with table_writer(path, columns) as writer:
        writer.writerows(rows)
