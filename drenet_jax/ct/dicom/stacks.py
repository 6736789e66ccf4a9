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
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from drenet_jax.ct.dicom import geometry
from drenet_jax.ct.dicom.headers import PATIENT_TAGS, SERIES_TAGS, STUDY_TAGS, DicomSlice
from drenet_jax.ct.files import CtError, Excluded

# Slices of one stack may be turned against each other by this much: a scanner's rounding.
_SAME_ORIENTATION_DEGREES = 0.5
_SAME_SPACING = 0.01
_SAME_THICKNESS = 0.1
_SAME_ORIGIN_MM = 1.0

# From this cosine of normal and patient's axis on a slice counts as tilted: 2.6 degrees.
_TILTED_BELOW = 0.999

# So many values, each of two slices, are counted slice by slice in both of two stacks.
_LEAST_PAIRS = 6
# Acquisitions that follow each other along the patient may have a gap of some slices.
_LARGEST_SEAM_STEPS = 4

# Of two stacks that cover about the same, slices up to this thickness are equally good.
_THIN_MM = 3.0
_SAME_COVERAGE = 0.8

# What differs between two stacks, in words, by what tells them apart.
_WORDS = {
    **dict.fromkeys(PATIENT_TAGS, "patient"),
    **dict.fromkeys(STUDY_TAGS, "study"),
    **dict.fromkeys(SERIES_TAGS, "series"),
    "FrameOfReferenceUID": "frame of reference",
    "Rows": "size",
    "Columns": "size",
    "PixelSpacing": "pixel spacing",
    "orientation": "orientation",
    "origin": "position in the plane",
    "ImageType": "image type",
    "FrameType": "image type",
    "ConvolutionKernel": "kernel",
    "SliceThickness": "slice thickness",
    "KVP": "tube voltage",
    "ContrastBolusAgent": "contrast agent",
    "AcquisitionNumber": "acquisition",
    "AcquisitionDate": "acquisition",
    "AcquisitionTime": "acquisition",
    "FrameAcquisitionNumber": "acquisition",
    "TemporalPositionIdentifier": "temporal position",
    "TemporalPositionIndex": "temporal position",
    "StackID": "stack of frames",
}
# Slices that differ in one of these are of one stack if they follow each other along the patient:
# a scan may be made in several turns of the tube or breath-holds.
_MAY_FOLLOW = frozenset(
    {
        "origin",
        "ImageType",
        "FrameType",
        "SliceThickness",
        "KVP",
        "AcquisitionNumber",
        "AcquisitionDate",
        "AcquisitionTime",
        "FrameAcquisitionNumber",
        "TemporalPositionIdentifier",
        "TemporalPositionIndex",
    }
)
_IDENTITIES = frozenset((*PATIENT_TAGS, *STUDY_TAGS, *SERIES_TAGS, "FrameOfReferenceUID"))

# What a derived image type says of how it was made.
_PROJECTIONS = ("MIP", "MINIP", "MAX_IP", "MIN_IP", "AVERAGE", "MEAN", "PROJECTION IMAGE", "MPR")

# Sharp kernels, which show lung, and smooth ones: GE, Philips by names; Toshiba and Canon (FC),
# and Siemens by numbers.
_SHARP_NAMES = frozenset(
    ["LUNG", "BONE", "BONEPLUS", "EDGE", "CHEST", "DETAIL", "L", "D", "E", "YA", "YB", "YC", "YD"]
)
_SMOOTH_NAMES = frozenset(["STANDARD", "SOFT", "STND", "A", "B", "C"])
_SHARP_FROM = {"FC": 30, "": 50}
_UNKNOWN_KERNEL = 1


