"""The offline pipeline: a cohort's series become sharded records, and all left out is told."""

from __future__ import annotations

import csv
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from drenet_jax.ct.series import require_images
from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort import SPLITS, Cohort
from drenet_jax.data.qc import qc_page
from drenet_jax.data.split import split_persons
from drenet_jax.data.transform import PreparedSummary, prepare_to_spool, read_spool
from drenet_jax.errors import InputError
from drenet_jax.workers import map_in_order


@dataclasses.dataclass(frozen=True)
class Account:
    """What `prepare_cohort` wrote and what it left out.

    Attributes:
      labels: names of the classes, in order.
      persons: split -> patient_ids.
      n_slices: split -> number of examples.
      persons_left_out: patient_id -> why, of the persons who are in no split.
      n_excluded: rows of `excluded.csv`.
    """

    labels: tuple[str, ...]
    persons: dict[str, list[str]]
    n_slices: dict[str, int]
    persons_left_out: dict[str, str]
    n_excluded: int


def prepare_cohort(
    cohort: Cohort,
    folder: Path,
    *,
    settings: CtSettings,
    seed: int,
    fractions: Sequence[float],
    workers: int,
    progress: Callable[[Iterable[PreparedSummary], int], Iterable[PreparedSummary]],
) -> Account:
    """Prepares every person and writes the data set, `excluded.csv` and `qc.html` into `folder`.

    The result has the same bytes for any number of workers.

    Args:
      cohort: the persons.
      folder: an existing, empty folder.
      settings: of the image side.
      seed: of the split and the fill.
      fractions: parts for training, validation and test; a split that the cohort gives is kept.
      workers: processes that work on persons at once.
      progress: wraps the summaries (and their number) as they come, for a progress bar.

    Raises:
      InputError: a path holds nothing that might be a slice; nothing is left of the whole cohort.
    """
    # Imported here: the workers, which import this module, would each load TensorFlow.
    from drenet_jax.data.records import write_records

    for person in cohort.persons:
        for path in person.paths:
            require_images(path)
    spool = folder / "spool"
    spool.mkdir()
    tasks = [
        (person, spool / f"{i:08d}.pickle", settings, seed)
        for i, person in enumerate(cohort.persons)
    ]
    done = map_in_order(prepare_to_spool, tasks, workers)
    summaries = list(progress(done, len(tasks)))
    kept = {one.person.patient_id: one for one in summaries if one.n_kept}
    if not kept:
        first = summaries[0]
        raise InputError(
            f"{cohort.path}: no slice of any person was kept "
            f"(first, {first.person.patient_id!r}: {first.excluded[-1][1].rstrip('.')})."
        )
    persons = _split(cohort, kept, fractions, seed)
    n_slices = {split: sum(kept[one].n_kept for one in persons[split]) for split in SPLITS}

    write_records(
        folder,
        labels=cohort.labels,
        ct=settings,
        seed=seed,
        persons=persons,
        n_slices=n_slices,
        n_bytes=sum(one.spool.stat().st_size for one in kept.values()),
        examples={
            split: functools.partial(_examples, [kept[one].spool for one in persons[split]])
            for split in SPLITS
        },
    )
    n_excluded = _write_excluded(folder / "excluded.csv", summaries)
    (folder / "qc.html").write_text(qc_page(summaries, persons), encoding="utf-8")
    shutil.rmtree(spool)
    return Account(
        labels=cohort.labels,
        persons=persons,
        n_slices=n_slices,
        persons_left_out={
            one.person.patient_id: one.excluded[-1][1] for one in summaries if not one.n_kept
        },
        n_excluded=n_excluded,
    )


def _split(
    cohort: Cohort, kept: dict[str, PreparedSummary], fractions: Sequence[float], seed: int
) -> dict[str, list[str]]:
    if not cohort.has_split:
        labels = {patient_id: one.person.label for patient_id, one in kept.items()}
        return split_persons(labels, fractions, seed)
    persons: dict[str, list[str]] = {split: [] for split in SPLITS}
    for patient_id, one in sorted(kept.items()):
        persons[one.person.split].append(patient_id)
    return persons


def _examples(spools: Sequence[Path]) -> Iterator[dict]:
    for file in spools:
        yield from read_spool(file)


def _write_excluded(path: Path, summaries: Sequence[PreparedSummary]) -> int:
    rows = [(one.person.patient_id, file, why) for one in summaries for file, why in one.excluded]
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("patient_id", "file", "why"))
        writer.writerows(rows)
    return len(rows)
