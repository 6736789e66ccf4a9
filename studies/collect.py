"""Puts the predictions of the runs that are done into `results/`, and the figures made of them.

    python -m studies.collect [STUDY...] [--work=FOLDER] [--results=FOLDER] [--check]

With --check nothing committed is written: the figures are compared with the committed ones.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

from studies import figures
from studies.predictions import RESULTS, all_runs, collect
from studies.runs import WORK
from studies.studies import STUDIES

DATA_COLUMNS = ("data", "split", "persons", "slices")
COVID_CT_LEFT_OUT = "covid_ct-left_out.csv"


def collect_data(work: Path, results: Path) -> None:
    """Writes how many persons and slices each data set has, and what was left out of COVID-CT."""
    from drenet_jax.data.prepared_data import open_data

    with (results / "data.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(DATA_COLUMNS)
        for folder in sorted((work / "data").iterdir()):
            data = open_data(folder)
            for split, persons in data.persons.items():
                writer.writerow([folder.name, split, len(persons), data.n_slices[split]])
    left_out = work / "data" / "covid_ct" / "excluded.csv"
    if left_out.is_file():
        with left_out.open(encoding="utf-8", newline="") as file:
            reasons = [row["why"] for row in csv.DictReader(file) if row["file"]]
        (results / COVID_CT_LEFT_OUT).write_text(
            "".join(f"{line}\n" for line in ["why", *reasons]), encoding="utf-8"
        )


def compare(path: Path, committed: Path) -> bool:
    """Prints whether every figure that was found is the committed one to 4 decimals."""
    new, old = figures.read(path), figures.read(committed)
    apart, unknown = [], [key for key in new if key not in old]
    for key in unknown:
        print(f"not committed yet: {', '.join(key)}")
    for key, row in new.items():
        if key in unknown:
            continue
        worst = max(abs(float(row[x]) - float(old[key][x])) for x in ("value", "low", "high"))
        if worst > 0:
            apart.append((worst, key))
    for worst, key in sorted(apart, reverse=True):
        print(f"{worst:.4f} apart: {', '.join(key)}")
    n_agree = len(new) - len(apart) - len(unknown)
    print(f"{n_agree} of {len(new)} figures agree with {committed} to 4 decimals")
    return n_agree == len(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="*")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true")
    values = parser.parse_args()
    runs = [run for study in values.study for run in STUDIES[study]] or all_runs()
    if values.check:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            collect(values.work, path, runs)
            figures.main([f"--results={path}"])
            if not compare(path / "figures.csv", values.results / "figures.csv"):
                sys.exit(1)
        return
    missing = collect(values.work, values.results, runs)
    collect_data(values.work, values.results)
    figures.main([f"--results={values.results}"])
    for run in missing:
        print(f"not there: {run.name}")


if __name__ == "__main__":
    main()
