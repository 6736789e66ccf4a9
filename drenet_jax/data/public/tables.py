"""Tables that come with data sets: CSV files and spreadsheets."""

from __future__ import annotations

import csv
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from drenet_jax.data.identities import clean
from drenet_jax.errors import InputError

_XLSX = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_table(
    path: Path, columns: Sequence[tuple[str, ...]], optional: Sequence[tuple[str, ...]] = ()
) -> list[tuple[str, ...]]:
    """Reads some columns of a CSV file or of an .xlsx file's first sheet.

    Args:
      path: the file; its first line names the columns. Bytes that are not UTF-8 become marks.
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
    except (
        csv.Error,
        zipfile.BadZipFile,
        ElementTree.ParseError,
        IndexError,
        KeyError,
        ValueError,
    ) as error:
        raise InputError(
            f"{path} is no table that can be read; download it again, or save it as CSV."
        ) from error
    header = [clean(name).lower() for name in lines[0]] if lines else []
    for name in (item for names in (*columns, *optional) for item in names):
        if header.count(name) > 1:
            raise InputError(f"{path} has the column {name!r} twice; remove or rename one.")
    places = [
        next((header.index(name) for name in names if name in header), None)
        for names in (*columns, *optional)
    ]
    for names, place in zip(columns, places, strict=False):
        if place is None:
            raise InputError(
                f"{path} has no column {names[0]!r} in its first line; download it again."
            )
    return [tuple(_value(line, place) for place in places) for line in lines[1:]]


def _value(line: Sequence[str], place: int | None) -> str:
    return " ".join(clean(line[place]).split()) if place is not None and place < len(line) else ""


def _csv_lines(path: Path) -> Iterable[list[str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield from csv.reader(file)


def _xlsx_lines(path: Path) -> Iterable[list[str]]:
    """An .xlsx file is a zip of XML; most texts lie in a list apart, cells hold their numbers."""
    with zipfile.ZipFile(path) as archive:
        texts: list[str] = []
        if "xl/sharedStrings.xml" in archive.namelist():
            shared = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
            texts = [_text(item) for item in shared.iter(f"{_XLSX}si")]
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    for row in sheet.iter(f"{_XLSX}row"):
        line: list[str] = []
        for cell in row.iter(f"{_XLSX}c"):
            # Empty cells are left out of the file.
            place = _column(reference) if (reference := cell.get("r")) else len(line)
            line += [""] * (place - len(line))
            value = cell.findtext(f"{_XLSX}v", "")
            kind = cell.get("t")
            if kind == "s":
                value = texts[int(value)]
            elif kind == "inlineStr":
                value = _text(cell)
            line.append(value)
        yield line


def _text(element: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in element.iter(f"{_XLSX}t"))


def _column(reference: str) -> int:
    """The place of a cell's column: 0 for A1, 26 for AA7."""
    letters = re.match(r"[A-Z]{1,3}(?=[0-9])", reference)
    if not letters:
        raise ValueError(f"no cell: {reference}")
    place = 0
    for letter in letters[0]:
        place = 26 * place + ord(letter) - ord("A") + 1
    return place - 1
