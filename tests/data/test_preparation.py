"""`prepare`: the records, and the account of all that was left out."""

from __future__ import annotations

import csv
import filecmp
import json

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


def test_persons_who_cannot_be_used_are_left_out_and_told(tmp_path, ct_settings):
    rng = np.random.default_rng(0)
    for name in ("noise", "broken"):
        (tmp_path / name).mkdir()
    cv2.imwrite(str(tmp_path / "noise" / "1.png"), rng.integers(0, 255, (200, 200), np.uint8))
    (tmp_path / "broken" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"junk" * 50)
    cohort = tmp_path / "cohort.csv"
    cohort.write_text("patient_id,path,label\nn,noise,ill\nb,broken,well\n")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="no slice of any person was kept"):
        prepare_cohort(
            read_cohort(cohort),
            out,
            settings=ct_settings,
            seed=0,
            fractions=(60, 10, 30),
            workers=1,
            progress=lambda summaries, n: summaries,
        )
