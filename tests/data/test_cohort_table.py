"""`cohort.csv`: what is read, and how each fault is reported."""

from __future__ import annotations

import csv
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.identities import clean, control_character, person_key, shown
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
def test_each_fault_is_reported_with_its_place(text, message, folder):
    labels = ["well", "ill"] if "cold" in text else []
    with pytest.raises(InputError, match=message):
        read_cohort(_write(folder, text), labels)


def test_a_missing_or_binary_file_is_reported(folder):
    with pytest.raises(InputError, match=r"nothing\.csv cannot be read"):
        read_cohort(folder / "nothing.csv")
    (folder / "cohort.csv").write_bytes(b"\xff\xfe\x00,\x80")
    with pytest.raises(InputError, match="is not a CSV file"):
        read_cohort(folder / "cohort.csv")


# One folder in other words


@pytest.fixture
def linked(folder):
    """`folder` with links to what is in it, and a picture under a second name of its own."""
    (folder / "link").symlink_to("a")
    (folder / "link.png").symlink_to("a/1.png")
    (folder / "up").symlink_to("..")
    os.link(folder / "a" / "1.png", folder / "hard.png")
    return folder


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a", "./a"),
        ("a", "a/"),
        ("a", "a/."),
        ("a", "a/../a"),
        ("a", "b/../a"),
        ("a", "link"),
        ("link", "a"),
        ("a", "link/../a"),
        ("a", "up/{name}/a"),
        ("a", "{folder}/a"),
        ("{folder}/a", "{folder}//a/"),
        ("a/1.png", "link.png"),
        ("a/1.png", "link/1.png"),
        ("a/1.png", "hard.png"),
        ("hard.png", "link.png"),
        ("a/1.png", "up/{name}/a/1.png"),
    ],
)
@pytest.mark.parametrize("second_person", ["p1", "p2"])
def test_a_path_in_another_spelling_or_by_a_link_is_the_same(linked, first, second, second_person):
    first, second = (path.format(folder=linked, name=linked.name) for path in (first, second))
    path = _write(linked, f"{HEADER}p1,{first},well\n{second_person},{second},well\np3,c,ill\n")
    with pytest.raises(InputError) as caught:
        read_cohort(path)
    assert f"line 3: {second} is in line 2 already" in str(caught.value)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [("a", "a/1.png"), ("a", "link/1.png"), ("link", "a/2.png"), (".", "b"), ("up", "c/1.png")],
)
@pytest.mark.parametrize("outer_is_first", [True, False])
def test_a_path_within_another_persons_folder_is_refused(linked, outer, inner, outer_is_first):
    rows = [f"p1,{outer},well", f"p2,{inner},ill"]
    lines = rows if outer_is_first else rows[::-1]
    path = _write(linked, HEADER + "\n".join(lines) + "\n")
    with pytest.raises(InputError) as caught:
        read_cohort(path)
    inner_line, outer_line = (3, 2) if outer_is_first else (2, 3)
    assert (
        f"line {inner_line}: {inner} of person 'p2' lies within {outer} of person 'p1' "
        f"(line {outer_line})" in str(caught.value)
    )


def test_folders_beside_each_other_and_within_the_persons_own_are_no_fault(folder):
    (folder / "a" / "more").mkdir()
    (folder / "ab").mkdir()
    path = _write(folder, f"{HEADER}p1,a,well\np1,a/more,well\np2,ab,ill\np3,b/1.png,ill\n")
    cohort = read_cohort(path)
    assert [len(person.paths) for person in cohort.persons] == [2, 1, 1]


def test_two_pictures_of_equal_size_are_not_one(folder):
    path = _write(folder, f"{HEADER}p1,a/1.png,well\np2,a/2.png,ill\n")
    assert len(read_cohort(path).persons) == 2


# Names


def test_unicodes_two_forms_of_a_name_are_one_person(folder):
    path = _write(folder, f"{HEADER}Zu\u0308rich 1,a,well\nZürich 1,b,well\np2,c,ill\n")
    first, second = read_cohort(path).persons
    assert first.patient_id == "Zürich 1"
    assert first.paths == (folder / "a", folder / "b")
    assert second.patient_id == "p2"


