"""Which slices form one stack: one pass over one patient, in order along the patient.

What lies in a folder may be of two patients, studies, passes or reconstructions, with identifiers
that are the same for all, missing, or different in each slice: scanners number acquisitions
slice by slice, and programs that remove identity write what they like. So no identifier is taken
at its word: one that splits a regular stack into single slices is ignored, and slices that no
identifier tells apart must lie as those of one stack do.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from drenet_jax.ct.dicom import geometry
from drenet_jax.ct.dicom.attributes import AttributeTable, words_of
from drenet_jax.ct.dicom.headers import PATIENT_TAGS, SERIES_TAGS, STUDY_TAGS, DicomSlice
from drenet_jax.ct.dicom.selection import Comparison
from drenet_jax.ct.files import CtError, Excluded

# So many series are named in a note.
_MOST_NAMED = 8

# From this cosine of normal and patient's axis on a slice counts as tilted: 2.6 degrees.
_TILTED_BELOW = 0.999

# So many values, each of two slices, are counted slice by slice in both of two stacks.
_LEAST_PAIRS = 6
# Values that change after so few slices are none of a stack.
_MOST_OF_A_VALUE = 8
# Slices of which each names another patient, and not all the same series, are taken for one stack
# if there are so many of them, so close to each other.
_LEAST_UNNAMED = 8
_LARGEST_UNNAMED_STEP_MM = 12.0
# Slices this far from all others have a wrong position.
_LEAST_STRAY_MM = 100.0
_LEAST_STRAY_STEPS = 15
_MOST_STRAYS = 2
# Steps from number to number may differ by this share, or by the rounding of places.
_UNEVEN = 0.1
_ROUNDED_TO_MM = 0.11
# Single slices of another acquisition follow a scan within so many of its steps.
_LARGEST_SEAM_STEPS = 1.5
# What is taken of a series covers this share of its way along the patient, or nothing is taken.
_LEAST_COVERAGE = 0.6

# Slices that differ in one of these are of one stack if they follow each other along the patient:
# a scan may be made in several turns of the tube or breath-holds.
_MAY_FOLLOW = frozenset(
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
    {
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyDate",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SeriesDescription",
        "FrameOfReferenceUID",
    }
)
_IDENTITIES = frozenset((*PATIENT_TAGS, *STUDY_TAGS, *SERIES_TAGS, "FrameOfReferenceUID"))


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


class Pixels(NamedTuple):
    """How pixels are reached, where headers do not suffice.

    Attributes:
      decode: gives the HU [H, W] of a slice; raises CtError.
      digest: gives the same for slices whose files are equal byte by byte.
    """

    decode: Callable[[DicomSlice], np.ndarray]
    digest: Callable[[DicomSlice], object]


class NoStackError(Exception):
    """Why no stack can be told from the others; the text names no patient."""


def choose(
    slices: Sequence[DicomSlice],
    series_uid: str,
    *,
    pixels: Pixels,
    nth: int = 0,
) -> Stack | str:
    """Takes one stack and orders it by place along the slice normal.

    Stacks that cover the chest, along and across it, go before smaller ones, original slices before
    derived ones (MIP, MinIP, averages), slices of up to 3 mm before thicker ones, lung kernels
    before others, then more slices before fewer.

    Args:
      slices: of all files, at least one.
      series_uid: takes a stack of this series; '': of all.
      pixels: by which second copies of a slice are known.
      nth: takes the best stack (0), the next best (1) and so on.

    Returns:
      The stack, or, where there is no such series or no further stack, which series there are.

    Raises:
      NoStackError: nothing tells the slices of one stack from those of another.
    """
    placed = [item for item in slices if item.position_mm is not None]
    without_place = [item for item in slices if item.position_mm is None]
    if not placed:
        if len(without_place) > 1:
            raise NoStackError(
                f"{len(without_place)} DICOM files without position and orientation: no known place"
            )
        placed, without_place = without_place, []  # one slice needs no place
    wanted = [item for item in placed if not series_uid or item.series_uid == series_uid]
    if not wanted:
        return _series_in_words(placed)
    placed, excluded = _without_equal_files(placed, pixels)
    wanted = [item for item in placed if not series_uid or item.series_uid == series_uid]
    table = AttributeTable(placed)
    leaves = list(_split(table, table.rows_of(wanted)))
    comparison = Comparison(table, [leaf.rows for leaf in leaves])
    if nth >= len(leaves):
        return _series_in_words(placed)
    best = leaves[comparison.order[nth]]
    _require_coverage(table, best.rows)
    _require_few_patients(table, best.rows)
    chosen = [table.slices[i] for i in best.rows]
    taken = set(map(id, chosen))
    excluded += [
        Excluded(item.label, "a DICOM file without position and orientation: no known place")
        for item in without_place
    ]
    for row, item in enumerate(table.slices):
        if id(item) not in taken:
            excluded.append(Excluded(item.label, table.why_apart(row, best.rows)))
    kept, copies = _without_copies(table, best.rows, pixels)
    excluded += copies
    kept, strays = _without_strays(table, kept)
    excluded += strays
    places_mm = table.places_mm(kept)
    ordered = [table.slices[i] for i in kept]
    _require_names(ordered, places_mm, best.ignored)
    numbers = [item.instance_number for item in ordered]
    if not (_are_in_order(numbers) or geometry.is_one_stack(places_mm)):
        raise NoStackError(_irregular(places_mm))
    return Stack(
        slices=tuple(ordered),
        places_mm=tuple(places_mm.tolist()),
        excluded=tuple(excluded),
        notes=tuple(_notes(table, best, comparison, ordered, places_mm, nth)),
        is_counted=_are_counted(numbers, places_mm),
        names_vary=_names_vary(ordered, best.ignored),
    )


# One stack or several


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Slices that nothing tells apart.

    Attributes:
      rows: of the table.
      ignored: columns that differ within them, but from slice to slice.
    """

    rows: np.ndarray
    ignored: frozenset[str]


