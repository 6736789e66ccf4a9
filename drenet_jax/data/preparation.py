"""The offline pipeline: series to sharded records; all exclusions are logged in excluded.csv."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drenet_jax.ct.discovery import require_images
from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort_table import SPLITS, Cohort, Person
from drenet_jax.data.csv_tables import table_writer
from drenet_jax.data.duplicates import SharedSlices, SliceDigests, require_together
from drenet_jax.data.facts import COLUMNS, FACTS_FILE, PersonFacts
from drenet_jax.data.lesions import LESIONS_FILE
from drenet_jax.data.qc_page import QcCounts, short, write_qc_pages
from drenet_jax.data.split import split_persons
from drenet_jax.data.staging import read_examples, staging_file
from drenet_jax.data.transform import PersonReport, PreparedSummary, prepare_to_staging
from drenet_jax.errors import InputError
from drenet_jax.parallel_map import map_in_order
from drenet_jax.storage import objects

if TYPE_CHECKING:
    from drenet_jax.data.beam import Beam


# `function(*task)` of every task, in the order of the tasks, perhaps in other processes.
ParallelMap = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]

# To list the files of so many takes about as long as starting the workers.
_MANY_PERSONS = 1000


@dataclasses.dataclass(frozen=True)
class PreparationSummary:
    """What `prepare_cohort` wrote and what it left out.

    Attributes:
      persons: split -> patient_ids.
      n_slices: split -> number of examples.
      persons_left_out: patient_id -> why, of the persons who are in no split.
      excluded: rows of `excluded.csv` by reason, without what concerns one file alone.
      n_notes: rows of `notes.csv`.
      n_pairs_sharing: pairs of persons of one split and label who have the same pictures.
      unused_columns: columns of the cohort without a meaning.
      facts: of the persons' files.
    """

    persons: dict[str, list[str]]
    n_slices: dict[str, int]
    persons_left_out: dict[str, str]
    excluded: collections.Counter[str]
    n_notes: int
    n_pairs_sharing: int
    unused_columns: tuple[str, ...]
    facts: PersonFacts


def prepare_cohort(
    cohort: Cohort,
    folder: Path,
    *,
    settings: CtSettings,
    seed: int,
    fractions: Sequence[float],
    workers: int,
    progress: Callable[[Iterable[PersonReport], int], Iterable[PersonReport]],
    beam: Beam | None = None,
) -> PreparationSummary:
    """Prepares every person and writes the data set, the lists and the QC pages into `folder`.

    The result has the same bytes for any number of workers. On Beam the records may lie in other
    shards.

    Args:
      cohort: the persons.
      folder: an existing, empty folder; with `beam`, one that all its workers see.
      settings: of the preprocessing.
      seed: of the split and the fill.
      fractions: parts for training, validation and test; a split that the cohort gives is kept.
      workers: processes that work on persons at once, without `beam`.
      progress: wraps the reports of the persons (and their number) as they come, for a progress
        bar.
      beam: does the work elsewhere.

    Raises:
      InputError: a path holds nothing that might be a slice; nothing is left of the whole cohort;
        two persons of two splits or labels have the same pictures.
    """
    # A name that no other run has: workers of a killed run on a cluster may still be writing.
    work = folder / f"work-{secrets.token_hex(8)}"
    staging_folder = work / "staging"
    staging_folder.mkdir(parents=True)
    if beam is None:
        parallel_map = functools.partial(map_in_order, workers=workers)
    else:
        parallel_map = functools.partial(beam.map_in_order, work=work)

    _require_images(cohort, parallel_map)
    tasks = (
        (person, staging_file(staging_folder, i), settings, seed)
        for i, person in enumerate(cohort.persons)
    )
    summaries: dict[str, PreparedSummary] = {}
    excluded: collections.Counter[str] = collections.Counter()
    n_notes = 0
    with (
        table_writer(folder / "excluded.csv", ("patient_id", "file", "why")) as excluded_csv,
        table_writer(folder / "notes.csv", ("patient_id", "note")) as notes_csv,
        table_writer(folder / FACTS_FILE, COLUMNS) as facts_csv,
    ):
        facts = PersonFacts()
        reports = progress(parallel_map(prepare_to_staging, tasks), len(cohort.persons))
        for person, report in zip(cohort.persons, reports, strict=True):
            summaries[person.patient_id] = report.summary
            excluded_csv.writerows((person.patient_id, *row) for row in report.excluded)
            excluded.update(short(why) for _, why in report.excluded)
            notes_csv.writerows((person.patient_id, note) for note in report.notes)
            n_notes += len(report.notes)
            facts_csv.writerows(facts.add(person.patient_id, report.facts))
        if not any(summary.n_kept for summary in summaries.values()):
            patient_id, first = next(iter(summaries.items()))
            raise InputError(
                f"{cohort.path}: no slice of any person was kept "
                f"(first, {patient_id!r}: {first.why_left_out.rstrip('.')})."
            )
        persons = _split(cohort, summaries, fractions, seed)
        split_of = {member: split for split in SPLITS for member in persons[split]}
        digests = SliceDigests.of({member: summaries[member].digests for member in split_of})
        shared = digests.shared()
        require_together(
            shared,
            {
                person.patient_id: (split_of[person.patient_id], person.label)
                for person in cohort.persons
                if person.patient_id in split_of
            },
            cohort.path,
            "Give the rows of a pair one patient_id if they are one person, or remove all but one "
            "of them; else the model would be tested on pictures that it was trained on, or be "
            "taught two answers to one picture.",
        )
        notes = list(_notes_on_duplicates(digests, shared))
        notes_csv.writerows(notes)
        n_notes += len(notes)
    n_slices = {
        split: sum(summaries[person].n_kept for person in persons[split]) for split in SPLITS
    }
    number_of = {person.patient_id: i for i, person in enumerate(cohort.persons)}

    def staged_files_of(patient_ids: Iterable[str]) -> Iterator[Path]:
        return (staging_file(staging_folder, number_of[patient_id]) for patient_id in patient_ids)

    def examples_of(split: str) -> Any:
        files = staged_files_of(persons[split])
        if beam is None:
            return itertools.chain.from_iterable(map(read_examples, files))
        return beam.examples(files, work)

    # Imported here: the workers, which import this module, would each load TensorFlow.
    from drenet_jax.data.records import write_records

    write_records(
        folder,
        labels=cohort.labels,
        ct=settings,
        seed=seed,
        persons=persons,
        diagnoses={person.patient_id: (person.label, person.site) for person in cohort.persons},
        n_slices=n_slices,
        digests=digests,
        n_bytes=sum(summary.n_bytes for summary in summaries.values()),
        examples={split: functools.partial(examples_of, split) for split in SPLITS},
        beam=beam,
    )
    lesions = cohort.path.with_name(LESIONS_FILE)
    if objects.is_remote(lesions):
        with contextlib.suppress(FileNotFoundError):
            objects.download(str(lesions), folder / LESIONS_FILE)
    elif lesions.is_file():
        shutil.copyfile(lesions, folder / LESIONS_FILE)
    by_severity = sorted(summaries, key=lambda person: (-summaries[person].severity, person))
    write_qc_pages(
        folder,
        zip(
            staged_files_of(by_severity),
            (split_of.get(person, "") for person in by_severity),
            strict=True,
        ),
        QcCounts.of(summary.severity for summary in summaries.values()),
        parallel_map,
    )
    shutil.rmtree(work)
    return PreparationSummary(
        persons=persons,
        n_slices=n_slices,
        persons_left_out={
            patient_id: summary.why_left_out
            for patient_id, summary in summaries.items()
            if summary.why_left_out
        },
        excluded=excluded,
        n_notes=n_notes,
        n_pairs_sharing=len(shared),
        unused_columns=cohort.unused_columns,
        facts=facts,
    )


def _require_images(cohort: Cohort, parallel_map: ParallelMap) -> None:
    """Refuses a cohort in which a path holds nothing that might be a slice, before all work."""
    persons = cohort.persons
    if any(objects.is_remote(path) for person in persons for path in person.paths):
        # Of waiting, not of work.
        refusals: Iterable[InputError | None] = objects.each(_refusal, persons)
    else:
        if len(persons) < _MANY_PERSONS:
            parallel_map = functools.partial(map_in_order, workers=1)
        refusals = parallel_map(_refusal, ((person,) for person in persons))
    for refusal in refusals:
        if refusal is not None:
            raise refusal


def _refusal(person: Person) -> InputError | None:
    try:
        for path in person.paths:
            require_images(path)
    except InputError as error:
        return error
    return None


def _split(
    cohort: Cohort,
    summaries: Mapping[str, PreparedSummary],
    fractions: Sequence[float],
    seed: int,
) -> dict[str, list[str]]:
    """split -> the patient_ids of those with a kept slice, sorted."""
    kept = [person for person in cohort.persons if summaries[person.patient_id].n_kept]
    if not cohort.has_split:
        return split_persons({person.patient_id: person.label for person in kept}, fractions, seed)
    return {
        split: sorted(person.patient_id for person in kept if person.split == split)
        for split in SPLITS
    }


def _notes_on_duplicates(
    digests: SliceDigests, shared: Sequence[SharedSlices]
) -> Iterator[tuple[str, str]]:
    """(patient_id, note) of pictures that are there twice."""
    for patient_id, n in digests.repeated().items():
        yield patient_id, f"{_slices(n)} there twice, so the person's files hold copies"
    for pair in shared:
        for patient_id, other in ((pair.first, pair.second), (pair.second, pair.first)):
            yield patient_id, f"{_slices(pair.n_slices)} also those of {other!r}, in the same split"


def _slices(n: int) -> str:
    return "1 slice is" if n == 1 else f"{n} slices are"