def test_invisible_characters_and_blanks_at_the_ends_are_no_part_of_a_value(folder):
    path = _write(
        folder,
        "patient_id,path,label,split,site\n"
        "p1\u200b,a,well\u00a0,train\u00a0,X\u2009\n"
        "\ufeffp1,b,\u200bwell,\u200bTRAIN,X\np2,c,ill,test,X\n",
    )
    first, second = read_cohort(path).persons
    assert (first.patient_id, first.label, first.split, first.site) == ("p1", "well", "train", "X")
    assert len(first.paths) == 2
    assert second.label == "ill"


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [
        ("label", "COVID-19", "Covid-19"),
        ("label", "COVID-19", "COVID\u201119"),
        ("label", "COVID-19", "COVID 19"),
        ("label", "COVID-19", "\u0421OVID-19"),
        ("label", "0", "0.0"),
        ("label", "1", "01"),
        ("site", "Hospital A", "hospital a"),
        ("site", "Hospital A", "Hospital\u00a0\u00a0A"),
        ("site", "1", "1.0"),
        ("patient_id", "P01", "p01"),
        ("patient_id", "P-1", "P\u20131"),
        ("patient_id", "7", "007"),
        ("patient_id", "7", "7.0"),
    ],
)
def test_values_that_differ_in_spelling_only_are_refused_by_naming_both(
    folder, column, first, second
):
    rows = [
        {"patient_id": "x1", "path": "a", "label": "l1", "site": "A"},
        {"patient_id": "x2", "path": "b", "label": "l2", "site": "B"},
        {"patient_id": "x3", "path": "c", "label": "l1", "site": "C"},
    ]
    rows[0][column], rows[2][column] = first, second
    text = "patient_id,path,label,site\n" + "".join(f"{','.join(r.values())}\n" for r in rows)
    with pytest.raises(InputError) as caught:
        read_cohort(_write(folder, text))
    for part in (f"line 4: the {column}", "(line 2)", shown(clean(first)), shown(clean(second))):
        assert part in str(caught.value)


def test_labels_of_the_flag_are_read_like_those_of_the_file(folder):
    path = _write(folder, f"{HEADER}p1,a,well\np2,b,ill\n")
    assert read_cohort(path, ["ill\u00a0", "well"]).labels == ("ill", "well")
    for labels, message in (
        (["ill", "Well"], r"line 2: the label 'well' and 'Well' \(the list\) differ only"),
        (["ill", "well", "ILL"], "'ILL' and 'ill'"),
        (["ill", "well", "ill"], "each named once"),
        (["ill", "well", ""], "an empty label"),
        (["ill", "we\0ll"], r"control character \(U\+0000\)"),
    ):
        with pytest.raises(InputError, match=message):
            read_cohort(path, labels)


@pytest.mark.parametrize("character", ["\0", "\t", "\n", "\x1b", "\x7f", "\u2028"])
@pytest.mark.parametrize("column", ["patient_id", "label", "site", "series_uid"])
def test_a_control_character_in_a_value_is_refused(folder, column, character):
    row = {"patient_id": "p1", "path": "a", "label": "well", "site": "A", "series_uid": "1"}
    row[column] = f"x{character}y"
    text = ",".join(row) + "\n" + ",".join(f'"{value}"' for value in row.values()) + "\n"
    with pytest.raises(InputError, match=rf"{column} .*U\+{ord(character):04X}"):
        read_cohort(_write(folder, text + "p2,b,ill,,\n"))


def test_a_path_that_no_file_can_have_is_refused_by_the_command(folder, command):
    path = _write(folder, f"{HEADER}p1,a\0b,well\np2,b,ill\n")
    done = command("prepare", f"--cohort={path}", f"--out={folder / 'out'}")
    assert done.returncode == 2
    assert "line 2: " in done.stderr
    assert r"a\x00b' does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_spelled_in_the_disks_form_of_unicode_is_found(folder):
    (folder / "Zu\u0308rich").mkdir()
    path = _write(folder, f"{HEADER}p1,Zürich,well\np2,b\u200b,ill\n")
    first, second = read_cohort(path).persons
    assert first.paths == (folder / "Zu\u0308rich",)
    assert second.paths == (folder / "b",)


# Columns


def test_columns_are_found_in_any_case_and_others_are_reported(folder):
    path = _write(
        folder,
        "Patient ID,PATH,Label,Split,remarks,,\np1,a,well,test,x,,\np2,b,ill,train,y,,\n",
    )
    cohort = read_cohort(path)
    assert [person.split for person in cohort.persons] == ["test", "train"]
    assert cohort.unused_columns == ("remarks",)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("patient_id,path,label,label", ("'label'", "'label'")),
        ("patient_id,path,label,Label", ("'label'", "'Label'")),
        ("patient_id,path,label,patient id", ("'patient_id'", "'patient id'")),
        ("patient_id,path,label,label\u200b", ("'label'", "'label'")),
    ],
)
def test_a_column_that_is_there_twice_is_refused(folder, header, names):
    with pytest.raises(InputError) as caught:
        read_cohort(_write(folder, f"{header}\np1,a,well,ill\np2,b,ill,well\n"))
    assert "twice, as {} and {}".format(*names) in str(caught.value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(min_size=1, max_size=5), min_size=3, max_size=3))
def test_any_ids_are_read_clean_or_refused(folder, ids):
    with (folder / "cohort.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient_id", "path", "label"])
        writer.writerows([id_, "abc"[i], ("well", "ill", "ill")[i]] for i, id_ in enumerate(ids))
    try:
        persons = read_cohort(folder / "cohort.csv").persons
    except InputError:
        cleaned = [clean(id_) for id_ in ids]
        assert (
            "" in cleaned
            or any(map(control_character, cleaned))
            or len({person_key(patient_id) for patient_id in cleaned}) < 3
        )
    else:
        assert [person.patient_id for person in persons] == list(dict.fromkeys(map(clean, ids)))