@dataclasses.dataclass(frozen=True)
class Stack:
    """The slices of the chosen stack from the feet to the head, and the rest.

    Attributes:
      slices: [N], in order.
      places_mm: [N], along their normal, growing from the feet to the head.
      excluded: slices that are left out, and why.
      notes: what is odd, in words.
      is_numbered: whether the scanner's numbers of the slices run along the patient, which they do
        in a stack that was scanned so.
      names_vary: whether patient, study or series differ from slice to slice.
    """

    slices: tuple[DicomSlice, ...]
    places_mm: tuple[float, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]
    is_numbered: bool
    names_vary: bool


class NoStackError(Exception):
    """Why no stack can be told from the others; the text names no patient."""


def choose(
    slices: Sequence[DicomSlice],
    series_uid: str,
    *,
    decode: Callable[[DicomSlice], np.ndarray],
) -> Stack | str:
    """Takes one stack and orders it by place along the slice normal.

    Original slices go before derived ones (MIP, MinIP, averages), stacks that cover the chest
    before shorter ones, slices of up to 3 mm before thicker ones, lung kernels before others, then
    more slices before fewer.

    Args:
      slices: of all files, at least one.
      series_uid: takes a stack of this series; '': of all.
      decode: gives the HU [H, W] of a slice, by which second copies are known; raises CtError.

    Returns:
      The stack, or, where there is no such series, which ones there are.

    Raises:
      NoStackError: nothing tells the slices of one stack from those of another.
    """
    placed = [item for item in slices if item.position_mm is not None]
    without_place = [item for item in slices if item.position_mm is None]
    if not placed:
        # One slice needs no place. Its position is not known, so neither is that of others.
        placed, without_place = without_place[:1], without_place[1:]
    wanted = [item for item in placed if not series_uid or item.series_uid == series_uid]
    if not wanted:
        return _series_in_words(placed)
    table = _Table(placed)
    leaves = list(_split(table, table.rows_of(wanted)))
    comparison = _Comparison(table, leaves)
    best = leaves[comparison.best]
    chosen = [table.slices[i] for i in best.rows]
    taken = set(map(id, chosen))
    excluded = [
        Excluded(item.label, "a DICOM file without position and orientation: no known place")
        for item in without_place
    ]
    for row, item in enumerate(table.slices):
        if id(item) not in taken:
            excluded.append(Excluded(item.label, table.why_apart(row, best.rows)))
    kept, copies = _without_copies(table, best.rows, decode)
    excluded += copies
    places_mm = table.places_mm(kept)
    is_numbered = _is_numbered([table.slices[i] for i in kept])
    if not (is_numbered or geometry.is_one_stack(places_mm)):
        raise NoStackError(_irregular(places_mm))
    ordered = [table.slices[i] for i in kept]
    return Stack(
        slices=tuple(ordered),
        places_mm=tuple(places_mm.tolist()),
        excluded=tuple(excluded),
        notes=tuple(_notes(table, best, comparison, ordered, places_mm)),
        is_numbered=is_numbered,
        names_vary=_names_vary(ordered, best.ignored),
    )


# What tells slices apart


