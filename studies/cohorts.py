"""The data sets of the studies: drawn or found, split by person, and prepared at one small size.

The persons who test a study are the same for every method, seed and training set. Training sets of
fewer persons are nested: the first persons of each label.
"""

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
from drenet_jax.data.lesions import LESIONS_FILE
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.output_files import new_folder
from drenet_jax.synthesize import synthesize
from studies.methods import IMAGE_SIZE_PX

# Picked; some five of them are kept: persons are harder, and runs shorter.
SLICES_PER_PERSON = 9
LABELS = ("COVID-19", "bacterial", "healthy")
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
      site: the scanner.
      seed: of the persons.
      train, test: persons.
      prefix: of the patient_ids, so that no name occurs in two cohorts.
      size_px: of the slices as scanned.
      image_size_px: of the lung crops.
    """

    site: str
    seed: int
    train: int
    test: int
    prefix: str = ""
    size_px: int = 256
    image_size_px: int = IMAGE_SIZE_PX


COHORTS = {
    # Hard: a low dose and a sharp kernel. The pilot had persons of seed 901.
    "phantoms": Phantoms("B", 11, train=200, test=180),
    "site_a": Phantoms("A", 12, train=100, test=100, prefix="a-"),
    "site_b": Phantoms("B", 13, train=40, test=100, prefix="b-"),
    # As large as the configs of the paper's networks want it.
    "full_size": Phantoms("B", 11, train=200, test=180, size_px=512, image_size_px=448),
    "full_size_trial": Phantoms("B", 11, train=12, test=6, size_px=512, image_size_px=448),
    "tiny": Phantoms("A", 14, train=6, test=6, size_px=96),
}
SMALLER = {
    f"{name}_{n}": (name, n)
    for name, sizes in {"phantoms": (20, 50, 100), "site_b": (5, 10, 20)}.items()
    for n in sizes
}


def data_folder(work: Path, name: str) -> Path:
    """Where a data set lies: a key of `COHORTS` or `SMALLER`, or "covid_ct"."""
    return work / "data" / name


def make_data(work: Path, name: str, workers: int) -> Path:
    """Makes a data set that is not there yet."""
    folder = data_folder(work, name)
    if folder.exists():
        return folder
    if name in SMALLER:
        whole, n = SMALLER[name]
        _make_smaller(make_data(work, whole, workers), folder, n)
    elif name == "covid_ct":
        _prepare(COVID_CT, folder, (), IMAGE_SIZE_PX, workers)
    else:
        cohort = COHORTS[name]
        drawn = work / "drawn" / name
        shutil.rmtree(drawn, ignore_errors=True)
        synthesize(
            drawn,
            persons=cohort.train + cohort.test,
            seed=cohort.seed,
            size_px=cohort.size_px,
            site=cohort.site,
            workers=workers,
        )
        _split_and_rename(drawn, cohort)
        _prepare(drawn / "cohort.csv", folder, LABELS, cohort.image_size_px, workers)
        # Gigabytes, of which the records hold all that is needed.
        shutil.rmtree(drawn)
    return folder


def _split_and_rename(drawn: Path, cohort: Phantoms) -> None:
    rows = _read(drawn / "cohort.csv")
    left = {
        label: cohort.train // len(LABELS) + (i < cohort.train % len(LABELS))
        for i, label in enumerate(LABELS)
    }
    for row in rows:
        row["split"] = "train" if left[row["label"]] > 0 else "test"
        left[row["label"]] -= 1
        row["patient_id"] = cohort.prefix + row["patient_id"]
    _write(drawn / "cohort.csv", rows)
    lesions = _read(drawn / LESIONS_FILE)
    for row in lesions:
        row["patient_id"] = cohort.prefix + row["patient_id"]
    _write(drawn / LESIONS_FILE, lesions)


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


def _make_smaller(whole: Path, folder: Path, n: int) -> None:
    from drenet_jax.data.folds import persons_of_records
    from drenet_jax.data.prepared_data import open_data, write_fold

    data = open_data(whole)
    persons = persons_of_records(data)
    ranks = dict.fromkeys(data.labels, 0)
    orientation = {}
    for person in sorted(data.persons["train"]):
        label = persons[person].label
        orientation[person] = (ranks[label], data.labels.index(label))
        ranks[label] += 1
    split = {
        "train": sorted(sorted(orientation, key=orientation.get)[:n]),
        "test": list(data.persons["test"]),
    }
    n_slices = {
        name: sum(persons[member].n_slices for member in members) for name, members in split.items()
    }
    write_fold(folder, data.fold(split, n_slices))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
