"""The synthetic cohort on disk, and refused flags."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from drenet_jax.errors import InputError
from drenet_jax.phantoms.phantom import LABELS, lesion_boxes, make_phantom
from drenet_jax.synthesize import synthesize

ROOT = Path(__file__).resolve().parents[1]
GOOD = {"persons": 3, "seed": 5, "size_px": 64, "site": "A", "workers": 1}


def run(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "drenet_jax.synthesize", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synthesize") / "cohort"
    synthesize(out, **GOOD)
    return out


def test_the_cohort_lists_every_person_with_a_series(cohort):
    persons = rows(cohort / "cohort.csv")

    assert list(persons[0]) == ["patient_id", "path", "label", "site"]
    assert sorted(person["label"] for person in persons) == sorted(LABELS)
    for person in persons:
        files = list((cohort / person["path"]).glob("*.dcm"))
        assert len(files) > 30
        assert {pydicom.dcmread(file).PatientID for file in files[:3]} == {person["patient_id"]}
        assert person["site"] == "A"
    assert len({person["patient_id"] for person in persons}) == 3
    assert len(list((cohort / "dicom").iterdir())) == 3


def test_lesion_boxes_are_those_of_the_masks_on_the_named_slices(cohort):
    lesions = rows(cohort / "lesions.csv")
    for i, person in enumerate(rows(cohort / "cohort.csv")):
        seed = np.random.SeedSequence(GOOD["seed"], spawn_key=(i,))
        phantom = make_phantom(person["label"], seed, 64, "A")
        mine = [row for row in lesions if row["patient_id"] == person["patient_id"]]
        columns = ("slice_index", "lesion", "y0", "x0", "y1", "x1")
        assert [tuple(int(row[c]) for c in columns) for row in mine] == lesion_boxes(phantom)
        for row in mine[::7]:
            ds = pydicom.dcmread(cohort / person["path"] / row["slice_name"])
            hu = ds.pixel_array.astype(int) + int(ds.RescaleIntercept)
            np.testing.assert_array_equal(hu, phantom.volume_hu[int(row["slice_index"])])


def test_the_number_of_workers_changes_no_byte(cohort, tmp_path):
    synthesize(tmp_path / "two", **GOOD | {"workers": 2})

    assert contents(tmp_path / "two") == contents(cohort)


def test_labels_are_even_and_not_in_the_order_of_the_ids(tmp_path):
    counts = synthesize(tmp_path / "nine", **GOOD | {"persons": 9})
    labels = [person["label"] for person in rows(tmp_path / "nine" / "cohort.csv")]

    assert counts == dict.fromkeys(LABELS, 3)
    assert labels != list(LABELS) * 3
    assert labels != sorted(labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"persons": 0}, "--persons=0 must be at least 1"),
        ({"seed": -1}, "--seed=-1 must be 0 or more"),
        ({"size_px": 32}, "--size=32 must be from 64 to 1024 pixels"),
        ({"size_px": 2048}, "--size=2048 must be from 64 to 1024 pixels"),
        ({"site": "C"}, "--site=C is not known; use one of A, B"),
    ],
)
def test_a_bad_value_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        synthesize(tmp_path / "out", **GOOD | change)

    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(cohort):
    before = contents(cohort)
    with pytest.raises(InputError, match="exists already"):
        synthesize(cohort, **GOOD)

    assert contents(cohort) == before


def test_the_command_ends_with_the_next_command(tmp_path):
    out = tmp_path / "a cohort"
    done = run(f"--out={out}", "--persons=2", "--size=64", "--workers=1")

    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"1 COVID-19, 1 bacterial: {out}/cohort.csv; next: "
        f"python -m drenet_jax.prepare --cohort='{out}/cohort.csv' --out=NEW_FOLDER\n"
    )
    assert "2/2" in done.stderr, "the progress bar"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--persons=3"], "--out"),
        (["--out=x", "--site=Z"], "--site=Z is not known"),
        (["--out=x", "--persons=many"], "--persons"),
    ],
)
def test_bad_flags_exit_with_2_and_one_sentence(flags, message):
    done = run(*flags)

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