def _split(
    table: AttributeTable, rows: np.ndarray, ignored: frozenset[str] = frozenset()
) -> Iterator[_Leaf]:
    """Splits slices by the column with the fewest values that splits them for a reason."""
    counts = {
        name: len(np.unique(labels[rows]))
        for name, labels in table.columns.items()
        if name not in ignored
    }
    # Acquisitions last: those of several series may seem to overlap.
    order = sorted(
        (name for name, n in counts.items() if n > 1),
        key=lambda name: (name in _MAY_FOLLOW, counts[name]),
    )
    for name in order:
        labels = table.columns[name][rows]
        pieces = _pieces(rows, labels, table.is_unknown(name, rows))
        if _is_of_one_stack(table, name, rows, pieces):
            ignored = ignored | {name}
            continue
        for piece in pieces:
            yield from _split(table, piece, ignored)
        return
    yield _Leaf(rows, ignored)


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
    if len(rows) == 2 and name not in PATIENT_TAGS and _series_uid(table, rows):
        return True
    places_mm = np.sort(table.places_mm(rows))
    if name in _MAY_FOLLOW:
        if _follow(table, pieces, places_mm):
            return True
    elif len(known) <= 1 or name in _MAY_CHANGE:
        # A scan that goes on under another name, or without one: its slices are counted throughout.
        in_order = rows[np.argsort(table.places_mm(rows), kind="stable")]
        numbers = [table.slices[row].instance_number for row in in_order]
        if _are_counted(numbers, places_mm) and _follow(table, pieces, places_mm):
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
    return max(sizes) <= _MOST_OF_A_VALUE and _are_apart(table, pieces)


