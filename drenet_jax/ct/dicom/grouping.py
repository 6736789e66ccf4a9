"""Groups of slices that may form one stack, by header values and by position."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from drenet_jax.ct.dicom import geometry
from drenet_jax.ct.dicom.headers import PATIENT_TAGS, SERIES_TAGS, STUDY_TAGS, DicomSlice

# Slices of one stack may be turned against each other by this much: a scanner's rounding.
_SAME_ORIENTATION_DEGREES = 0.5
_SAME_SPACING = 0.01
_SAME_THICKNESS = 0.1
_SAME_ORIGIN_MM = 1.0

# What a column is about, in words.
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

# So many values, each of two slices, are counted slice by slice in both of two stacks.
_LEAST_PAIRS = 6
# Values that change after so few slices are none of a stack.
MOST_OF_A_VALUE = 8
# Steps from number to number may differ by this share, or by the rounding of places.
_UNEVEN = 0.1
_ROUNDED_TO_MM = 0.11
# Single slices of another acquisition follow a scan within so many of its steps.
_LARGEST_SEAM_STEPS = 1.5

IDENTITIES = frozenset((*PATIENT_TAGS, *STUDY_TAGS, *SERIES_TAGS, "FrameOfReferenceUID"))
# Slices that differ in one of these are of one stack if they follow each other along the patient:
# a scan may be made in several turns of the tube or breath-holds.
MAY_FOLLOW = (
    frozenset(_WORDS)
    - IDENTITIES
    - {"Rows", "Columns", "PixelSpacing", "orientation", "ConvolutionKernel"}
)
# A scan of which the slices are counted throughout may change these on its way.
_MAY_CHANGE = IDENTITIES - {"PatientID", "PatientName"}


class AttributeTable:
    """Attributes of slices as labels: slices with equal labels in all columns may be of one stack.

    Attributes:
      slices: [N].
      columns: int [N] by name; only those in which the slices differ.
    """

    def __init__(self, slices: Sequence[DicomSlice]):
        self.slices = sorted(slices, key=lambda slice_: (slice_.label,))
        self._positions_mm = np.array([slice_.position_mm or (0, 0, 0) for slice_ in self.slices])
        cosines = np.array([slice_.cosines for slice_ in self.slices])
        normals = np.cross(cosines[:, :3], cosines[:, 3:])
        # The normal may point to the feet; one direction for all keeps the order the same.
        self._normals = normals * np.where(normals[:, 2:] < 0, -1, 1)
        columns = {"orientation": _orientations(cosines)}
        names = dict.fromkeys(
            name for slice_ in self.slices for name in slice_.attributes if name in _WORDS
        )
        for name in names:
            values = [slice_.attributes.get(name, ()) for slice_ in self.slices]
            columns[name] = self._labels(name, values)
        columns["origin"] = self._origins(cosines, columns["orientation"])
        self.columns = {name: labels for name, labels in columns.items() if labels.any()}
        self._unknown = {
            name: np.array([not slice_.attributes.get(name) for slice_ in self.slices])
            for name in self.columns
            if name in names
        }

    def _labels(self, name: str, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
        values: Sequence[object] = texts
        if name == "PatientName":
            values = [_in_one_spelling(value) for value in texts]
        elif name.endswith("Number"):
            values = [first_number(value) if value else None for value in texts]
        keys = dict.fromkeys(values)
        if len(keys) == 1:
            return np.zeros(len(values), int)
        if name in ("PixelSpacing", "SliceThickness", "KVP"):
            tolerance = _SAME_THICKNESS if name == "SliceThickness" else _SAME_SPACING
            numbers = {text: first_number(text) for text in dict.fromkeys(texts)}
            logarithms = np.log([max(numbers[text], 1e-9) for text in texts])
            return geometry.clusters(logarithms, tolerance)
        numbered = {value: i for i, value in enumerate(keys)}
        return np.array([numbered[value] for value in values])

    def _origins(self, cosines: np.ndarray, orientations: np.ndarray) -> np.ndarray:
        """Clusters of where the picture begins in the plane, apart from the table's way."""
        origins = np.zeros(len(self.slices), int)
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
            origins[rows] = np.unique(labels, return_inverse=True)[1]
        return origins

    def rows_of_series(self, series_uid: str) -> np.ndarray:
        """The rows of the slices with this series UID; '': all rows."""
        return np.array(
            [i for i, slice_ in enumerate(self.slices) if series_uid in ("", slice_.series_uid)]
        )

    def is_unknown(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self._unknown[name][rows] if name in self._unknown else np.zeros(len(rows), bool)

    def places_mm(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Along the mean normal: a normal for each slice would move far ones by its error."""
        normal = self._normals[rows].mean(axis=0)
        return self._positions_mm[rows] @ (normal / np.linalg.norm(normal))

    def why_apart(self, row: int, others: np.ndarray) -> str:
        """Why a slice is not of the stack with these rows."""
        words = words_of(
            name
            for name, labels in self.columns.items()
            if name in _WORDS and not np.any(labels[others] == labels[row])
        )
        if "series" in words and not {"patient", "study"} & set(words):
            return "of another series than the one that is taken"
        if words and words[0] in ("size", "orientation"):
            return "a slice of another size or orientation than the rest of its series"
        return f"of another {words[0] if words else 'stack'} than the slices that are taken"


def _in_one_spelling(name: tuple[str, ...]) -> str:
    """A patient's name without empty parts at its end, in lower case."""
    return " ".join("\\".join(name).rstrip("^= ").lower().split())


def words_of(names: Iterable[str]) -> list[str]:
    """What columns are about, each once."""
    words = {_WORDS[name] for name in names}
    return [word for word in dict.fromkeys(_WORDS.values()) if word in words]


def first_number(values: tuple[str, ...]) -> float:
    """The first of an element's values as a number, or 0."""
    try:
        return float(values[0]) if values else 0.0
    except ValueError:
        return 0.0


def _orientations(cosines: np.ndarray) -> np.ndarray:
    """Clusters of image planes; [N, 6] to [N]."""
    labels = np.full(len(cosines), -1)
    limit = np.radians(_SAME_ORIENTATION_DEGREES)
    for n in range(len(cosines)):
        left = np.flatnonzero(labels < 0)
        if not len(left):
            break
        # Around the slice in the middle, so that a drift by rounding has no border.
        near = np.abs(cosines[left] - np.median(cosines[left], axis=0)).max(axis=1)
        centre = cosines[left[np.argmin(near)]]
        labels[left[np.abs(cosines[left] - centre).max(axis=1) <= limit]] = n
    return labels


@dataclasses.dataclass(frozen=True)
class Group:
    """Slices that no column separates.

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
    uids = {slice_.series_uid for slice_ in slices}
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
    steps = np.sign(np.diff(numbers))  # type: ignore[arg-type]  # without None
    return bool(np.all(steps == steps[0]) and steps[0] != 0)


def are_counted(numbers: Sequence[int | None], places_mm: np.ndarray) -> bool:
    """Whether each number has its place: they grow evenly with each other."""
    if not are_in_order(numbers):
        return False
    steps_mm = np.diff(places_mm) / np.abs(np.diff(numbers))  # type: ignore[arg-type]
    return bool(np.ptp(steps_mm) <= max(_UNEVEN * np.median(steps_mm), _ROUNDED_TO_MM))
