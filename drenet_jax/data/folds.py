"""Cross-validation's folds: who is tested in which, and what their records hold."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

import tensorflow_datasets as tfds

from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.duplicates import SharedSlices, require_together
from drenet_jax.data.prepared_data import PreparedData, read_all
from drenet_jax.data.split import fold_persons, split_persons
from drenet_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PersonRecords:
    """A patient's label, site ("" if not known) and number of examples in the records."""

    label: str
    site: str
    n_slices: int


def persons_of_records(data: PreparedData) -> dict[str, PersonRecords]:
    """patient_id -> what is known of each person of `data`, in all splits.

    Raises:
      InputError: a person of `data` has no record.
    """
    only = tfds.decode.PartialDecoding({"patient_id": True})
    n_slices = collections.Counter(
        record["patient_id"].decode()
        for split in data.builder.info.splits
        for record in read_all(data, data.stored_records(split, only))
    )
    persons = [person for split in SPLITS for person in data.persons[split]]
    missing = [person for person in persons if not n_slices[person]]
    if missing:
        raise InputError(
            f"{data.records_name} holds no record of person {missing[0]!r}; run prepare again."
        )
    return {person: PersonRecords(*data.diagnoses[person], n_slices[person]) for person in persons}


def stratified_folds(
    data: PreparedData, persons: Mapping[str, PersonRecords], n_folds: int, seed: int
) -> list[PreparedData]:
    """Folds in which every label is shared out alike; each person is tested in one.

    Args:
      data: what `prepare` wrote.
      persons: from `persons_of_records(data)`.
      n_folds: how many.
      seed: of the folds, and of who is validation in each.

    Raises:
      InputError: a label has fewer persons than there are folds, or the folds would part persons
        who have the same pictures.
    """
    labels = {patient_id: person.label for patient_id, person in persons.items()}
    counts = collections.Counter(labels.values())
    for label in data.labels:
        n = counts[label]
        if n < n_folds:
            raise InputError(
                f"--folds={n_folds}: {data.name} holds {n} persons with the label {label}, and "
                "each fold needs one to test; ask for fewer folds."
            )
    shared = data.digests.shared()
    return [
        _fold(data, persons, test, seed, shared) for test in fold_persons(labels, n_folds, seed)
    ]


def site_folds(
    data: PreparedData, persons: Mapping[str, PersonRecords], seed: int
) -> dict[str, PreparedData]:
    """site -> the fold that tests its persons with a model of all other sites' persons.

    Args:
      data: what `prepare` wrote.
      persons: from `persons_of_records(data)`.
      seed: of who is validation in each.

    Raises:
      InputError: there are not two sites, a person has none, a label would have no training persons
        without one of the sites, or the folds would part persons who have the same pictures.
    """
    sites = sorted({person.site for person in persons.values()})
    if "" in sites or len(sites) < 2:
        nowhere = [patient_id for patient_id, person in persons.items() if not person.site]
        why = f"person {nowhere[0]!r} has no site" if nowhere else f"all are of {sites[0]!r}"
        raise InputError(
            f"--folds=sites: {data.name} needs persons of two or more sites, but {why}; fill the "
            "column site of the cohort and prepare it again, or give a number of folds."
        )
    shared = data.digests.shared()
    folds = {}
    for site in sites:
        for label in data.labels:
            if all(person.site == site for person in persons.values() if person.label == label):
                raise InputError(
                    f"--folds=sites: no person outside {site} has the label {label}, so a model of "
                    "the other sites cannot know it; give a number of folds."
                )
        test = sorted(patient_id for patient_id, person in persons.items() if person.site == site)
        folds[site] = _fold(data, persons, test, seed, shared)
    return folds


def _fold(
    data: PreparedData,
    persons: Mapping[str, PersonRecords],
    test: list[str],
    seed: int,
    shared: list[SharedSlices],
) -> PreparedData:
    """The fold that tests `test`; of the others, as large a share as in `data` is validation."""
    rest = {
        patient_id: person.label
        for patient_id, person in persons.items()
        if patient_id not in set(test)
    }
    # All persons may be in the test split: then there is no validation.
    n_train = len(data.persons["train"]) or 1
    shares = (n_train, len(data.persons["validation"]), 0)
    split = split_persons(rest, shares, seed) | {"test": test}
    require_together(
        shared,
        {member: (name,) for name, members in split.items() for member in members},
        f"a fold of {data.name}",
        "Give the rows of a pair one patient_id in the cohort if they are one person, or remove "
        "all but one of them, and prepare it again.",
    )
    n_slices = {
        name: sum(persons[member].n_slices for member in members) for name, members in split.items()
    }
    return data.fold(split, n_slices)
