"""The QC pages of `prepare`: every picked slice with its lung outline, those to review first."""

from __future__ import annotations

import base64
import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drenet_jax.data.qc_summary import QcEntry, concern
from drenet_jax.data.staging import read_qc_entry
from drenet_jax.html_templates import render

# With 15 slices each a page of so many takes about 8 MB.
PERSONS_A_PAGE = 100


class QcCounts(NamedTuple):
    """How many persons of the cohort there are on the pages, for the headings."""

    left_out: int
    flagged: int
    clear: int

    @classmethod
    def of(cls, severities: Iterable[float]) -> QcCounts:
        """The counts from the `QcEntry.severity` of all persons."""
        counter = collections.Counter(map(concern, severities))
        return cls(*(counter[group] for group in range(3)))


def write_qc_pages(
    folder: Path,
    persons: Iterator[tuple[Path, str]],
    counts: QcCounts,
    parallel_map: Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]],
) -> None:
    """Writes `qc.html` and, for more than `PERSONS_A_PAGE` persons, `qc/002.html` and so on.

    Args:
      folder: where `qc.html` goes.
      persons: (staged file, split) of each, in the order of the pages; no split: left out.
      counts: of all persons.
      parallel_map: does `function(*task)` for every task, perhaps in other processes.
    """
    n_pages = -(-sum(counts) // PERSONS_A_PAGE)
    tasks = (
        (folder, page, n_pages, list(itertools.islice(persons, PERSONS_A_PAGE)), counts)
        for page in range(n_pages)
    )
    if n_pages == 1:
        write_qc_page(*next(tasks))
        return
    (folder / "qc").mkdir()
    for _ in parallel_map(write_qc_page, tasks):
        pass


def write_qc_page(
    folder: Path, page: int, n_pages: int, persons: Sequence[tuple[Path, str]], counts: QcCounts
) -> None:
    """Writes one page; the first, number 0, is `qc.html`. Each is one file without outside links.

    The pictures of a page are read from the staged files here, so no process holds all.
    """
    entries = [(read_qc_entry(staged), split) for staged, split in persons]
    html = render(
        "drenet_jax.data",
        "qc.html.j2",
        groups=_groups(entries, counts),
        counts=counts,
        page=page,
        n_pages=n_pages,
        persons_a_page=PERSONS_A_PAGE,
        links=[_link(page, other) for other in range(n_pages)] if page == 0 else [],
        previous=_link(page, page - 1) if page > 0 else "",
        following=_link(page, page + 1) if page + 1 < n_pages else "",
        first=_link(page, 0),
    )
    (folder / _place(page)).write_text(html, encoding="utf-8")


def _place(page: int) -> str:
    return f"qc/{page + 1:03d}.html" if page else "qc.html"


def _link(here: int, there: int) -> str:
    return f"../{_place(there)}" if here else _place(there)


def _groups(entries: Sequence[tuple[QcEntry, str]], counts: QcCounts) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [
        {"name": "left-out", "title": "Left out", "count": counts.left_out, "rows": []},
        {"name": "flagged", "title": "Flagged for review", "count": counts.flagged, "rows": []},
        {"name": "clear", "title": "Nothing odd found", "count": counts.clear, "rows": []},
    ]
    for entry, split in entries:
        groups[concern(entry.severity)]["rows"].append(_row(entry, split))
    return [group for group in groups if group["rows"]]


def _row(entry: QcEntry, split: str) -> dict[str, Any]:
    return {
        "entry": entry,
        "split": split,
        "thumbnails": [
            {
                "name": thumbnail.name,
                "why": thumbnail.why_excluded,
                "short_why": short(thumbnail.why_excluded),
                "percent": round(100 * thumbnail.area_share),
                "jpeg": base64.b64encode(thumbnail.jpeg).decode(),
            }
            for thumbnail in entry.thumbnails
        ],
    }


def short(why: str) -> str:
    """A reason without what concerns one file alone, which follows a colon or a parenthesis."""
    return why.partition(":")[0].partition("(")[0].strip()
