"""`cohort.csv`: what is read, and how each fault is told."""

from __future__ import annotations

import pytest

from drenet_jax.data.cohort import read_cohort
from drenet_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
        (tmp_path / name / "2.png").touch()
    return tmp_path


def _write(folder, text):
    path = folder / "cohort.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_persons_come_in_the_order_of_their_first_rows_with_all_their_paths(folder):
    path = _write(
        folder,
        "patient_id,path,label,split,site\n"
        "p2,b/1.png,ill,train,X\n"
        "p1,a,well,val,\n"
        "p2,b/2.png,ill,train,X\n",
    )
    cohort = read_cohort(path)
    assert cohort.labels == ("ill", "well")
    assert [person.patient_id for person in cohort.persons] == ["p2", "p1"]
    assert cohort.persons[0].paths == (folder / "b/1.png", folder / "b/2.png")
    assert [person.split for person in cohort.persons] == ["train", "validation"]
    assert [person.site for person in cohort.persons] == ["X", ""]
    assert cohort.has_split


def test_a_person_may_have_several_series_and_one_of_them_be_named(folder):
    path = _write(
        folder, "patient_id,path,label,series_uid\np1,a,well,\np1,b,well,\np2,c,ill,1.2.3\n"
    )
    first, second = read_cohort(path).persons
    assert first.paths == (folder / "a", folder / "b")
    assert (first.series_uid, second.series_uid) == ("", "1.2.3")


def test_labels_given_by_the_caller_set_the_order(folder):
    path = _write(folder, "patient_id,path,label\np1,a,well\np2,b,ill\n")
    cohort = read_cohort(path, ["ill", "well", "other"])
    assert cohort.labels == ("ill", "well", "other")
    assert not cohort.has_split


def test_a_spreadsheets_byte_order_mark_and_blanks_are_no_fault(folder):
    path = _write(folder, "\ufeffpatient_id, path, label\np1, a, well\np2,b ,ill\n")
    assert read_cohort(path).persons[0].paths == (folder / "a",)


HEADER = "patient_id,path,label\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'patient_id'"),
        ("patient_id,path\np1,a\n", "no column 'label'"),
        (HEADER, "lists no person"),
        (HEADER + "p1,a,well\np2,b,well\n", "two or more"),
        (HEADER + "p1,a,well\np2,nowhere,ill\n", "line 3: .*nowhere does not exist"),
        (HEADER + "p1,a,well\np2,b,cold\n", "line 3: unknown label 'cold'"),
        (HEADER + "p1,a,well\np1,b,ill\n", "line 3: person 'p1' has label 'ill' here"),
        (HEADER + "p1,a,well\np2,,ill\n", "line 3: path is empty"),
        (HEADER + "p1,a,well\np2,b\n", "line 3: the row has not as many fields"),
        (HEADER + "p1,a,well\np1,a,well\np2,b,ill\n", "line 3: a is in line 2 already"),
        (HEADER + "p1,a,well\np2,a,ill\n", "line 3: a is in line 2 already"),
        (
            "patient_id,path,label,series_uid\np1,a,well,1.2\np1,b,well,1.3\np2,c,ill,\n",
            "person 'p1' has series_uid '1.3' here and '1.2' in line 2",
        ),
        ("patient_id,path,label,split\np1,a,well,dev\n", "unknown split 'dev'"),
        (
            "patient_id,path,label,split\np1,a,well,train\np1,b,well,test\np2,c,ill,test\n",
            "person 'p1' has split 'test' here and 'train' in line 2",
        ),
        (
            "patient_id,path,label,split\np1,a,well,train\np2,b,ill,\n",
            "a split for some persons but not for 'p2'",
        ),
    ],
)
def test_each_fault_is_told_with_its_place(text, message, folder):
    labels = ["well", "ill"] if "cold" in text else []
    with pytest.raises(InputError, match=message):
        read_cohort(_write(folder, text), labels)


def test_a_missing_or_binary_file_is_told(folder):
    with pytest.raises(InputError, match=r"nothing\.csv cannot be read"):
        read_cohort(folder / "nothing.csv")
    (folder / "cohort.csv").write_bytes(b"\xff\xfe\x00,\x80")
    with pytest.raises(InputError, match="is not a CSV file"):
        read_cohort(folder / "cohort.csv")