class _Table:
    """Attributes of slices as labels: slices with equal labels in all columns may be of one stack.

    Attributes:
      slices: [N].
      columns: int [N] by name; only those in which the slices differ.
    """

    def __init__(self, slices: Sequence[DicomSlice]):
        self.slices = sorted(slices, key=lambda item: (item.label,))
        self._positions_mm = np.array([item.position_mm or (0, 0, 0) for item in self.slices])
        cosines = np.array([item.cosines for item in self.slices])
        normals = np.cross(cosines[:, :3], cosines[:, 3:])
        # The normal may point to the feet; one direction for all keeps the order the same.
        self._normals = normals * np.where(normals[:, 2:] < 0, -1, 1)
        columns = {"orientation": _orientations(cosines)}
        names = dict.fromkeys(name for item in self.slices for name in item.attributes)
        for name in names:
            values = [item.attributes.get(name) or "" for item in self.slices]
            columns[name] = self._labels(name, values)
        columns["origin"] = self._origins(cosines, columns["orientation"])
        self.columns = {name: labels for name, labels in columns.items() if labels.any()}
        self._unknown = {
            name: np.array([not item.attributes.get(name) for item in self.slices])
            for name in self.columns
            if name in names
        }

    def _labels(self, name: str, values: Sequence[object]) -> np.ndarray:
        keys = dict.fromkeys(values)
        if len(keys) == 1:
            return np.zeros(len(values), int)
        if name in ("PixelSpacing", "SliceThickness", "KVP"):
            tolerance = _SAME_THICKNESS if name == "SliceThickness" else _SAME_SPACING
            numbers = {value: _first_number(value) for value in keys}
            logarithms = np.log([max(numbers[value], 1e-9) for value in values])
            return geometry.clusters(logarithms, tolerance)
        numbered = {value: i for i, value in enumerate(keys)}
        return np.array([numbered[value] for value in values])

    def _origins(self, cosines: np.ndarray, orientations: np.ndarray) -> np.ndarray:
        """Clusters of where the picture begins in the plane, apart from the table's way."""
        found = np.zeros(len(self.slices), int)
        for orientation in range(orientations.max() + 1):
            rows = np.flatnonzero(orientations == orientation)
            normal = self._normals[rows].mean(axis=0)
            along = self._positions_mm[rows] @ normal
            labels = np.zeros(len(rows), int)
            for axis in (cosines[rows, :3], cosines[rows, 3:]):
                within = np.einsum("ij,ij->i", self._positions_mm[rows], axis)
                # A tilted scanner's pictures move in their plane as the table moves.
                within = within - along * axis[:, 2].mean() / normal[2]
                labels = labels * len(rows) + geometry.clusters(within, _SAME_ORIGIN_MM)
            found[rows] = np.unique(labels, return_inverse=True)[1]
        return found

    def rows_of(self, slices: Sequence[DicomSlice]) -> np.ndarray:
        wanted = set(map(id, slices))
        return np.array([i for i, item in enumerate(self.slices) if id(item) in wanted])

    def is_unknown(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self._unknown[name][rows] if name in self._unknown else np.zeros(len(rows), bool)

    def places_mm(self, rows: np.ndarray) -> np.ndarray:
        """[N], along the mean normal: a normal for each slice would move far ones by its error."""
        normal = self._normals[rows].mean(axis=0)
        return self._positions_mm[rows] @ (normal / np.linalg.norm(normal))

    def why_apart(self, row: int, others: np.ndarray) -> str:
        """Why a slice is not of the stack with these rows."""
        differing = [
            name
            for name, labels in self.columns.items()
            if name in _WORDS and not np.any(labels[others] == labels[row])
        ]
        words = [word for word in dict.fromkeys(_WORDS.values()) if word in _all_words(differing)]
        if "series" in words and not {"patient", "study"} & set(words):
            return "of another series than the one that is taken"
        if words and words[0] in ("size", "orientation"):
            return "a slice of another size or orientation than the rest of its series"
        return f"of another {words[0] if words else 'stack'} than the slices that are taken"


def _all_words(names: Sequence[str]) -> set[str]:
    return {_WORDS[name] for name in names}


def _words(names: Sequence[str]) -> str:
    words = _all_words(names)
    return " and ".join(word for word in dict.fromkeys(_WORDS.values()) if word in words)


def _first_number(value: object) -> float:
    """The number in a raw or a converted value, or 0."""
    first = value[0] if isinstance(value, tuple) and value else value
    text = first.decode("latin-1") if isinstance(first, bytes) else str(first or "")
    try:
        return float(text.split("\\")[0])
    except ValueError:
        return 0.0


def _orientations(cosines: np.ndarray) -> np.ndarray:
    """Clusters of image planes; [N, 6] to [N]."""
    found = np.full(len(cosines), -1)
    limit = np.radians(_SAME_ORIENTATION_DEGREES)
    for label in range(len(cosines)):
        left = np.flatnonzero(found < 0)
        if not len(left):
            break
        # Around the slice in the middle, so that a drift by rounding has no border.
        near = np.abs(cosines[left] - np.median(cosines[left], axis=0)).max(axis=1)
        centre = cosines[left[np.argmin(near)]]
        found[left[np.abs(cosines[left] - centre).max(axis=1) <= limit]] = label
    return found


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
    table: _Table, rows: np.ndarray, ignored: frozenset[str] = frozenset()
) -> Iterator[_Leaf]:
    """Splits slices by the column with the fewest values that splits them for a reason."""
    counts = {
        name: len(np.unique(labels[rows]))
        for name, labels in table.columns.items()
        if name not in ignored
    }
    order = sorted((name for name, n in counts.items() if n > 1), key=lambda name: counts[name])
    for name in order:
        labels = table.columns[name][rows]
        pieces = [rows[labels == label] for label in np.unique(labels)]
        if _is_of_one_stack(table, name, rows, pieces):
            ignored = ignored | {name}
            continue
        for piece in pieces:
            yield from _split(table, piece, ignored)
        return
    yield _Leaf(rows, ignored)


