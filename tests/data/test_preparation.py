"""`prepare`: the records, and the summary of all that was left out."""

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

from drenet_jax.ct.fill import Fill, apply_fill
from drenet_jax.ct.prepared_series import filled
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.data import preparation
from drenet_jax.data.cohort_table import SPLITS, read_cohort
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError


def _records(folder, split):
    return list(tfds.as_numpy(open_data(folder).builder.as_dataset(split=split)))


def test_a_record_holds_the_crop_its_mask_its_fill_and_where_both_come_from(phantoms, prepared):
    data = open_data(prepared)
    cohort = {person.patient_id: person for person in read_cohort(phantoms / "cohort.csv").persons}
    record = _records(prepared, "test")[0]
    person = cohort[record["patient_id"].decode()]
    kept = {slice_.name: slice_ for slice_ in prepare_person(person.paths, data.ct).kept}
    picked = kept[record["slice_name"].decode()]
    copy_map = record["fill_map"][..., 0]
    np.testing.assert_array_equal(copy_map == 0, picked.lung_mask)
    np.testing.assert_array_equal(record["image"][..., 0], picked.image)
    np.testing.assert_array_equal(
        apply_fill(picked.image, Fill(copy_map, record["fill_shifts"])),
        filled(picked, data.ct, data.seed),
    )
    np.testing.assert_array_equal(record["source_box"], picked.file_box)
    np.testing.assert_array_equal(record["source_size"], picked.file_size)
    assert record["slice_index"] == picked.index
    assert data.labels[record["label"]] == person.label
    assert record["site"].decode() == "A"


def test_records_split_json_and_excluded_csv_account_for_every_picked_slice(phantoms, prepared):
    data = open_data(prepared)
    by_split = {split: _records(prepared, split) for split in SPLITS}
    for split, records in by_split.items():
        assert {record["patient_id"].decode() for record in records} == set(data.persons[split])
        assert len(records) == data.n_slices[split]
    with (prepared / "excluded.csv").open() as file:
        excluded = [(row["patient_id"], row["file"]) for row in csv.DictReader(file)]
    kept = [
        (record["patient_id"].decode(), record["slice_name"].decode())
        for records in by_split.values()
        for record in records
    ]
    assert not set(kept) & set(excluded)
    persons = read_cohort(phantoms / "cohort.csv").persons
    picked = [
        (person.patient_id, slice_.name)
        for person in persons
        for slice_ in prepare_person(person.paths, data.ct).picked
    ]
    assert sorted(picked) == sorted(kept + excluded)


def test_the_labels_of_every_split_are_alike(phantoms, prepared):
    label_of = {
        person.patient_id: person.label for person in read_cohort(phantoms / "cohort.csv").persons
    }
    persons = json.loads((prepared / "split.json").read_text())
    for split, count in zip(SPLITS, (2, 1, 1), strict=True):
        labels = [label_of[person] for person in persons[split]]
        assert {labels.count(label) for label in label_of.values()} == {count}


@pytest.mark.slow
def test_another_process_with_three_workers_writes_the_same_bytes(
    phantoms, prepared, tmp_path, command
):
    done = command(
        "prepare",
        f"--cohort={phantoms / 'cohort.csv'}",
        f"--out={tmp_path / 'out'}",
        "--fractions=50,25,25",
        "--config.image_size_px=96",
        "--workers=3",
    )
    assert done.returncode == 0, done.stderr
    assert "12/12 persons" in done.stderr
    assert "persons/min" in done.stderr
    assert_same_files(prepared, tmp_path / "out")


def assert_same_files(ours, theirs):
    names = sorted(p.relative_to(ours) for p in ours.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(theirs) for p in theirs.rglob("*") if p.is_file())
    for name in names:
        # TFDS writes its version and the folder into this one.
        if name.name != "dataset_info.json":
            assert filecmp.cmp(ours / name, theirs / name, shallow=False), name


def test_nothing_is_left_of_the_work(prepared):
    assert {path.name for path in prepared.iterdir()} == {
        "ct_slices",
        "dataset.json",
        "excluded.csv",
        "facts.csv",
        "lesions.csv",
        "notes.csv",
        "qc.html",
        "split.json",
    }


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


def _prepare(tmp_path, rows, settings, workers=1):
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
        workers=workers,
        progress=lambda summaries, n: summaries,
    )


