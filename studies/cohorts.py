"""The data of the study: phantoms that are drawn for it, and COVID-CT in folds by person."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.folds import persons_of_records, stratified_folds
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.prepared_data import open_data, write_fold
from drenet_jax.output_files import new_folder
from drenet_jax.synthesize import synthesize

# Picked; some five of them show lungs enough to be kept.
SLICES_PER_PERSON = 9
FOLDS = 5
COVID_CT = Path(
    os.environ.get(
        "DRENET_JAX_COVID_CT",
        Path(__file__).resolve().parents[2] / "shared" / "data" / "covid_ct" / "manifest.csv",
    )
)


@dataclasses.dataclass(frozen=True)
class Phantoms:
    """A cohort of phantoms.

    Attributes:
      seed: of the persons.
      train, test: persons, a third of each label.
      size_px: of the slices as scanned.
      image_size_px: of the lung crops.
    """

    seed: int
    train: int
    test: int
    size_px: int = 256
    image_size_px: int = 160


@dataclasses.dataclass(frozen=True)
class CovidCt:
    """COVID-CT at one size, in `FOLDS` folds by person, the same persons for each size."""

    image_size_px: int


COHORTS: dict[str, Phantoms | CovidCt] = {
    # So few that the backbone alone is not at the ceiling. The pilot had persons of seed 902.
    "phantoms": Phantoms(seed=2026, train=48, test=240),
    "covid_ct": CovidCt(224),
    # DRENet's crops cost more than the whole images do.
    "covid_ct_160": CovidCt(160),
}


def data_folder(work: Path, name: str, fold: int | None = None) -> Path:
    """Where a data set of `COHORTS`, or one of its folds, lies."""
    return work / "data" / (name if fold is None else f"{name}-fold{fold}")


def make_data(work: Path, name: str, workers: int) -> None:
    """Makes a data set, and its folds, if they are not there yet."""
    folder = data_folder(work, name)
    cohort = COHORTS[name]
    if not folder.exists():
        if isinstance(cohort, CovidCt):
            _prepare(COVID_CT, folder, ("non_covid", "covid"), cohort.image_size_px, workers)
        else:
            _draw(work / "drawn" / name, folder, cohort, workers)
    if isinstance(cohort, CovidCt):
        _make_folds(work, name)


def _draw(drawn: Path, folder: Path, cohort: Phantoms, workers: int) -> None:
    shutil.rmtree(drawn, ignore_errors=True)
    # Site B: a low dose and a sharp kernel.
    synthesize(
        drawn,
        persons=cohort.train + cohort.test,
        seed=cohort.seed,
        size_px=cohort.size_px,
        site="B",
        workers=workers,
    )
    rows = read_csv(drawn / "cohort.csv")
    labels = sorted({row["label"] for row in rows})
    left = dict.fromkeys(labels, cohort.train // len(labels))
    for row in rows:
        row["split"] = "train" if left[row["label"]] > 0 else "test"
        left[row["label"]] -= 1
    _write(drawn / "cohort.csv", rows)
    labels_in_order = ("COVID-19", "bacterial", "healthy")
    _prepare(drawn / "cohort.csv", folder, labels_in_order, cohort.image_size_px, workers)
    # Gigabytes, of which the records hold all that is needed.
    shutil.rmtree(drawn)


def _prepare(
    cohort_csv: Path, folder: Path, labels: tuple[str, ...], size_px: int, workers: int
) -> None:
    settings = CtSettings.from_dict(
        importlib.import_module("drenet_jax.configs.prepare").get_config().to_dict()
    )
    settings = dataclasses.replace(
        settings, image_size_px=size_px, slices_per_person=SLICES_PER_PERSON
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as made:
        prepare_cohort(
            read_cohort(cohort_csv, labels),
            made,
            settings=settings,
            seed=0,
            fractions=(60, 10, 30),
            workers=workers,
            progress=lambda report, n: report,
        )


def _make_folds(work: Path, name: str) -> None:
    """Every person of both published parts is tested in one fold; nobody validates.

    The published parts are joined: both have been used before.
    """
    data = open_data(data_folder(work, name))
    persons = persons_of_records(data)
    for i, fold in enumerate(stratified_folds(data, persons, FOLDS, seed=0)):
        folder = data_folder(work, name, i)
        if folder.exists():
            continue
        split = {
            "train": sorted(fold.persons["train"] + fold.persons["validation"]),
            "test": fold.persons["test"],
        }
        n_slices = {
            part: sum(persons[member].n_slices for member in members)
            for part, members in split.items()
        }
        write_fold(folder, data.fold(split, n_slices))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
