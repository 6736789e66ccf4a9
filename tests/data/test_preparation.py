"""`prepare`: the records, and the account of all that was left out."""

from __future__ import annotations

import csv
import filecmp
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.data.cohort import SPLITS, read_cohort
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.records import open_data
from drenet_jax.errors import InputError


def _records(folder, split):
    return list(tfds.as_numpy(open_data(folder).builder.as_dataset(split=split)))


def test_a_record_holds_the_filled_crop_the_mask_and_where_both_come_from(phantoms, prepared):
    data = open_data(prepared)
    cohort = {one.patient_id: one for one in read_cohort(phantoms / "cohort.csv").persons}
    record = _records(prepared, "test")[0]
    person = cohort[record["patient_id"].decode()]
    kept = {one.name: one for one in prepare_person(person.paths, data.ct).kept}
    picked = kept[record["slice_name"].decode()]
    mask = record["lung_mask"][..., 0] > 0
    np.testing.assert_array_equal(mask, picked.lung_mask)
    np.testing.assert_array_equal(np.where(mask, record["image"][..., 0], 0), picked.masked)
    assert np.count_nonzero(record["image"][..., 0][~mask]) > 0
    np.testing.assert_array_equal(record["source_box"], picked.source_box)
    np.testing.assert_array_equal(record["source_size"], picked.source.shape)
    assert record["slice_index"] == picked.index
    assert data.labels[record["label"]] == person.label
    assert record["site"].decode() == "A"


def test_records_split_json_and_excluded_csv_account_for_every_picked_slice(phantoms, prepared):
    data = open_data(prepared)
    found = {split: _records(prepared, split) for split in SPLITS}
    for split, records in found.items():
        assert {one["patient_id"].decode() for one in records} == set(data.persons[split])
        assert len(records) == data.n_slices[split]
    with (prepared / "excluded.csv").open() as file:
        excluded = [(row["patient_id"], row["file"]) for row in csv.DictReader(file)]
    kept = [
        (one["patient_id"].decode(), one["slice_name"].decode())
        for records in found.values()
        for one in records
    ]
    assert not set(kept) & set(excluded)
    persons = read_cohort(phantoms / "cohort.csv").persons
    picked = [
        (person.patient_id, one.name)
        for person in persons
        for one in prepare_person(person.paths, data.ct).picked
    ]
    assert sorted(picked) == sorted(kept + excluded)


def test_the_labels_of_every_split_are_alike(phantoms, prepared):
    label_of = {one.patient_id: one.label for one in read_cohort(phantoms / "cohort.csv").persons}
    persons = json.loads((prepared / "split.json").read_text())
    for split, count in zip(SPLITS, (2, 1, 1), strict=True):
        labels = [label_of[one] for one in persons[split]]
        assert {labels.count(label) for label in label_of.values()} == {count}


def test_two_workers_write_the_same_bytes_as_one(phantoms, prepared, tmp_path):
    data = open_data(prepared)
    prepare_cohort(
        read_cohort(phantoms / "cohort.csv"),
        tmp_path,
        settings=data.ct,
        seed=0,
        fractions=(50, 25, 25),
        workers=2,
        progress=lambda summaries, n: summaries,
    )
    ours = sorted(p.relative_to(prepared) for p in prepared.rglob("*") if p.is_file())
    theirs = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert ours == theirs
    for name in ours:
        # TFDS writes its version and the folder into this one.
        if name.name != "dataset_info.json":
            assert filecmp.cmp(prepared / name, tmp_path / name, shallow=False), name


@pytest.fixture
def bad_persons(tmp_path):
    """Rows of a cohort: noise without lungs, and a folder without a slice that can be read."""
    for name in ("noise", "broken"):
        (tmp_path / name).mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8)
    cv2.imwrite(str(tmp_path / "noise" / "1.png"), noise)
    (tmp_path / "broken" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"junk" * 50)
    (tmp_path / "broken" / "notes.txt").write_text("seen on Monday")
    return ["noise,noise,healthy", "broken,broken,bacterial"]


def _prepare(tmp_path, rows, settings):
    cohort = tmp_path / "cohort.csv"
    cohort.write_text("\n".join(["patient_id,path,label", *rows]) + "\n")
    out = tmp_path / "out"
    out.mkdir()
    return prepare_cohort(
        read_cohort(cohort),
        out,
        settings=settings,
        seed=0,
        fractions=(60, 10, 30),
        workers=1,
        progress=lambda summaries, n: summaries,
    )


def test_persons_who_cannot_be_used_are_left_out_and_told(
    bad_persons, tmp_path, phantoms, ct_settings
):
    good = [
        f"{one.patient_id},{one.paths[0]},{one.label}"
        for one in read_cohort(phantoms / "cohort.csv").persons[:4]
    ]
    account = _prepare(tmp_path, [*good, *bad_persons], ct_settings)
    assert set(account.persons_left_out) == {"noise", "broken"}
    assert sum(len(persons) for persons in account.persons.values()) == 4
    with (tmp_path / "out" / "excluded.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["patient_id"] in ("noise", "broken")]
    assert [(row["patient_id"], row["file"]) for row in rows] == [
        ("noise", "1.png"),
        ("noise", ""),
        ("broken", "1.dcm"),
        ("broken", "notes.txt"),
        ("broken", ""),
    ]
    assert "no lungs found" in rows[0]["why"]
    assert (tmp_path / "out" / "qc.html").read_text().count("Left out: ") == 2


def test_a_cohort_of_which_nothing_is_left_is_refused(bad_persons, tmp_path, ct_settings):
    with pytest.raises(InputError, match="no slice of any person was kept"):
        _prepare(tmp_path, bad_persons, ct_settings)


def test_a_file_name_that_is_not_utf_8_is_no_fault(tmp_path, phantoms, ct_settings):
    rows = []
    for one in read_cohort(phantoms / "cohort.csv").persons[:4]:
        folder = tmp_path / one.patient_id
        folder.mkdir()
        for path in one.paths[0].iterdir():
            name = os.fsencode(path.name).replace(b"IM", b"caf\xe9")
            shutil.copy(path, os.path.join(os.fsencode(folder), name))
        rows.append(f"{one.patient_id},{one.patient_id},{one.label}")
    _prepare(tmp_path, rows, ct_settings)
    names = [one["slice_name"].decode() for one in _records(tmp_path / "out", "train")]
    assert names
    assert all(name.startswith("caf\\xe9_") for name in names)