def _is_of_one_stack(
    table: _Table, name: str, rows: np.ndarray, pieces: Sequence[np.ndarray]
) -> bool:
    """Whether a column's values differ within a stack, rather than between stacks."""
    largest = max(map(len, pieces))
    if len(pieces) >= (3 if largest == 1 else _LEAST_PAIRS) and largest <= 2:
        return True  # from slice to slice
    if len(rows) == 2 and name not in PATIENT_TAGS and _series_uid(table, rows):
        return True
    places_mm = np.sort(table.places_mm(rows))
    if name in _MAY_FOLLOW and _follow(table, pieces, places_mm):
        return True
    # Removed from some slices only. Two stacks would each be even, and together not.
    labels = table.is_unknown(name, rows)
    return (
        len(pieces) == 2
        and 0 < labels.sum() < len(rows)
        and geometry.is_even(places_mm)
        and not all(geometry.is_even(np.sort(table.places_mm(piece))) for piece in pieces)
    )


def _series_uid(table: _Table, rows: np.ndarray) -> str:
    """The series UID that all slices have; '' if there is none."""
    uids = {table.slices[row].series_uid for row in rows}
    return uids.pop() if len(uids) == 1 else ""


def _follow(table: _Table, pieces: Sequence[np.ndarray], places_mm: np.ndarray) -> bool:
    """Whether the pieces lie one behind the other along the patient, in one even stack."""
    steps = np.diff(places_mm)
    if not len(steps) or steps.min() < geometry.SAME_PLACE_MM:
        return False
    ends = sorted((spots.min(), spots.max()) for spots in map(table.places_mm, pieces))
    seams = np.array([after[0] - before[1] for before, after in itertools.pairwise(ends)])
    usual = np.median(steps)
    return bool(
        (seams > geometry.SAME_PLACE_MM).all()
        and (seams < _LARGEST_SEAM_STEPS * usual).all()
        and (geometry.is_one_stack(places_mm) or geometry.is_even(places_mm))
    )


def _without_copies(
    table: _Table, rows: np.ndarray, decode: Callable[[DicomSlice], np.ndarray]
) -> tuple[np.ndarray, list[Excluded]]:
    """The rows in order, without second copies of a slice."""
    places_mm = table.places_mm(rows)
    order = np.argsort(places_mm, kind="stable")
    at_one_place = np.split(
        rows[order], 1 + np.flatnonzero(np.diff(places_mm[order]) >= geometry.SAME_PLACE_MM)
    )
    kept, excluded = [], []
    for group in at_one_place:
        first, *others = sorted(group)
        if others:
            first, damaged = _first_readable(table, [first, *others], decode)
            excluded += damaged
            excluded += _copies(table, first, others, decode, {item.name for item in damaged})
        kept.append(first)
    return np.array(kept), excluded