def test_persons_who_cannot_be_used_are_left_out_and_reported(
    bad_persons, tmp_path, phantoms, ct_settings
):
    good = [
        f"{person.patient_id},{person.paths[0]},{person.label}"
        for person in read_cohort(phantoms / "cohort.csv").persons[:4]
    ]
    summary = _prepare(tmp_path, [*good, *bad_persons], ct_settings)
    assert set(summary.persons_left_out) == {"noise", "broken"}
    assert sum(len(persons) for persons in summary.persons.values()) == 4
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
    page = (tmp_path / "out" / "qc.html").read_text()
    assert page.count("left out: ") == 2
    assert "2 left out" in page
    # A path may hold a name; files are called by their names below it.
    for text in (page, (tmp_path / "out" / "excluded.csv").read_text()):
        assert str(tmp_path) not in text
    assert summary.excluded["no slice was kept"] == 1
    assert summary.excluded["no lungs found"] >= 1
    assert summary.excluded.total() == len(_rows(tmp_path / "out" / "excluded.csv"))


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_odd_about_a_series_is_noted(tmp_path, phantoms, ct_settings):
    persons = read_cohort(phantoms / "cohort.csv").persons[:4]
    slices = sorted(
        prepare_person(persons[0].paths, ct_settings).picked, key=lambda slice_: slice_.index
    )
    gap = tmp_path / "gap"
    shutil.copytree(persons[0].paths[0], gap)
    for slice_ in slices[5:8]:
        (gap / slice_.name).unlink()
    rows = [f"{person.patient_id},{person.paths[0]},{person.label}" for person in persons[1:]]
    summary = _prepare(tmp_path, [*rows, f"gap,gap,{persons[0].label}"], ct_settings)
    notes = _rows(tmp_path / "out" / "notes.csv")
    assert summary.n_notes == len(notes) > 0
    assert {note["patient_id"] for note in notes} == {"gap"}
    assert any("missing" in note["note"] for note in notes)
    assert notes[0]["note"] in (tmp_path / "out" / "qc.html").read_text()


def test_a_person_of_two_series_has_the_slices_of_both(tmp_path, phantoms, ct_settings):
    persons = read_cohort(phantoms / "cohort.csv").persons[:3]
    rows = [f"{person.patient_id},{person.paths[0]},{person.label}" for person in persons]
    shutil.copytree(persons[0].paths[0], tmp_path / "again")
    rows.append(f"{persons[0].patient_id},again,{persons[0].label}")
    summary = _prepare(tmp_path, rows, ct_settings)
    n_kept = len(prepare_person(persons[0].paths, ct_settings).kept)
    decodes = [
        record["patient_id"].decode()
        for split in SPLITS
        if summary.n_slices[split]
        for record in _records(tmp_path / "out", split)
    ]
    assert decodes.count(persons[0].patient_id) == 2 * n_kept


def test_a_cohort_of_which_nothing_is_left_is_refused(bad_persons, tmp_path, ct_settings):
    with pytest.raises(InputError, match="no slice of any person was kept"):
        _prepare(tmp_path, bad_persons, ct_settings)


@pytest.mark.parametrize("many_persons", [1000, 1])
def test_a_person_without_files_is_refused_before_all_work(
    many_persons, tmp_path, phantoms, ct_settings, monkeypatch
):
    monkeypatch.setattr(preparation, "_MANY_PERSONS", many_persons)
    (tmp_path / "empty").mkdir()
    good = read_cohort(phantoms / "cohort.csv").persons[0]
    rows = [f"{good.patient_id},{good.paths[0]},{good.label}", "nobody,empty,ill"]
    with pytest.raises(InputError, match="empty is an empty folder"):
        _prepare(tmp_path, rows, ct_settings, workers=2)
    assert not list((tmp_path / "out").rglob("*.pickle"))


def test_a_file_name_that_is_not_utf_8_is_no_fault(tmp_path, phantoms, ct_settings):
    rows = []
    for person in read_cohort(phantoms / "cohort.csv").persons[:4]:
        folder = tmp_path / person.patient_id
        folder.mkdir()
        for path in person.paths[0].iterdir():
            name = os.fsencode(path.name).replace(b"IM", b"caf\xe9")
            shutil.copy(path, os.path.join(os.fsencode(folder), name))
        rows.append(f"{person.patient_id},{person.patient_id},{person.label}")
    _prepare(tmp_path, rows, ct_settings)
    names = [record["slice_name"].decode() for record in _records(tmp_path / "out", "train")]
    assert names
    assert all(name.startswith("caf\\xe9_") for name in names)
