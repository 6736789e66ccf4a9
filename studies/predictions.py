"""The committed predictions: what anyone needs to compute every figure again without training.

Of each test set, three wide tables in `results/`, one row a case and one column a run:
`<test>-persons.csv` (each person's probabilities), `<test>-slices.csv` (each slice's probability of
COVID-19) and `<test>-pointed.csv` (on each slice with a lesion, whether the heat map's maximum and
the best box's centre lie in it, and the chance of a random point in the lungs). `runs.csv` says
what each run cost.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from studies.runs import DONE, pointed_file, run_folder, slices_file
from studies.studies import STUDIES, Run

RESULTS = Path(__file__).resolve().parent / "results"
RUN_COLUMNS = ("run", "steps", "parameters", "training_cpu_seconds", "cpu_seconds")
POINTS = ("heat_map", "box")
_COLUMN = re.compile(r"(?P<arm>[^/]+)/(?P<seed>\d+)(?: (?P<name>.+))?")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Cases by rows, what each run says of them by columns.

    Attributes:
      patient_id: [N] str.
      label: [N] str, or the chance of a hit as text.
      values: arm -> seed -> name -> [N] float; NaN where a run has no such column.
    """

    patient_id: np.ndarray
    label: np.ndarray
    values: dict[str, dict[int, dict[str, np.ndarray]]]


def arm_name(run: Run, weights: str) -> str:
    return run.arm if weights == "last" else f"{run.arm}-{weights}"


def all_runs() -> list[Run]:
    """Of all studies, each once."""
    return list(dict.fromkeys(run for runs in STUDIES.values() for run in runs))


def collect(work: Path, results: Path, runs: Sequence[Run]) -> list[Run]:
    """Writes the tables of the runs that are done; returns those that are not."""
    from drenet_jax.evaluation.decisions import positive_class
    from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions

    done = [run for run in runs if (run_folder(work, run) / DONE).is_file()]
    tables: dict[str, _Columns] = {}
    for run in done:
        for (test, _), weights in itertools.product(run.tests, run.weights):
            name = f"{arm_name(run, weights)}/{run.seed}"
            test_set = cohort_of(test)
            slices = SlicePredictions.from_csv(slices_file(work, run, test, weights))
            persons = person_predictions(slices)
            to = tables.setdefault(f"{test_set}-persons", _Columns("label"))
            for i, label in enumerate(persons.labels):
                to.add(
                    persons.patient_id,
                    [persons.labels[i] for i in persons.label],
                    f"{name} {label}",
                    [f"{p:.4f}" for p in persons.probabilities[:, i]],
                )
            to = tables.setdefault(f"{test_set}-slices", _Columns("label"))
            to.add(
                slices.patient_id,
                [slices.labels[i] for i in slices.label],
                name,
                [f"{p:.4f}" for p in slices.probabilities[:, positive_class(slices.labels, "")]],
            )
            pointed = pointed_file(work, run, test)
            if weights == "last" and pointed.is_file():
                _add_pointed(
                    tables.setdefault(f"{test_set}-pointed", _Columns("chance")), name, pointed
                )
    results.mkdir(exist_ok=True)
    for name, table in tables.items():
        table.write(results / f"{name}.csv")
    with (results / "runs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(RUN_COLUMNS)
        for run in done:
            account = json.loads((run_folder(work, run) / DONE).read_text(encoding="utf-8"))
            writer.writerow([account[name] for name in RUN_COLUMNS])
    return [run for run in runs if run not in done]


def cohort_of(test: str) -> str:
    """The name of the persons who are tested: smaller training sets have the same."""
    return re.sub(r"_\d+$", "", test)


def read_table(path: Path) -> Table:
    """What `collect` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    columns = list(zip(*rows, strict=True))
    values: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for title, column in zip(header[2:], columns[2:], strict=True):
        result = _COLUMN.fullmatch(title)
        assert result, title
        of_run = values.setdefault(result["arm"], {}).setdefault(int(result["seed"]), {})
        of_run[result["name"] or ""] = np.array([float(x or "nan") for x in column])
    return Table(np.array(columns[0]), np.array(columns[1]), values)


def _add_pointed(to: _Columns, name: str, path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    patient_id = [row["patient_id"] for row in rows]
    chance = [f"{float(row['chance']):.4f}" for row in rows]
    for point in POINTS:
        if rows[0][point]:
            to.add(patient_id, chance, f"{name} {point}", [row[point] for row in rows])


class _Columns:
    """A table that grows by columns."""

    def __init__(self, about: str):
        self._about = about
        self._columns: dict[str, list[str]] = {}

    def add(
        self, patient_id: Sequence[str], about: Sequence[str], name: str, values: list[str]
    ) -> None:
        known = {"patient_id": list(map(str, patient_id)), self._about: list(about)}
        if not self._columns:
            self._columns = known
        # All runs are scored on the same cases in the same order.
        assert all(self._columns[item] == column for item, column in known.items()), name
        self._columns[name] = values

    def write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self._columns)
            writer.writerows(zip(*self._columns.values(), strict=True))