def _first_readable(
    table: _Table, rows: Sequence[int], decode: Callable[[DicomSlice], np.ndarray]
) -> tuple[int, list[Excluded]]:
    """The first of some slices that can be decoded, or the first; and why others cannot."""
    damaged = {}
    for row in rows:
        try:
            decode(table.slices[row])
        except CtError as error:
            damaged[row] = Excluded(table.slices[row].label, error.why)
    first = next((row for row in rows if row not in damaged), rows[0])
    return first, [item for row, item in damaged.items() if row != first]


def _copies(
    table: _Table,
    first: int,
    rows: Sequence[int],
    decode: Callable[[DicomSlice], np.ndarray],
    known: set[str],
) -> Iterator[Excluded]:
    """Slices at the place of the first one, as its copies.

    Raises:
      NoStackError: they are none.
    """
    item = table.slices[first]
    for row in rows:
        other = table.slices[row]
        if row == first or other.label in known:
            continue
        if not np.array_equal(decode(item), decode(other)):
            raise NoStackError(
                f"different slices at the same place ({item.label} and {other.label} first), "
                "with nothing in their headers that says which belong together"
            )
        yield Excluded(other.label, f"at the same place as another slice: {item.label}")


def _is_numbered(ordered: Sequence[DicomSlice]) -> bool:
    numbers = [item.instance_number for item in ordered]
    if len(numbers) < 2 or None in numbers:
        return False
    steps = np.sign(np.diff(numbers))
    return bool(np.all(steps == steps[0]) and steps[0] != 0)


def _names_vary(slices: Sequence[DicomSlice], ignored: frozenset[str]) -> bool:
    """Whether it is open of which patient or series slices are."""
    has_series = "SeriesInstanceUID" not in ignored and all(item.series_uid for item in slices)
    return bool(ignored & set(PATIENT_TAGS) or (ignored & _IDENTITIES and not has_series))


def _irregular(places_mm: np.ndarray) -> str:
    steps = np.diff(places_mm)
    return (
        f"{len(places_mm)} slices that do not lie as those of one stack do (steps of "
        f"{steps.min():.1f} to {steps.max():.1f} mm), with nothing in their headers that says "
        "which belong together"
    )


# Which stack


@dataclasses.dataclass(frozen=True)
class _Merits:
    """By what stacks are compared; more is better, the first decides.

    Attributes:
      is_original: the scanner's own slices rather than derived ones.
      covers: whether they reach about as far along the patient as the longest stack does.
      thinness: of slices; equal up to 3 mm.
      kernel: 2 for lung, 1 if not known, 0 for soft tissue.
      n_slices: how many.
    """

    is_original: bool
    covers: bool
    thinness: float
    kernel: int
    n_slices: int

    REASONS = (
        "its slices are original, not derived",
        "it covers more of the patient",
        "its slices are thinner",
        "its kernel is for lung",
        "it has more slices",
    )

    def as_tuple(self) -> tuple:
        return (self.is_original, self.covers, self.thinness, self.kernel, self.n_slices)