def _are_apart(table: AttributeTable, pieces: Sequence[np.ndarray]) -> bool:
    """Whether no piece reaches into another along the patient."""
    ends = sorted((spots.min(), spots.max()) for spots in map(table.places_mm, pieces))
    return all(before[1] < after[0] for before, after in itertools.pairwise(ends))


def _series_uid(table: AttributeTable, rows: np.ndarray) -> str:
    """The series UID that all slices have; '' if there is none."""
    uids = {table.slices[row].series_uid for row in rows}
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


def _require_coverage(table: AttributeTable, best: np.ndarray) -> None:
    """Refuses a part of a scan whose acquisitions overlap, so that no order is known.

    Raises:
      NoStackError: the slices of the same scan reach far beyond those with the rows `best`.
    """
    scan = np.ones(len(table.slices), bool)
    for name, labels in table.columns.items():
        if name not in _MAY_FOLLOW:
            scan &= np.isin(labels, labels[best])
    whole_mm = np.ptp(table.places_mm(np.flatnonzero(scan)))
    if len(best) > 1 and np.ptp(table.places_mm(best)) < _LEAST_COVERAGE * whole_mm:
        raise NoStackError(
            f"{np.count_nonzero(scan)} slices of acquisitions that overlap each other, of which "
            "none covers the whole"
        )


def _require_few_patients(table: AttributeTable, best: np.ndarray) -> None:
    """Refuses a few slices of one among many patients: the folder is none of a person.

    Raises:
      NoStackError: it is such a folder.
    """
    names = [name for name in PATIENT_TAGS if name in table.columns]
    n_patients = max((len(np.unique(table.columns[name])) for name in names), default=1)
    is_split = any(len(np.unique(table.columns[name][best])) == 1 for name in names)
    if n_patients > 2 and is_split and len(best) <= _MOST_OF_A_VALUE:
        raise NoStackError(f"{len(table.slices)} slices of {n_patients} patients, a few of each")


def _without_equal_files(
    slices: Sequence[DicomSlice], pixels: Pixels
) -> tuple[list[DicomSlice], list[Excluded]]:
    """The slices without files that are there again, byte by byte.

    Before anything else: an identifier that differs in each slice would seem to be shared by them.
    """
    alike = collections.defaultdict(list)
    for item in slices:
        alike[item.frame, item.position_mm, item.sop_instance_uid].append(item)
    kept, excluded = [], []
    for items in alike.values():
        first_of: dict[object, DicomSlice] = {}
        for item in sorted(items, key=lambda item: item.label) if len(items) > 1 else ():
            first = first_of.setdefault(pixels.digest(item), item)
            if first is not item:
                why = f"at the same place as another slice: {first.label}"
                excluded.append(Excluded(item.label, why))
        kept += first_of.values() if len(items) > 1 else items
    return kept, excluded


def _without_copies(
    table: AttributeTable, rows: np.ndarray, pixels: Pixels
) -> tuple[np.ndarray, list[Excluded]]:
    """The rows in order, without second copies of a slice.

    Raises:
      NoStackError: slices at the same place differ.
    """
    places_mm = table.places_mm(rows)
    order = np.argsort(places_mm, kind="stable")
    at_one_place = np.split(
        rows[order], 1 + np.flatnonzero(np.diff(places_mm[order]) >= geometry.SAME_PLACE_MM)
    )
    kept, excluded = [], []
    for group in at_one_place:
        row, others = _one_of(table, sorted(group), pixels) if len(group) > 1 else (group[0], [])
        kept.append(row)
        excluded += others
    return np.array(kept), excluded


