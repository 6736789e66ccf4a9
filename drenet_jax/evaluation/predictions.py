"""Predictions of slices, their aggregation to patients, and the tables that hold them.

A patient's probabilities are aggregated from those of the patient's slices (paper 2.2.3: mean).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from drenet_jax.data.csv_tables import read_rows, write_rows
from drenet_jax.data.identities import clean, control_character, person_variants, value_variants
from drenet_jax.errors import InputError
from drenet_jax.evaluation.aggregates import AGGREGATES

_PROBABILITY = "p_"

_Table = TypeVar("_Table", bound="Predictions")


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """What the tables of slices and of persons have in common: columns of one length."""

    csv_columns: ClassVar[tuple[str, ...]]
    labels: tuple[str, ...]
    patient_id: np.ndarray
    site: np.ndarray
    label: np.ndarray
    probabilities: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.patient_id)
        assert len(self.labels) >= 2, self.labels
        assert len(set(self.labels)) == len(self.labels), self.labels
        for name, column in self.columns().items():
            shape = (n, len(self.labels)) if name == "probabilities" else (n,)
            assert column.shape == shape, (name, column.shape, shape)
        assert np.isfinite(self.probabilities).all()
        assert np.all((self.label >= 0) & (self.label < len(self.labels)))

    def __len__(self) -> int:
        return len(self.patient_id)

    def columns(self) -> dict[str, np.ndarray]:
        """All attributes but `labels`."""
        return {name: array for name, array in vars(self).items() if name != "labels"}

    def of(self: _Table, rows: np.ndarray) -> _Table:
        """The chosen rows: [N] bool, or their indices."""
        chosen: dict[str, Any] = {name: array[rows] for name, array in self.columns().items()}
        return dataclasses.replace(self, **chosen)

    def to_csv(
        self, path: str | os.PathLike[str], extra: Mapping[str, Sequence[object]] | None = None
    ) -> None:
        """Writes a table of `csv_columns` and `p_<label>` of each label.

        Args:
          path: the file.
          extra: more columns, [N] each.
        """
        columns: dict[str, Any] = {name: getattr(self, name) for name in self.csv_columns}
        columns["label"] = [self.labels[i] for i in self.label]
        for name, column in zip(self.labels, self.probabilities.T, strict=True):
            columns[_PROBABILITY + name] = [repr(float(p)) for p in column]
        columns |= extra or {}
        write_rows(path, list(columns), zip(*columns.values(), strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class SlicePredictions(Predictions):
    """Predictions and metadata of N slices; `slices.csv`.

    Attributes:
      labels: the names of the C classes, in the order of the columns of `probabilities`.
      patient_id: [N] str.
      slice_name: [N] str, the file that the slice came from.
      slice_index: [N] int, its index in the patient's series.
      site: [N] str, the hospital; empty where the cohort names none.
      label: [N] int, the true class.
      probabilities: [N, C] float, the softmax of each slice; a row sums to 1.
    """

    csv_columns = ("patient_id", "slice_name", "slice_index", "site", "label")
    slice_name: np.ndarray
    slice_index: np.ndarray

    @classmethod
    def from_columns(
        cls,
        labels: tuple[str, ...],
        columns: Mapping[str, Sequence[Any]],
        probabilities: np.ndarray,
    ) -> SlicePredictions:
        """From lists that `split_batches` filled; `columns` has the names of `csv_columns`."""
        return cls(
            labels=labels,
            patient_id=np.array(columns["patient_id"], np.str_),
            slice_name=np.array(columns["slice_name"], np.str_),
            slice_index=np.array(columns["slice_index"], np.int64),
            site=np.array(columns["site"], np.str_),
            label=np.array(columns["label"], np.int64),
            probabilities=probabilities.astype(np.float64),
        )

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> SlicePredictions:
        """Reads what `to_csv` wrote; the probabilities come back to the last bit.

        Names are read in the spelling of `identities.clean`, as `prepare` stores them.

        Raises:
          InputError: the file is missing or is not such a table, or two persons, labels or sites
            differ only in how they are written.
        """
        usage = "give the slices.csv that evaluate wrote"
        header, rows = read_rows(path, required=cls.csv_columns, usage=usage)
        labels = tuple(
            name.removeprefix(_PROBABILITY) for name in header if name.startswith(_PROBABILITY)
        )
        if len(labels) < 2:
            raise InputError(
                f"{path} has no column {_PROBABILITY}<label> for each of two or more labels; "
                f"{usage}."
            )
        for _, row in rows:
            # A slice's name is its file's, which has one spelling.
            row.update({name: clean(row[name]) for name in ("patient_id", "site", "label")})
        _check_names(path, labels, rows)
        numbers = []
        for line, row in rows:
            if row["label"] not in labels:
                raise InputError(
                    f"{path}, line {line}: the label {row['label']!r} has no column "
                    f"{_PROBABILITY}{row['label']}; the labels there are {', '.join(labels)}."
                )
            try:
                index = int(row["slice_index"])
                probabilities = [float(row[_PROBABILITY + name]) for name in labels]
            except ValueError as error:
                raise InputError(f"{path}, line {line}: {error}; write a number there.") from error
            if not np.isfinite(probabilities).all():
                raise InputError(
                    f"{path}, line {line}: a probability is not finite; write a number there."
                )
            numbers.append((index, labels.index(row["label"]), probabilities))
        return cls(
            labels=labels,
            patient_id=_strings([row["patient_id"] for _, row in rows]),
            slice_name=_strings([row["slice_name"] for _, row in rows]),
            slice_index=np.array([index for index, _, _ in numbers], np.int64),
            site=_strings([row["site"] for _, row in rows]),
            label=np.array([label for _, label, _ in numbers], np.int64),
            probabilities=np.array([p for _, _, p in numbers], np.float64).reshape(
                len(rows), len(labels)
            ),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class PersonPredictions(Predictions):
    """Predictions of P patients; `persons.csv`.

    Attributes:
      labels: the names of the C classes, in the order of the columns of `probabilities`.
      patient_id: [P] str, each once.
      site: [P] str, the hospital; several are joined by " + ".
      label: [P] int, the true class.
      n_slices: [P] int, how many slices were aggregated.
      probabilities: [P, C] float64.
    """

    csv_columns = ("patient_id", "label", "n_slices", "site")
    n_slices: np.ndarray


def person_predictions(
    slices: SlicePredictions, aggregate: str = "mean", positive: int | None = None
) -> PersonPredictions:
    """Aggregates the slices' probabilities to the persons'.

    Persons come in the order of their first slice.

    Args:
      slices: of any persons.
      aggregate: one of `AGGREGATES`; "mean" is the paper's (2.2.3).
      positive: the index of the positive class, for the aggregates that lean towards it.

    Raises:
      InputError: a person's slices have two labels.
    """
    _, first, group = np.unique(slices.patient_id, return_index=True, return_inverse=True)
    label = slices.label[first]
    conflicting = np.flatnonzero(slices.label != label[group])
    if conflicting.size:
        first_label, other_label = (
            slices.labels[i] for i in (label[group[conflicting[0]]], slices.label[conflicting[0]])
        )
        raise InputError(
            f"person {str(slices.patient_id[conflicting[0]])!r} has slices of two labels, "
            f"{first_label} and {other_label}; give every row of this person in the cohort the "
            "same label."
        )
    n_slices = np.bincount(group, minlength=len(first))
    # Each person's rows, in their order.
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(n_slices)[:-1])
    order = np.argsort(first)
    probabilities = slices.probabilities.astype(np.float64)
    return PersonPredictions(
        labels=slices.labels,
        patient_id=slices.patient_id[first][order],
        # dict: each site once, in the order of the slices.
        site=_strings([" + ".join(dict.fromkeys(slices.site[rows[i]].tolist())) for i in order]),
        label=label[order],
        n_slices=n_slices[order],
        probabilities=np.array(
            [AGGREGATES[aggregate](probabilities[rows[i]], positive) for i in order]
        ).reshape(len(order), len(slices.labels)),
    )


def concatenate(tables: Sequence[_Table]) -> _Table:
    """The rows of several tables with the same labels, in order."""
    columns = [table.columns() for table in tables]
    joined: dict[str, Any] = {
        name: np.concatenate([part[name] for part in columns]) for name in columns[0]
    }
    return dataclasses.replace(tables[0], **joined)


def _check_names(
    path: str | os.PathLike, labels: tuple[str, ...], rows: list[tuple[int, dict[str, str]]]
) -> None:
    """Refuses persons, labels and sites that a spreadsheet or a merge made into two."""
    of_labels = value_variants("label")
    for label in labels:
        of_labels.add(label, path, f"column {_PROBABILITY}{label}")
    twins = {"patient_id": person_variants(), "site": value_variants("site")}
    for line, row in rows:
        for column, of_column in twins.items():
            value = row[column]
            if control_character(value):
                raise InputError(
                    f"{path}, line {line}: {column} {value!r} holds a control character "
                    f"({control_character(value)}); remove it."
                )
            if value:
                of_column.add(value, path, f"line {line}")


def _strings(values: list[str]) -> np.ndarray:
    # Without a dtype, NumPy would make an empty list a column of floats.
    return np.array(values, dtype=np.str_)
