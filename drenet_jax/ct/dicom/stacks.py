"""Which slices form one stack: one pass over one patient, in order along the patient.

What lies in a folder may be of two patients, studies, passes or reconstructions, with identifiers
that are the same for all, missing, or different in each slice: scanners number acquisitions
slice by slice, and programs that remove identity write what they like. So no identifier is taken
at its word: one that splits a regular stack into single slices is ignored, and slices that no
identifier distinguishes must lie as those of one stack do.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from drenet_jax.ct.dicom import geometry
from drenet_jax.ct.dicom.copies import (
    NoStackError,
    without_copies,
    without_equal_files,
)
from drenet_jax.ct.dicom.files import DicomFiles
from drenet_jax.ct.dicom.grouping import (
    IDENTITIES,
    MAY_FOLLOW,
    MOST_OF_A_VALUE,
    AttributeTable,
    Group,
    are_counted,
    are_in_order,
    common_series_uid,
    split,
    words_of,
)
from drenet_jax.ct.dicom.headers import NO_PLACE, PATIENT_TAGS, DicomSlice
from drenet_jax.ct.dicom.selection import Comparison
from drenet_jax.ct.sources import Excluded

# So many series are named in a note.
_MOST_NAMED = 8

# From this cosine of normal and patient's axis on a slice counts as tilted: 2.6 degrees.
_TILTED_BELOW = 0.999

# Slices of which each names another patient, and not all the same series, are taken for one stack
# if there are so many of them, so close to each other.
_LEAST_UNNAMED = 8
_LARGEST_UNNAMED_STEP_MM = 12.0
# Slices this far from all others have a wrong position.
_LEAST_STRAY_MM = 100.0
_LEAST_STRAY_STEPS = 15
_MOST_STRAYS = 2
# What is taken of a series covers this share of its way along the patient, or nothing is taken.
_LEAST_COVERAGE = 0.6


@dataclasses.dataclass(frozen=True)
class Stack:
    """The slices of the chosen stack from the feet to the head, and the rest.

    Attributes:
      slices: [N], in order.
      places_mm: [N], along their normal, growing from the feet to the head.
      excluded: slices that are left out, and why.
      notes: what is odd, in words.
      is_counted: whether the scanner's numbers of the slices grow evenly along the patient, as they
        do in a stack that was scanned so.
      names_vary: whether patient, study or series differ from slice to slice.
    """

    slices: tuple[DicomSlice, ...]
    places_mm: tuple[float, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]
    is_counted: bool
    names_vary: bool


def choose(
    slices: Sequence[DicomSlice],
    series_uid: str,
    *,
    files: DicomFiles,
    nth: int = 0,
) -> Stack | str:
    """Takes one stack and orders it by place along the slice normal.

    Stacks that cover the chest, along and across it, go before smaller ones, original slices before
    derived ones (MIP, MinIP, averages), slices of up to 3 mm before thicker ones, lung kernels
    before others, then more slices before fewer.

    Args:
      slices: of all files, at least one.
      series_uid: takes a stack of this series; '': of all.
      files: of the slices; second copies of a slice are known by their pixels.
      nth: takes the best stack (0), the next best (1) and so on.

    Returns:
      The stack, or, where there is no such series or no further stack, which series there are.

    Raises:
      NoStackError: the headers do not separate the slices of two stacks.
    """
    placed = [slice_ for slice_ in slices if slice_.position_mm is not None]
    without_place = [slice_ for slice_ in slices if slice_.position_mm is None]
    if not placed:
        if len(without_place) > 1:
            raise NoStackError(
                f"{len(without_place)} DICOM files without position and orientation: no known place"
            )
        placed, without_place = without_place, []  # one slice needs no place
    if series_uid and all(slice_.series_uid != series_uid for slice_ in placed):
        return _series_in_words(placed)
    placed, excluded = without_equal_files(placed, files)
    table = AttributeTable(placed)
    leaves = list(split(table, table.rows_of_series(series_uid)))
    comparison = Comparison(table, [leaf.rows for leaf in leaves])
    if nth >= len(leaves):
        return _series_in_words(placed)
    best = leaves[comparison.order[nth]]
    _require_coverage(table, best.rows)
    _require_few_patients(table, best.rows)
    excluded += [Excluded(slice_.label, NO_PLACE) for slice_ in without_place]
    why_left = {
        row: table.why_apart(row, best.rows)
        for row in np.setdiff1d(np.arange(len(table.slices)), best.rows).tolist()
    }
    excluded += [Excluded(table.slices[row].label, why) for row, why in why_left.items()]
    kept, copies = without_copies(table, best.rows, files)
    excluded += copies
    kept, strays = _without_strays(table, kept)
    excluded += strays
    places_mm = table.places_mm(kept)
    ordered = [table.slices[i] for i in kept]
    _require_names(ordered, places_mm, best.ignored)
    numbers = [slice_.instance_number for slice_ in ordered]
    if not (are_in_order(numbers) or geometry.is_one_stack(places_mm)):
        raise NoStackError(_irregular(places_mm))
    return Stack(
        slices=tuple(ordered),
        places_mm=tuple(places_mm.tolist()),
        excluded=tuple(excluded),
        notes=tuple(_notes(table, best, why_left, comparison, ordered, places_mm, nth)),
        is_counted=are_counted(numbers, places_mm),
        names_vary=_names_vary(ordered, best.ignored),
    )


def _require_coverage(table: AttributeTable, best: np.ndarray) -> None:
    """Refuses a part of a scan whose acquisitions overlap, so that no order is known."""
    scan = np.ones(len(table.slices), bool)
    for name, labels in table.columns.items():
        if name not in MAY_FOLLOW:
            scan &= np.isin(labels, labels[best])
    whole_mm = np.ptp(table.places_mm(np.flatnonzero(scan)))
    if len(best) > 1 and np.ptp(table.places_mm(best)) < _LEAST_COVERAGE * whole_mm:
        raise NoStackError(
            f"{np.count_nonzero(scan)} slices of acquisitions that overlap each other, of which "
            "none covers the whole"
        )


def _require_few_patients(table: AttributeTable, best: np.ndarray) -> None:
    """Refuses a few slices of one among many patients: the folder is none of a person."""
    names = [name for name in PATIENT_TAGS if name in table.columns]
    n_patients = max((len(np.unique(table.columns[name])) for name in names), default=1)
    is_split = any(len(np.unique(table.columns[name][best])) == 1 for name in names)
    if n_patients > 2 and is_split and len(best) <= MOST_OF_A_VALUE:
        raise NoStackError(f"{len(table.slices)} slices of {n_patients} patients, a few of each")


def _names_vary(slices: Sequence[DicomSlice], ignored: frozenset[str]) -> bool:
    """Whether it is open of which patient or series slices are."""
    has_series = "SeriesInstanceUID" not in ignored and all(slice_.series_uid for slice_ in slices)
    return bool(ignored & set(PATIENT_TAGS) or (ignored & IDENTITIES and not has_series))


def _without_strays(table: AttributeTable, rows: np.ndarray) -> tuple[np.ndarray, list[Excluded]]:
    """The rows, in order, without the few at an end that lie far from all others."""
    places_mm = table.places_mm(rows)
    steps = np.diff(places_mm)
    if len(rows) < 10 * _MOST_STRAYS:
        return rows, []
    limit_mm = max(_LEAST_STRAY_MM, _LEAST_STRAY_STEPS * np.median(steps))
    gaps = np.flatnonzero(steps > limit_mm) + 1
    first = max((gap for gap in gaps if gap <= _MOST_STRAYS), default=0)
    end = min((gap for gap in gaps if gap >= len(rows) - _MOST_STRAYS), default=len(rows))
    strays = [
        Excluded(table.slices[row].label, "far from all other slices: a wrong position")
        for row in (*rows[:first], *rows[end:])
    ]
    return rows[first:end], strays


def _require_names(
    slices: Sequence[DicomSlice], places_mm: np.ndarray, ignored: frozenset[str]
) -> None:
    """Refuses a few slices, or slices far from each other, of which each names another patient."""
    if common_series_uid(slices) or not ignored & {"PatientID", "PatientName"}:
        return
    if len(slices) < _LEAST_UNNAMED or np.median(np.diff(places_mm)) > _LARGEST_UNNAMED_STEP_MM:
        raise NoStackError(
            f"{len(slices)} slices of which each names another patient, too few or too far from "
            "each other to be one patient's"
        )


def _irregular(places_mm: np.ndarray) -> str:
    steps = np.diff(places_mm)
    return (
        f"{len(places_mm)} slices that do not lie as those of one stack do (steps of "
        f"{steps.min():.1f} to {steps.max():.1f} mm), with nothing in their headers that says "
        "which belong together"
    )


# What is odd, in words


def _series_in_words(slices: Sequence[DicomSlice]) -> str:
    """Series by number and size: a UID would lead to the patient."""
    counts = collections.Counter((slice_.series_uid, slice_.series_number) for slice_ in slices)
    named = [
        f"series {number or 'without a number'} of {_n_slices(count)}"
        for (_, number), count in counts.most_common(_MOST_NAMED)
    ]
    more = len(counts) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _n_slices(count: int) -> str:
    return f"{count} slice{'s' if count > 1 else ''}"


def _notes(
    table: AttributeTable,
    best: Group,
    why_left: Mapping[int, str],
    comparison: Comparison,
    ordered: Sequence[DicomSlice],
    places_mm: np.ndarray,
    nth: int,
) -> Iterator[str]:
    yield from _notes_on_places(ordered, places_mm)
    projection = comparison.projection(best.rows)
    if projection:
        yield f"the slices are derived ({projection}), not those that the scanner made"
    series = {slice_.series_uid for slice_ in ordered}
    others = [table.slices[row] for row in why_left if table.slices[row].series_uid not in series]
    if others:
        yield f"left out beside the series taken: {_series_in_words(others)}"
    counts = collections.Counter(
        why for row, why in why_left.items() if table.slices[row].series_uid in series
    )
    for why, count in counts.most_common():
        yield f"left out of the series taken: {_n_slices(count)}, each {why}"
    why = comparison.why_not_the_largest() if nth == 0 else ""
    if why:
        yield why
    varying = best.ignored & IDENTITIES
    patients = [table.columns[name] for name in PATIENT_TAGS if name in table.columns]
    if any(not np.isin(labels[list(why_left)], labels[best.rows]).all() for labels in patients):
        yield "the files are of more than one patient; slices of only one of them are used"
    if varying:
        names = " and ".join(words_of(varying))
        yield (
            f"{names} differ within the slices that are taken, which lie as those of one stack do"
        )


def _notes_on_places(ordered: Sequence[DicomSlice], places_mm: np.ndarray) -> Iterator[str]:
    cosine = abs(np.cross(ordered[0].cosines[:3], ordered[0].cosines[3:])[2])
    if cosine < _TILTED_BELOW:
        yield f"the gantry is tilted by {np.degrees(np.arccos(cosine)):.0f} degrees"
    steps_mm = np.diff(places_mm)
    if len(steps_mm) < 2:
        return
    usual_mm = float(np.median(steps_mm))
    missing = int(np.sum(np.maximum(np.rint(steps_mm / usual_mm) - 1, 0)))
    if missing:
        first = int(np.argmax(np.rint(steps_mm / usual_mm) > 1))
        yield (
            f"{missing} slice{'s' if missing > 1 else ''} missing (spacing {usual_mm:.1f} mm, up "
            f"to {steps_mm.max():.1f} mm; first behind slice {first + 1} of {len(ordered)})"
        )
    elif np.ptp(steps_mm) > max(0.1, 0.1 * usual_mm):
        yield f"uneven spacing of slices: {steps_mm.min():.1f} to {steps_mm.max():.1f} mm"