class _Comparison:
    """Stacks that could be taken, side by side."""

    def __init__(self, table: _Table, leaves: Sequence[_Leaf]):
        self._table = table
        originals = [self._is_original(leaf) for leaf in leaves]
        coverages_mm = [self._coverage_mm(leaf) for leaf in leaves]
        self.merits = []
        for leaf, is_original, coverage_mm in zip(leaves, originals, coverages_mm, strict=True):
            longest_mm = max(
                mm for mm, same in zip(coverages_mm, originals, strict=True) if same == is_original
            )
            self.merits.append(
                _Merits(
                    is_original,
                    coverage_mm >= _SAME_COVERAGE * longest_mm,
                    -round(max(self._thickness_mm(leaf), _THIN_MM), 1),
                    self._kernel(leaf),
                    len(leaf.rows),
                )
            )
        # Of equally good ones the first by name.
        self.best = max(range(len(leaves)), key=lambda i: (self.merits[i].as_tuple(), -i))

    def why_not_the_largest(self) -> str:
        """Why the best was taken though another has more slices; '' if none has."""
        best = self.merits[self.best]
        largest = max(self.merits, key=lambda merits: merits.n_slices)
        if largest.n_slices <= best.n_slices:
            return ""
        ranks = zip(best.as_tuple(), largest.as_tuple(), _Merits.REASONS, strict=True)
        why = next(reason for mine, other, reason in ranks if mine > other)
        return f"a stack of {best.n_slices} slices is taken, not one of {largest.n_slices}: {why}"

    def _first(self, leaf: _Leaf, name: str) -> str:
        value = self._table.slices[leaf.rows[0]].attributes.get(name) or ""
        if isinstance(value, tuple):
            return "\\".join(value)
        return value.decode("latin-1") if isinstance(value, bytes) else str(value)

    def _is_original(self, leaf: _Leaf) -> bool:
        return not self.derivation(leaf)

    def derivation(self, leaf: _Leaf) -> str:
        """How derived slices were made; '' for original ones."""
        parts = (self._first(leaf, "FrameType") or self._first(leaf, "ImageType")).upper()
        found = [kind for kind in _PROJECTIONS if kind in parts.replace(" \\", "\\").split("\\")]
        if found:
            return found[0]
        return "derived" if parts.startswith("DERIVED") else ""

    def _coverage_mm(self, leaf: _Leaf) -> float:
        places_mm = self._table.places_mm(leaf.rows)
        return float(np.ptp(places_mm)) + self._step_mm(places_mm)

    @staticmethod
    def _step_mm(places_mm: np.ndarray) -> float:
        steps = np.diff(np.sort(places_mm))
        steps = steps[steps >= geometry.SAME_PLACE_MM]
        return float(np.median(steps)) if len(steps) else 0.0

    def _thickness_mm(self, leaf: _Leaf) -> float:
        written_mm = _first_number(self._first(leaf, "SliceThickness"))
        return written_mm or self._step_mm(self._table.places_mm(leaf.rows))

    def _kernel(self, leaf: _Leaf) -> int:
        name = self._first(leaf, "ConvolutionKernel").split("\\")[0].strip().upper()
        if "LUNG" in name or (
            not name and "LUNG" in self._first(leaf, "SeriesDescription").upper()
        ):
            return 2
        if name in _SHARP_NAMES or name in _SMOOTH_NAMES:
            return 2 if name in _SHARP_NAMES else 0
        numbered = re.match(r"(FC)?[A-Z]{0,2}?(\d\d)", name)
        if numbered is None:
            return _UNKNOWN_KERNEL
        return 2 if int(numbered[2]) >= _SHARP_FROM[numbered[1] or ""] else 0


# What is odd, in words


def _series_in_words(slices: Sequence[DicomSlice]) -> str:
    """Series by number and size: a UID would lead to the patient."""
    counts = collections.Counter((item.series_uid, item.series_number) for item in slices)
    return ", ".join(
        f"series {number or 'without a number'} of {_n_slices(count)}"
        for (_, number), count in counts.most_common()
    )


def _n_slices(count: int) -> str:
    return f"{count} slice{'s' if count > 1 else ''}"


def _notes(
    table: _Table,
    best: _Leaf,
    comparison: _Comparison,
    ordered: Sequence[DicomSlice],
    places_mm: np.ndarray,
) -> Iterator[str]:
    yield from _notes_on_places(ordered, places_mm)
    derivation = comparison.derivation(best)
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
    why = comparison.why_not_the_largest()
    if why:
        yield why
    varying = best.ignored & _IDENTITIES
    patients = [table.columns[name] for name in PATIENT_TAGS if name in table.columns]
    if any(not np.isin(labels[left], labels[best.rows]).all() for labels in patients):
        yield "the files are of more than one patient; slices of only one of them are used"
    if varying:
        yield (
            f"the slices name {_words(varying)} each by itself; they are taken for one stack, as "
            "they lie so"
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
