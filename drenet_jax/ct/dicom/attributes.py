"""What tells slices apart: identifiers, image type, kernel, geometry, as labels in a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drenet_jax.ct.dicom import geometry
from drenet_jax.ct.dicom.headers import PATIENT_TAGS, SERIES_TAGS, STUDY_TAGS, DicomSlice

# Slices of one stack may be turned against each other by this much: a scanner's rounding.
_SAME_ORIENTATION_DEGREES = 0.5
_SAME_SPACING = 0.01
_SAME_THICKNESS = 0.1
_SAME_ORIGIN_MM = 1.0

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


class AttributeTable:
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
        names = dict.fromkeys(
            name for item in self.slices for name in item.attributes if name in _WORDS
        )
        for name in names:
            values = [item.attributes.get(name, ()) for item in self.slices]
            columns[name] = self._labels(name, values)
        columns["origin"] = self._origins(cosines, columns["orientation"])
        self.columns = {name: labels for name, labels in columns.items() if labels.any()}
        self._unknown = {
            name: np.array([not item.attributes.get(name) for item in self.slices])
            for name in self.columns
            if name in names
        }

    def _labels(self, name: str, values: Sequence[tuple[str, ...]]) -> np.ndarray:
        if name == "PatientName":
            values = [_in_one_spelling(value) for value in values]
        elif name.endswith("Number"):
            values = [first_number(value) if value else None for value in values]
        keys = dict.fromkeys(values)
        if len(keys) == 1:
            return np.zeros(len(values), int)
        if name in ("PixelSpacing", "SliceThickness", "KVP"):
            tolerance = _SAME_THICKNESS if name == "SliceThickness" else _SAME_SPACING
            numbers = {value: first_number(value) for value in keys}
            logarithms = np.log([max(numbers[value], 1e-9) for value in values])
            return geometry.clusters(logarithms, tolerance)
        numbered = {value: i for i, value in enumerate(keys)}
        return np.array([numbered[value] for value in values])

    def _origins(self, cosines: np.ndarray, orientations: np.ndarray) -> np.ndarray:
        """Clusters of where the picture begins in the plane, apart from the table's way."""
        result = np.zeros(len(self.slices), int)
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
            result[rows] = np.unique(labels, return_inverse=True)[1]
        return result

    def rows_of_series(self, series_uid: str) -> np.ndarray:
        """The rows of the slices with this series UID; '': all rows."""
        return np.array(
            [i for i, item in enumerate(self.slices) if series_uid in ("", item.series_uid)]
        )

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
        words = [
            word for word in dict.fromkeys(_WORDS.values()) if word in _set_of_words(differing)
        ]
        if "series" in words and not {"patient", "study"} & set(words):
            return "of another series than the one that is taken"
        if words and words[0] in ("size", "orientation"):
            return "a slice of another size or orientation than the rest of its series"
        return f"of another {words[0] if words else 'stack'} than the slices that are taken"


def _in_one_spelling(name: tuple[str, ...]) -> str:
    """A patient's name without empty parts at its end, in lower case."""
    return " ".join("\\".join(name).rstrip("^= ").lower().split())


def _set_of_words(names: Sequence[str]) -> set[str]:
    return {_WORDS[name] for name in names}


def words_of(names: Sequence[str]) -> str:
    words = _set_of_words(names)
    return " and ".join(word for word in dict.fromkeys(_WORDS.values()) if word in words)


def first_number(values: tuple[str, ...]) -> float:
    """The first of an element's values as a number, or 0."""
    try:
        return float(values[0]) if values else 0.0
    except ValueError:
        return 0.0


def _orientations(cosines: np.ndarray) -> np.ndarray:
    """Clusters of image planes; [N, 6] to [N]."""
    result = np.full(len(cosines), -1)
    limit = np.radians(_SAME_ORIENTATION_DEGREES)
    for label in range(len(cosines)):
        left = np.flatnonzero(result < 0)
        if not len(left):
            break
        # Around the slice in the middle, so that a drift by rounding has no border.
        near = np.abs(cosines[left] - np.median(cosines[left], axis=0)).max(axis=1)
        centre = cosines[left[np.argmin(near)]]
        result[left[np.abs(cosines[left] - centre).max(axis=1) <= limit]] = label
    return result
