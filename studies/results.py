"""The committed predictions: what anyone needs to compute every number again without training.

    python -m studies.results [--work=FOLDER] [--results=FOLDER]

Runs of the work folder are added to the tables that are there, or replace their columns: the work
folder need not hold all runs at once. Of each data set, tables with one row a case and one column a
run and class, in `results/`:
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
    """Adds the arms' seeds whose runs are all done to the tables.

    Returns:
      The names of those that are in neither the work folder nor the tables.
    """
    tables: dict[str, _Columns] = {}
    accounts = _by(results / "runs.csv", "run")
    missing = []
    results.mkdir(exist_ok=True)
    for arm in arms:
        for seed in ARMS[arm].seeds:
            runs = [run for run in runs_of(arm) if run.seed == seed]
            if all((run.folder(work) / DONE).is_file() for run in runs):
                _add_predictions(tables, results, work, ARMS[arm].data, f"{arm}/{seed}", runs)
                for run in runs:
                    accounts[run.name] = json.loads((run.folder(work) / DONE).read_text())
            elif any(run.name not in accounts for run in runs):
                missing.append(f"{arm}/{seed}")
    for table in tables.values():
        table.write()
    if accounts:
        in_order = [run.name for arm in ARMS for run in runs_of(arm) if run.name in accounts]
        rows = [accounts[name] for name in in_order]
        _write(results / "runs.csv", [tuple(rows[0]), *(tuple(row.values()) for row in rows)])
    return missing


def _by(path: Path, column: str) -> dict[str, dict]:
    return {row[column]: row for row in read_csv(path)} if path.is_file() else {}


def collect_data(work: Path, results: Path) -> None:
    """Writes how many persons and slices each data set has, and how many slices were left out."""
    from drenet_jax.data.prepared_data import open_data

    header = ("data", "split", "persons", "slices", "left_out")
    before = read_csv(results / "data.csv") if (results / "data.csv").is_file() else []
    rows: _Rows = [header]
    for name in COHORTS:
        folder = data_folder(work, name)
        if not folder.is_dir():
            rows += [tuple(row[key] for key in header) for row in before if row["data"] == name]
            continue
        data = open_data(folder)
        left_out = sum(bool(row["file"]) for row in read_csv(folder / "excluded.csv"))
        rows += [
            (name, split, str(len(persons)), str(data.n_slices[split]), str(left_out))
            for split, persons in data.persons.items()
            if persons
        ]
    _write(results / "data.csv", rows)


def _add_predictions(
    tables: dict[str, _Columns],
    results: Path,
    work: Path,
    data: str,
    name: str,
    runs: Sequence[Run],
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

    def table_of(kind: str, about: str) -> _Columns:
        path = results / f"{data}-{kind}.csv"
        if path.name not in tables:
            tables[path.name] = _Columns(path, about)
        return tables[path.name]

    table = table_of("persons", "label")
    for i, label in enumerate(labels):
        table.add([(row[0], row[1], row[2 + i]) for row in sorted(persons)], f"{name} {label}")
    table = table_of("slices", "label")
    # Slices of all folds in one order. Their names are not needed.
    table.add([(row[0], row[2], row[3]) for row in sorted(slices)], name)
    for i, point in enumerate(POINTS):
        if hits and hits[0][3 + i]:
            table = table_of("hits", "chance")
            table.add([(row[0], row[2], row[3 + i]) for row in sorted(hits)], f"{name} {point}")


class _Columns:
    """The table of a file, which grows by columns."""

    def __init__(self, path: Path, about: str):
        self._path = path
        self._about = about
        self._cases: list[tuple[str, ...]] = []
        self._columns: dict[str, tuple[str, ...]] = {}
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            self._cases = [tuple(row[:2]) for row in rows]
            self._columns = dict(zip(header[2:], list(zip(*rows, strict=True))[2:], strict=True))

    def add(self, rows: _Rows, name: str) -> None:
        cases = [row[:2] for row in rows]
        self._cases = self._cases or cases
        assert cases == self._cases, f"{name} was scored on other cases"
        self._columns[name] = tuple(row[2] for row in rows)

    def write(self) -> None:
        places = {arm: place for place, arm in enumerate(ARMS)}
        # Stable: the classes or points of a run keep their order.
        columns = sorted(
            self._columns.items(),
            key=lambda item: (places[(run := _COLUMN.fullmatch(item[0]))["arm"]], int(run["seed"])),
        )
        header = ("patient_id", self._about, *(name for name, _ in columns))
        values = zip(*(column for _, column in columns), strict=True)
        rows = ((*case, *row) for case, row in zip(self._cases, values, strict=True))
        _write(self._path, [header, *rows])


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
