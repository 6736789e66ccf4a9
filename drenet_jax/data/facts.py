"""`facts.csv`: what is known of the kept slices' files without looking at the lungs.

Grey values and texture are those outside the lungs. Technical facts only: a kernel is a number,
since nothing that DICOM tags say in words leaves them.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.stats import mannwhitneyu

from drenet_jax.ct.prepared_series import SampledSlice
from drenet_jax.data.csv_tables import read_rows
from drenet_jax.errors import InputError

FACTS_FILE = "facts.csv"

CATEGORICAL = ("format", "kernel")
# Grey values outside the lungs.
GREY = ("mean", "deviation")
NUMERIC = (
    "bytes",
    "width_px",
    "height_px",
    "bits",
    "channels",
    "jpeg_quality",
    "spacing_mm",
    "thickness_mm",
    *GREY,
)
_NAMES = ("patient_id", "slice_name", "slice_index")
_TEXTURE = "lbp_"

# Rows of all slices of a person whose texture is counted: some 1% of the time of reading them.
_TEXTURE_ROWS = 1024


def _bins() -> UInt8[np.ndarray, " patterns"]:
    """The bin of each pattern of 8 bits: uniform ones have their own, the others share the last."""
    changes = [bin(code ^ (code >> 1 | (code & 1) << 7)).count("1") for code in range(256)]
    uniform = [code for code in range(256) if changes[code] <= 2]
    bins = np.full(256, len(uniform), np.uint8)
    bins[uniform] = np.arange(len(uniform))
    return bins


_BIN_OF = _bins()
N_TEXTURES = int(_BIN_OF.max()) + 1
TEXTURE = tuple(f"{_TEXTURE}{i}" for i in range(N_TEXTURES))
COLUMNS = (*_NAMES, *CATEGORICAL, *NUMERIC, *TEXTURE)

# From the right, counter-clockwise.
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
# Diagonal samples lie on the circle of radius 1, 169/239 of a pixel away along both axes. Integers:
# a sample of a flat area is not darker than its centre by a rounding error.
_DIAGONAL, _ONE = 169, 239


def texture(
    image: UInt8[np.ndarray, "height width"], inside: Bool[np.ndarray, "height width"], rows: int
) -> Float[np.ndarray, " textures"]:
    """Shares of the uniform local binary patterns of 8 samples on a circle of radius 1.

    Resampling, noise and compression leave their marks there; each uniform pattern is counted for
    itself (LBP 8,1 u2; Ojala et al. 2002). Samples between pixels are interpolated.

    Args:
      image: a slice.
      inside: the pixels that count.
      rows: of larger images every n-th row counts, so that at least so many do.
    """
    height, width = image.shape
    step = max(1, (height - 2) // rows)

    def shifted(array: np.ndarray, dy: int, dx: int) -> np.ndarray:
        return array[1 + dy : height - 1 + dy : step, 1 + dx : width - 1 + dx]

    centre = shifted(image, 0, 0)
    whole = image.astype(np.int32)
    # A sample on a diagonal, times 239² and without what its centre contributes, is as bright as
    # the centre from here on.
    rest = _ONE - _DIAGONAL
    limit = (_ONE**2 - rest**2) * shifted(whole, 0, 0)
    codes = np.zeros(centre.shape, np.uint8)
    for bit, (dy, dx) in enumerate(_NEIGHBOURS):
        if dy and dx:
            beside = shifted(whole, dy, 0) + shifted(whole, 0, dx)
            sample = _DIAGONAL**2 * shifted(whole, dy, dx) + _DIAGONAL * rest * beside
            is_brighter = sample >= limit
        else:
            is_brighter = shifted(image, dy, dx) >= centre
        codes |= is_brighter.view(np.uint8) << np.uint8(bit)
    counts = _counts(codes, shifted(inside, 0, 0))
    return np.bincount(_BIN_OF, counts, N_TEXTURES) / max(counts.sum(), 1)


def _counts(
    image: UInt8[np.ndarray, "height width"], inside: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, 256]:
    """How often each value is there; OpenCV's takes a tenth of NumPy's time."""
    mask = np.ascontiguousarray(inside).view(np.uint8)
    return cv2.calcHist([image], [0], mask, [256], [0, 256]).ravel().astype(np.float64)


def facts_of_slices(kept: Sequence[SampledSlice]) -> tuple[dict[str, Any], ...]:
    """The facts of a person's kept slices by column, without the person's name."""
    return tuple(_slice_facts(picked, max(1, _TEXTURE_ROWS // len(kept))) for picked in kept)


def _slice_facts(picked: SampledSlice, texture_rows: int) -> dict[str, Any]:
    file = picked.file_facts
    outside = ~picked.source_mask
    shares = _counts(picked.source, outside) / max(outside.sum(), 1)
    greys = np.arange(len(shares))
    mean = float(shares @ greys)
    deviation = float(shares @ (greys - mean) ** 2) ** 0.5
    shares_of_patterns = texture(picked.source, outside, texture_rows)
    height, width = picked.file_size
    numbers = {
        "bytes": file.n_bytes,
        "width_px": width,
        "height_px": height,
        "bits": file.bits,
        "channels": file.channels,
        "jpeg_quality": file.jpeg_quality,
        "spacing_mm": file.spacing_mm,
        "thickness_mm": file.thickness_mm,
        "mean": round(mean, 3),
        "deviation": round(deviation, 3),
    }
    return {
        "slice_name": picked.name,
        "slice_index": picked.file_index,
        "format": file.format,
        "kernel": file.kernel,
        **numbers,
        **dict(zip(TEXTURE, shares_of_patterns.round(5).tolist(), strict=True)),
    }


class PersonFacts:
    """The facts of each person's files, collected while the rows of `facts.csv` are made.

    Kernels are numbered as they come, so that their names stay in the files.
    """

    def __init__(self) -> None:
        self._kernels: dict[str, int] = {}
        # Numbers only: there may be millions of persons.
        self._persons: list[str] = []
        self._means = array.array("d")
        self._values: dict[str, dict[str, int]] = {name: {} for name in CATEGORICAL}
        self._first = array.array("q")

    def add(self, patient_id: str, facts: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        """Adds a person and gives the rows of `facts.csv` of the person's slices.

        Args:
          patient_id: of the person.
          facts: from `facts_of_slices`.
        """
        rows = []
        for slice_ in facts:
            name = slice_["kernel"]
            kernel = str(self._kernels.setdefault(name, len(self._kernels) + 1)) if name else ""
            rows.append({**slice_, "patient_id": patient_id, "kernel": kernel})
        if rows:
            self._persons.append(patient_id)
            for name in NUMERIC:
                known = [row[name] for row in rows if row[name] is not None]
                self._means.append(sum(known) / len(known) if known else np.nan)
            for name, values in self._values.items():
                self._first.append(values.setdefault(rows[0][name], len(values)))
        return [["" if row[name] is None else row[name] for name in COLUMNS] for row in rows]

    def separating(
        self, label_of: Mapping[str, str], *, least_auc: float, most_p_value: float
    ) -> list[SeparatingFact]:
        """The facts of which one alone separates a label's persons from the others, best first.

        A numeric fact is the mean of a person's slices; of a categorical one each value is a fact,
        that of the first slice. Textures are left to the audit.

        Args:
          label_of: patient_id -> label, of the persons who count.
          least_auc: facts below are not reported.
          most_p_value: of Mann and Whitney's test, times the number of tests (Bonferroni).
        """
        members = np.array([person in label_of for person in self._persons], bool)
        labels = np.array(
            [label_of[person] for person in self._persons if person in label_of], np.str_
        )
        columns = dict(self._columns(members))
        tests = [
            (fact, label, values[~np.isnan(values)], labels[~np.isnan(values)] == label)
            for fact, values in columns.items()
            for label in np.unique(labels).tolist()
        ]
        tests = [test for test in tests if test[3].any() and not test[3].all()]
        best: dict[str, SeparatingFact] = {}
        for fact, label, values, is_label in tests:
            test = mannwhitneyu(values[is_label], values[~is_label])
            area = float(test.statistic) / float(is_label.sum() * (~is_label).sum())
            auc = max(area, 1 - area)
            is_sure = test.pvalue * len(tests) <= most_p_value
            if is_sure and auc >= least_auc and (fact not in best or auc > best[fact].auc):
                best[fact] = SeparatingFact(fact, label, auc)
        return sorted(best.values(), key=lambda fact: -fact.auc)

    def _columns(self, members: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """(name, values) of each numeric fact and each value of a categorical one, if they vary."""
        means = np.array(self._means).reshape(-1, len(NUMERIC))[members]
        for name, values in zip(NUMERIC, means.T, strict=True):
            if len(np.unique(values[~np.isnan(values)])) > 1:
                yield name, values
        first = np.array(self._first).reshape(-1, len(CATEGORICAL))[members]
        for (name, numbers), column in zip(self._values.items(), first.T, strict=True):
            if len(np.unique(column)) > 1:
                for value, number in numbers.items():
                    yield f"{name} {value or '(not known)'}", (column == number).astype(np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class FactsTable:
    """The facts of N slices.

    Attributes:
      keys: (patient_id, slice_name, slice_index) of each.
      numeric: [N, len(NUMERIC)]; NaN where a file does not say.
      categorical: column -> [N] str.
      texture: [N, N_TEXTURES].
    """

    keys: tuple[tuple[str, str, int], ...]
    numeric: Float[np.ndarray, "slices facts"]
    categorical: Mapping[str, np.ndarray]
    texture: Float[np.ndarray, "slices textures"]

    def of(self, keys: Sequence[tuple[str, str, int]]) -> FactsTable:
        """The rows of these slices, in their order.

        Raises:
          KeyError: one is not there.
        """
        row_of = {key: i for i, key in enumerate(self.keys)}
        rows = np.array([row_of[key] for key in keys], np.int64)
        return FactsTable(
            tuple(keys),
            self.numeric[rows],
            {name: column[rows] for name, column in self.categorical.items()},
            self.texture[rows],
        )

    @classmethod
    def read(cls, folder: Path) -> FactsTable:
        """Reads `facts.csv` of a folder that `prepare` wrote.

        Raises:
          InputError: it is not there or is damaged.
        """
        path = folder / FACTS_FILE
        if not path.is_file():
            raise InputError(
                f"{folder} has no {FACTS_FILE}, which the audit needs; prepare the data again."
            )
        _, rows = read_rows(path, required=COLUMNS, usage="prepare the data again")
        try:
            keys = tuple(
                (row["patient_id"], row["slice_name"], int(row["slice_index"])) for _, row in rows
            )
            numbers = np.array(
                [[float(row[name] or "nan") for name in (*NUMERIC, *TEXTURE)] for _, row in rows]
            ).reshape(len(rows), -1)
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); prepare the data again.") from error
        return cls(
            keys,
            numbers[:, : len(NUMERIC)],
            {name: np.array([row[name] for _, row in rows], np.str_) for name in CATEGORICAL},
            numbers[:, len(NUMERIC) :],
        )


@dataclasses.dataclass(frozen=True)
class SeparatingFact:
    """A fact that tells a label from the rest by itself.

    Attributes:
      fact: the column.
      label: which label.
      auc: of the persons' means, at least 0.5.
    """

    fact: str
    label: str
    auc: float
