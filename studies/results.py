"""The committed predictions: what anyone needs to compute every number again without training.

    python -m studies.results [--work=FOLDER] [--results=FOLDER]

Of each data set, tables with one row a case and one column a run and class, in `results/`:
`<data>-persons.csv` (each person's probabilities), `<data>-slices.csv` (each slice's probability of
the positive class) and `<data>-hits.csv` (on each slice with a lesion, whether the heat map's
maximum and the best box's centre lie in it, and the chance of a random point in the lungs).
`runs.csv` says what each run cost and reached, `data.csv` what the data are.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from studies.arms import ARMS
from studies.cohorts import COHORTS, data_folder, read_csv
from studies.runs import DONE, HITS, SLICES, WORK, Run, runs_of

RESULTS = Path(__file__).resolve().parent / "results"
POINTS = ("heat_map", "box")
_COLUMN = re.compile(r"(?P<arm>[^/]+)/(?P<seed>\d+)(?: (?P<name>.+))?")
_Rows = list[tuple[str, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Cases by rows, the results of each run by columns.

    Attributes:
      patient_id: [N] str.
      label: [N] str, or the chance of a hit as text.
      values: arm -> seed -> name -> [N] float.
    """

    patient_id: np.ndarray
    label: np.ndarray
    values: dict[str, dict[int, dict[str, np.ndarray]]]


def read_table(path: Path) -> Table:
    """What `collect` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    columns = list(zip(*rows, strict=True))
    values: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for title, column in zip(header[2:], columns[2:], strict=True):
        match = _COLUMN.fullmatch(title)
        assert match, title
        of_run = values.setdefault(match["arm"], {}).setdefault(int(match["seed"]), {})
        of_run[match["name"] or ""] = np.array(column, float)
    return Table(np.array(columns[0]), np.array(columns[1]), values)


def collect(work: Path, results: Path, arms: Iterable[str] = tuple(ARMS)) -> list[str]:
    """Writes the tables of the arms' seeds whose runs are all done; returns the others' names."""
    tables: dict[str, _Columns] = {}
    accounts, missing = [], []
    for arm in arms:
        for seed in ARMS[arm].seeds:
            runs = [run for run in runs_of(arm) if run.seed == seed]
            if not all((run.folder(work) / DONE).is_file() for run in runs):
                missing.append(f"{arm}/{seed}")
                continue
            _add_predictions(tables, work, ARMS[arm].data, f"{arm}/{seed}", runs)
            accounts += [json.loads((run.folder(work) / DONE).read_text()) for run in runs]
    results.mkdir(exist_ok=True)
    for name, table in tables.items():
        table.write(results / f"{name}.csv")
    if accounts:
        _write(results / "runs.csv", [tuple(accounts[0]), *(tuple(a.values()) for a in accounts)])
    return missing


def collect_data(work: Path, results: Path) -> None:
    """Writes how many persons and slices each data set has, and how many slices were left out."""
    from drenet_jax.data.prepared_data import open_data

    rows: _Rows = [("data", "split", "persons", "slices", "left_out")]
    for name in COHORTS:
        folder = data_folder(work, name)
        if folder.is_dir():
            data = open_data(folder)
            left_out = sum(bool(row["file"]) for row in read_csv(folder / "excluded.csv"))
            rows += [
                (name, split, str(len(persons)), str(data.n_slices[split]), str(left_out))
                for split, persons in data.persons.items()
                if persons
            ]
    _write(results / "data.csv", rows)


def _add_predictions(
    tables: dict[str, _Columns], work: Path, data: str, name: str, runs: Sequence[Run]
) -> None:
    from drenet_jax.evaluation.decisions import positive_class
    from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions

    persons: _Rows = []
    slices: _Rows = []
    hits: _Rows = []
    for run in runs:
        of_slices = SlicePredictions.from_csv(run.folder(work) / SLICES)
        of_persons = person_predictions(of_slices)
        labels = of_slices.labels
        positive = positive_class(labels, "")
        persons += [
            (patient_id, labels[label], *(f"{p:.4f}" for p in row))
            for patient_id, label, row in zip(
                of_persons.patient_id, of_persons.label, of_persons.probabilities, strict=True
            )
        ]
        slices += [
            (patient_id, slice_name, labels[label], f"{row[positive]:.4f}")
            for patient_id, slice_name, label, row in zip(
                of_slices.patient_id,
                of_slices.slice_name,
                of_slices.label,
                of_slices.probabilities,
                strict=True,
            )
        ]
        if (run.folder(work) / HITS).is_file():
            hits += [
                (
                    row["patient_id"],
                    row["slice_name"],
                    f"{float(row['chance']):.4f}",
                    *(row[point] for point in POINTS),
                )
                for row in read_csv(run.folder(work) / HITS)
            ]
    table = tables.setdefault(f"{data}-persons", _Columns("label"))
    for i, label in enumerate(labels):
        table.add([(row[0], row[1], row[2 + i]) for row in sorted(persons)], f"{name} {label}")
    table = tables.setdefault(f"{data}-slices", _Columns("label"))
    # Slices of all folds in one order. Their names are not needed.
    table.add([(row[0], row[2], row[3]) for row in sorted(slices)], name)
    for i, point in enumerate(POINTS):
        if hits and hits[0][3 + i]:
            table = tables.setdefault(f"{data}-hits", _Columns("chance"))
            table.add([(row[0], row[2], row[3 + i]) for row in sorted(hits)], f"{name} {point}")


class _Columns:
    """A table that grows by columns."""

    def __init__(self, about: str):
        self._header = ["patient_id", about]
        self._cases: list[tuple[str, ...]] = []
        self._columns: list[list[str]] = []

    def add(self, rows: _Rows, name: str) -> None:
        cases = [row[:2] for row in rows]
        self._cases = self._cases or cases
        assert cases == self._cases, f"{name} was scored on other cases"
        self._header.append(name)
        self._columns.append([row[2] for row in rows])

    def write(self, path: Path) -> None:
        columns = zip(*self._columns, strict=True)
        rows = ((*case, *row) for case, row in zip(self._cases, columns, strict=True))
        _write(path, [tuple(self._header), *rows])


def _write(path: Path, rows: Iterable[Sequence]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    values = parser.parse_args()
    for name in collect(values.work, values.results):
        print(f"not there: {name}")
    collect_data(values.work, values.results)


if __name__ == "__main__":
    main()