def _one_of(
    table: AttributeTable, rows: Sequence[int], pixels: Pixels
) -> tuple[int, list[Excluded]]:
    """The first of some slices at the same place that can be decoded; the others with why not."""
    files = {row: pixels.digest(table.slices[row]) for row in rows}
    decoded, excluded = {}, []
    for row in {digest: row for row, digest in reversed(files.items())}.values():
        try:
            decoded[row] = pixels.decode(table.slices[row])
        except CtError as error:
            excluded += [
                Excluded(table.slices[copy].label, error.why)
                for copy in rows
                if files[copy] == files[row]
            ]
    if not decoded:
        return rows[0], excluded[1:]
    first = min(decoded)
    item = table.slices[first]
    for row, image in decoded.items():
        if not np.array_equal(image, decoded[first]):
            raise NoStackError(
                f"different slices at the same place ({item.label} and "
                f"{table.slices[row].label} first), with nothing in their headers that says which "
                "belong together"
            )
    damaged = {one.name for one in excluded}
    excluded += [
        Excluded(table.slices[row].label, f"at the same place as another slice: {item.label}")
        for row in rows
        if row != first and table.slices[row].label not in damaged
    ]
    return first, excluded


def _are_in_order(numbers: Sequence[int | None]) -> bool:
    """Whether the scanner's numbers grow, or fall, from each slice to the next."""
    if len(numbers) < 2 or None in numbers:
        return False
    steps = np.sign(np.diff(numbers))
    return bool(np.all(steps == steps[0]) and steps[0] != 0)


def _are_counted(numbers: Sequence[int | None], places_mm: np.ndarray) -> bool:
    """Whether each number has its place: they grow evenly with each other."""
    if not _are_in_order(numbers):
        return False
    steps_mm = np.diff(places_mm) / np.abs(np.diff(numbers))
    return bool(np.ptp(steps_mm) <= max(_UNEVEN * np.median(steps_mm), _ROUNDED_TO_MM))


def _names_vary(slices: Sequence[DicomSlice], ignored: frozenset[str]) -> bool:
    """Whether it is open of which patient or series slices are."""
    has_series = "SeriesInstanceUID" not in ignored and all(item.series_uid for item in slices)
    return bool(ignored & set(PATIENT_TAGS) or (ignored & _IDENTITIES and not has_series))


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
    """Refuses a few slices, or slices far from each other, of which each names another patient.

    Raises:
      NoStackError: they are such.
    """
    series_uids = {item.series_uid for item in slices}
    is_one_series = len(series_uids) == 1 and "" not in series_uids
    if is_one_series or not ignored & {"PatientID", "PatientName"}:
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


# Which stack


# What is odd, in words


def _series_in_words(slices: Sequence[DicomSlice]) -> str:
    """Series by number and size: a UID would lead to the patient."""
    counts = collections.Counter((item.series_uid, item.series_number) for item in slices)
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
    best: _Leaf,
    comparison: Comparison,
    ordered: Sequence[DicomSlice],
    places_mm: np.ndarray,
    nth: int,
) -> Iterator[str]:
    yield from _notes_on_places(ordered, places_mm)
    derivation = comparison.derivation(best.rows)
    if derivation:
        how = "" if derivation == "derived" else f" ({derivation})"
        yield f"the slices are derived{how}, not those that the scanner made"
    left = [row for row in range(len(table.slices)) if row not in set(best.rows.tolist())]
    series = {item.series_uid for item in ordered}
    others = [table.slices[row] for row in left if table.slices[row].series_uid not in series]
    if others:
        yield f"left out beside the series taken: {_series_in_words(others)}"
    counts = collections.Counter(
        table.why_apart(row, best.rows) for row in left if table.slices[row].series_uid in series
    )
    for why, count in counts.most_common():
        yield f"left out of the series taken: {_n_slices(count)}, each {why}"
    why = comparison.why_not_the_largest() if nth == 0 else ""
    if why:
        yield why
    varying = best.ignored & _IDENTITIES
    patients = [table.columns[name] for name in PATIENT_TAGS if name in table.columns]
    if any(not np.isin(labels[left], labels[best.rows]).all() for labels in patients):
        yield "the files are of more than one patient; slices of only one of them are used"
    if varying:
        yield (
            f"{words_of(varying)} differ within the slices that are taken, which lie as those of "
            "one stack do"
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
