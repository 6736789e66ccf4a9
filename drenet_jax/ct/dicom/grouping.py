"""Slices that may be of one stack, by what tells them apart and by how they lie."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from drenet_jax.ct.dicom import geometry
from drenet_jax.ct.dicom.attributes import AttributeTable
from drenet_jax.ct.dicom.headers import PATIENT_TAGS, SERIES_TAGS, STUDY_TAGS, DicomSlice

# So many values, each of two slices, are counted slice by slice in both of two stacks.
_LEAST_PAIRS = 6
# Values that change after so few slices are none of a stack.
MOST_OF_A_VALUE = 8
# Steps from number to number may differ by this share, or by the rounding of places.
_UNEVEN = 0.1
_ROUNDED_TO_MM = 0.11
# Single slices of another acquisition follow a scan within so many of its steps.
_LARGEST_SEAM_STEPS = 1.5

# Slices that differ in one of these are of one stack if they follow each other along the patient:
# a scan may be made in several turns of the tube or breath-holds.
MAY_FOLLOW = frozenset(
    {
        "origin",
        "ImageType",
        "FrameType",
        "SliceThickness",
        "KVP",
        "ContrastBolusAgent",
        "AcquisitionNumber",
        "AcquisitionDate",
        "AcquisitionTime",
        "FrameAcquisitionNumber",
        "TemporalPositionIdentifier",
        "TemporalPositionIndex",
        "StackID",
    }
)
# A scan of which the slices are counted throughout may change these on its way.
_MAY_CHANGE = frozenset(
    ("PatientBirthDate", "PatientSex", *STUDY_TAGS, *SERIES_TAGS, "FrameOfReferenceUID")
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Slices that nothing tells apart.

    Attributes:
      rows: of the table.
      ignored: columns that differ within them, but from slice to slice.
    """

    rows: np.ndarray
    ignored: frozenset[str]


def split(
    table: AttributeTable, rows: np.ndarray, ignored: frozenset[str] = frozenset()
) -> Iterator[Group]:
    """Splits slices by the column with the fewest values that splits them for a reason."""
    counts = {
        name: len(np.unique(labels[rows]))
        for name, labels in table.columns.items()
        if name not in ignored
    }
    # Acquisitions last: those of several series may seem to overlap.
    order = sorted(
        (name for name, n in counts.items() if n > 1),
        key=lambda name: (name in MAY_FOLLOW, counts[name]),
    )
    for name in order:
        labels = table.columns[name][rows]
        pieces = _pieces(rows, labels, table.is_unknown(name, rows))
        if _is_of_one_stack(table, name, rows, pieces):
            ignored = ignored | {name}
            continue
        for piece in pieces:
            yield from split(table, piece, ignored)
        return
    yield Group(rows, ignored)


def _pieces(rows: np.ndarray, labels: np.ndarray, is_unknown: np.ndarray) -> list[np.ndarray]:
    """Slices with equal labels; many single ones beside others are one piece, of which each slice
    has its own."""
    pieces = {label: rows[labels == label] for label in np.unique(labels)}
    single = [label for label, piece in pieces.items() if len(piece) == 1]
    large = set(labels[~is_unknown].tolist()) - set(single)
    if len(single) < _LEAST_PAIRS or not large:
        return list(pieces.values())
    together = np.sort(np.concatenate([pieces.pop(label) for label in single]))
    return [*pieces.values(), together]


def _is_of_one_stack(
    table: AttributeTable, name: str, rows: np.ndarray, pieces: Sequence[np.ndarray]
) -> bool:
    """Whether a column's values differ within a stack, rather than between stacks."""
    is_unknown = table.is_unknown(name, rows)
    known = [piece for piece in pieces if not table.is_unknown(name, piece).any()]
    if _varies(table, name, known):
        return True
    if (
        len(rows) == 2
        and name not in PATIENT_TAGS
        and common_series_uid([table.slices[row] for row in rows])
    ):
        return True
    places_mm = np.sort(table.places_mm(rows))
    if name in MAY_FOLLOW:
        if _follow(table, pieces, places_mm):
            return True
    elif len(known) <= 1 or name in _MAY_CHANGE:
        # A scan that goes on under another name, or without one: its slices are counted throughout.
        in_order = rows[np.argsort(table.places_mm(rows), kind="stable")]
        numbers = [table.slices[row].instance_number for row in in_order]
        if are_counted(numbers, places_mm) and _follow(table, pieces, places_mm):
            return True
    # Removed from, or changed in, some slices only: two stacks would each be even.
    return (
        ((len(known) <= 1 and is_unknown.any()) or name in _MAY_CHANGE)
        and geometry.is_even(places_mm)
        and not all(geometry.is_even(np.sort(table.places_mm(piece))) for piece in pieces)
    )


def _varies(table: AttributeTable, name: str, pieces: Sequence[np.ndarray]) -> bool:
    """Whether values differ from slice to slice, or from a few slices to the next few."""
    if len(pieces) < 3:
        return False
    sizes = [len(piece) for piece in pieces]
    if max(sizes) == 1:
        return True
    if max(sizes) <= 2 and len(pieces) >= _LEAST_PAIRS:
        return True
    if name in PATIENT_TAGS:
        return False
    return max(sizes) <= MOST_OF_A_VALUE and _are_apart(table, pieces)


def _are_apart(table: AttributeTable, pieces: Sequence[np.ndarray]) -> bool:
    """Whether no piece reaches into another along the patient."""
    ends = sorted((spots.min(), spots.max()) for spots in map(table.places_mm, pieces))
    return all(before[1] < after[0] for before, after in itertools.pairwise(ends))


def common_series_uid(slices: Sequence[DicomSlice]) -> str:
    """The series UID that all slices have; '' if there is none."""
    uids = {item.series_uid for item in slices}
    return uids.pop() if len(uids) == 1 else ""


def _follow(table: AttributeTable, pieces: Sequence[np.ndarray], places_mm: np.ndarray) -> bool:
    """Whether the pieces lie one behind the other along the patient."""
    if len(places_mm) < 2 or np.diff(places_mm).min() < geometry.SAME_PLACE_MM:
        return False
    ends = sorted((spots.min(), spots.max(), len(spots)) for spots in map(table.places_mm, pieces))
    usual_mm = np.median(np.diff(places_mm))
    # A slice or two far from the others are no part of a scan.
    return _are_apart(table, pieces) and all(
        min(before[2], after[2]) > 2 or after[0] - before[1] < _LARGEST_SEAM_STEPS * usual_mm
        for before, after in itertools.pairwise(ends)
    )


def are_in_order(numbers: Sequence[int | None]) -> bool:
    """Whether the scanner's numbers grow, or fall, from each slice to the next."""
    if len(numbers) < 2 or None in numbers:
        return False
    steps = np.sign(np.diff(numbers))
    return bool(np.all(steps == steps[0]) and steps[0] != 0)


def are_counted(numbers: Sequence[int | None], places_mm: np.ndarray) -> bool:
    """Whether each number has its place: they grow evenly with each other."""
    if not are_in_order(numbers):
        return False
    steps_mm = np.diff(places_mm) / np.abs(np.diff(numbers))
    return bool(np.ptp(steps_mm) <= max(_UNEVEN * np.median(steps_mm), _ROUNDED_TO_MM))
