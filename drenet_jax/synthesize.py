"""Writes a synthetic cohort: DICOM series of phantom chests with known lesions.

Everything else can be tried on it with no data of your own. A third of the persons each has
COVID-19 (ground-glass patches in both lungs), bacterial pneumonia (a consolidated lobe) or healthy
lungs. The phantoms are drawings: a model trained on them knows nothing of real patients.

Examples:
  python -m drenet_jax.synthesize --out=demo/cohort
  python -m drenet_jax.synthesize --out=demo/small --persons=12 --size=128 --seed=7
  python -m drenet_jax.synthesize --out=demo/elsewhere --site=B --seed=1

Writes into --out:
  dicom/<patient_id>/*.dcm   one series a person
  cohort.csv                 patient_id,path,label,site; what `prepare --cohort` reads
  lesions.csv                patient_id,slice_name,slice_index,lesion,y0,x0,y1,x1; the box of every
                             lesion on every slice, in pixels of the slice, half open; slice_index
                             counts from 0 along the slice normal (feet to head)

The same flags write the same bytes, whatever the number of workers. --site changes the scanner,
never the persons: use another --seed too if the persons should be others.
"""

from __future__ import annotations

import collections
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from drenet_jax import cli
from drenet_jax.data.csv_tables import write_rows
from drenet_jax.errors import InputError
from drenet_jax.output_files import new_folder
from drenet_jax.parallel_map import map_in_order
from drenet_jax.phantoms.dicom import write_dicom
from drenet_jax.phantoms.phantom import LABELS, lesion_boxes, make_phantom
from drenet_jax.phantoms.scanner import SITES
from drenet_jax.storage import stand_ins

SMALLEST_PX, LARGEST_PX = 64, 1024

# Spawn keys 0, 1, 2, ... are the persons; this one, out of their reach, shuffles the labels.
_LABELS_KEY = 2**32 - 1

COHORT_COLUMNS = ("patient_id", "path", "label", "site")
LESION_COLUMNS = (
    "patient_id",
    "slice_name",
    "slice_index",
    "lesion",
    "y0",
    "x0",
    "y1",
    "x1",
)


def synthesize(
    out: Path, *, persons: int, seed: int, size_px: int, site: str, workers: int
) -> collections.Counter:
    """Writes the cohort described above into `out`.

    Args:
      out: a folder that does not exist yet; it appears only when it is complete.
      persons: how many, at least 1.
      seed: 0 or more.
      size_px: height and width of the slices.
      site: a key of `drenet_jax.phantoms.scanner.SITES`.
      workers: number of processes.

    Returns:
      How many persons have which label.

    Raises:
      InputError: a value that cannot be used, or an `out` that exists or cannot be written.
    """
    for good, message in (
        (persons >= 1, f"--persons={persons} must be at least 1."),
        (seed >= 0, f"--seed={seed} must be 0 or more."),
        (
            SMALLEST_PX <= size_px <= LARGEST_PX,
            f"--size={size_px} must be from {SMALLEST_PX} to {LARGEST_PX} pixels.",
        ),
        (
            site in SITES,
            f"--site={site} is not known; use one of {', '.join(SITES)}.",
        ),
    ):
        if not good:
            raise InputError(message)

    labels = _labels(persons, seed)
    width = max(4, len(str(persons)))
    ids = [f"phantom-{i + 1:0{width}d}" for i in range(persons)]
    with new_folder(out) as folder:
        (folder / "dicom").mkdir()
        tasks = [
            (folder / "dicom" / patient_id, patient_id, label, seed, i, size_px, site)
            for i, (patient_id, label) in enumerate(zip(ids, labels, strict=True))
        ]
        lesions: list[Sequence] = []
        for rows in tqdm(
            map_in_order(_write_person, tasks, workers),
            total=persons,
            desc="synthesize",
            unit="person",
        ):
            lesions += rows
        write_rows(
            folder / "cohort.csv",
            COHORT_COLUMNS,
            [(i, f"dicom/{i}", label, site) for i, label in zip(ids, labels, strict=True)],
        )
        write_rows(folder / "lesions.csv", LESION_COLUMNS, lesions)
    return collections.Counter(labels)


def _labels(persons: int, seed: int) -> list[str]:
    """Labels in equal shares, shuffled, so that a patient_id does not reveal the label."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_LABELS_KEY,)))
    in_turn = [LABELS[i % len(LABELS)] for i in range(persons)]
    return [in_turn[i] for i in rng.permutation(persons)]


def _write_person(
    folder: Path, patient_id: str, label: str, seed: int, number: int, size_px: int, site: str
) -> list[Sequence]:
    """Writes one person's series and returns their rows of lesions.csv."""
    person = np.random.SeedSequence(seed, spawn_key=(number,))
    phantom = make_phantom(label, person, size_px, site)
    folder.mkdir()
    names = write_dicom(phantom, folder, patient_id=patient_id, seed=person)
    return [
        (patient_id, names[index], index, lesion, *box)
        for index, lesion, *box in lesion_boxes(phantom)
    ]


def main() -> None:
    values = flags.FLAGS
    out = Path(values.out)
    counts = synthesize(
        out,
        persons=values.persons,
        seed=values.seed,
        size_px=values.size,
        site=values.site,
        workers=values.workers,
    )
    shares = ", ".join(f"{counts[label]} {label}" for label in LABELS if counts[label])
    cohort = out / "cohort.csv"
    command = f"python -m drenet_jax.prepare --cohort={shlex.quote(str(cohort))} --out=NEW_FOLDER"
    print(stand_ins.shown(f"{shares}: {cohort}; next: {command}"))


def define_flags() -> None:
    flags.DEFINE_string("out", None, "The folder to write. It must not exist yet.")
    flags.DEFINE_integer("persons", 120, "Number of persons, shared evenly by the labels.")
    flags.DEFINE_integer("seed", 0, "Another seed gives other persons; 0 or more.")
    flags.DEFINE_integer(
        "size", 256, f"Height and width of the slices, {SMALLEST_PX} to {LARGEST_PX} pixels."
    )
    sites = " or ".join(SITES)
    flags.DEFINE_string("site", "A", f"The scanner, {sites} (B: low dose, sharp kernel).")
    cli.define_workers()


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__, required=("out",), places={"out": stand_ins.output})
