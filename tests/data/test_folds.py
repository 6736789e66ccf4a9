"""Folds: the same records with other splits, each person tested once."""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil

import pytest

from drenet_jax.data.batches import split_batches, train_batches
from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.folds import persons_of_records, site_folds, stratified_folds
from drenet_jax.data.prepared_data import open_data, write_fold
from drenet_jax.errors import InputError


@pytest.fixture(scope="module")
def data(prepared):
    return open_data(prepared)


@pytest.fixture(scope="module")
def persons(data):
    return persons_of_records(data)


def _members(data, split):
    """Person -> slices in the batches of a split."""
    batches = split_batches(data, split, batch_size=8, fill="never")
    return collections.Counter(
        patient_id for batch in batches for patient_id in batch["patient_id"]
    )


def test_the_records_say_who_is_there(data, persons):
    assert set(persons) == {person for split in SPLITS for person in data.persons[split]}
    for split in SPLITS:
        assert (
            sum(persons[person].n_slices for person in data.persons[split]) == data.n_slices[split]
        )
    assert {person.label for person in persons.values()} == set(data.labels)


def test_everybody_is_tested_once_and_trained_on_nowhere_beside(data, persons):
    folds = stratified_folds(data, persons, 3, seed=0)
    assert sorted(person for fold in folds for person in fold.persons["test"]) == sorted(persons)
    for fold in folds:
        assert sorted(person for split in SPLITS for person in fold.persons[split]) == sorted(
            persons
        )
        assert fold.persons["train"]
        assert fold.persons["validation"]
    assert len({data.fingerprint, *(fold.fingerprint for fold in folds)}) == 4


def test_a_fold_on_disk_gives_the_batches_of_its_persons(data, persons, tmp_path):
    fold = stratified_folds(data, persons, 2, seed=0)[1]
    write_fold(tmp_path / "fold", fold)
    again = open_data(tmp_path / "fold")
    assert again.fingerprint == fold.fingerprint
    for split in SPLITS:
        assert _members(again, split) == {
            patient_id: persons[patient_id].n_slices for patient_id in fold.persons[split]
        }
    # One epoch of training holds each training slice once.
    n = again.n_slices["train"]
    order = train_batches(
        again,
        batch_size=n,
        micro_batches=1,
        first_step=0,
        fill="never",
        shuffle_buffer=n,
        seed=0,
    )
    _, _, label = next(order)
    counter = collections.Counter(data.labels[patient_id] for patient_id in label)
    expected = collections.Counter()
    for person in fold.persons["train"]:
        expected[persons[person].label] += persons[person].n_slices
    assert counter == expected


def test_a_fold_of_data_that_were_prepared_anew_is_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    data = open_data(tmp_path / "data")
    write_fold(tmp_path / "fold", stratified_folds(data, persons_of_records(data), 2, seed=0)[0])
    path = tmp_path / "data" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7}))
    with pytest.raises(InputError, match="was prepared anew since"):
        open_data(tmp_path / "fold")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: split["train"].append(split["test"][0]), "is in train and in test"),
        (lambda split: split["train"].append("nobody"), "'nobody', who is not in it"),
    ],
)
def test_a_fold_with_a_wrong_person_stops_everything(data, persons, tmp_path, change, message):
    write_fold(tmp_path, stratified_folds(data, persons, 2, seed=0)[0])
    path = tmp_path / "split.json"
    split = json.loads(path.read_text())
    change(split)
    path.write_text(json.dumps(split))
    with pytest.raises(InputError, match=message):
        open_data(tmp_path)


def test_more_folds_than_persons_of_a_label_are_refused(data, persons):
    with pytest.raises(InputError, match="holds 4 persons with the label"):
        stratified_folds(data, persons, 5, seed=0)


def _at_sites(persons, site_of):
    return {
        patient_id: dataclasses.replace(person, site=site_of(patient_id))
        for patient_id, person in persons.items()
    }


def test_each_site_is_tested_by_a_model_of_the_others(data, persons):
    moved = _at_sites(persons, lambda patient_id: "ABC"[sorted(persons).index(patient_id) % 3])
    folds = site_folds(data, moved, seed=0)
    assert list(folds) == ["A", "B", "C"]
    for site, fold in folds.items():
        assert {moved[person].site for person in fold.persons["test"]} == {site}
        assert site not in {moved[person].site for person in fold.persons["train"]}
        assert site not in {moved[person].site for person in fold.persons["validation"]}


@pytest.mark.parametrize(
    ("site_of", "message"),
    [
        (lambda person: "A", "all are of 'A'"),
        (lambda person: "A" if person.label == "healthy" else "", "has no site"),
        (
            lambda person: "A" if person.label == "healthy" else "B",
            "no person outside A has the label",
        ),
    ],
)
def test_sites_that_cannot_be_left_out_are_refused(data, persons, site_of, message):
    moved = _at_sites(persons, lambda patient_id: site_of(persons[patient_id]))
    with pytest.raises(InputError, match=message):
        site_folds(data, moved, seed=0)
