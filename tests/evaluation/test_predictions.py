"""Tests of slice and person predictions and their tables."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drenet_jax.data.identities import clean, person_key, value_key
from drenet_jax.errors import InputError
from drenet_jax.evaluation.aggregates import AGGREGATES
from drenet_jax.evaluation.predictions import (
    PersonPredictions,
    SlicePredictions,
    person_predictions,
)

LABELS = ("COVID-19", "bacterial", "healthy")


def slices_of(rows, labels=LABELS) -> SlicePredictions:
    """Predictions from (patient_id, slice_name, slice_index, site, label, probabilities) rows."""
    columns = list(zip(*rows, strict=True)) or [()] * 6
    return SlicePredictions(
        labels=labels,
        patient_id=np.array(columns[0], np.str_),
        slice_name=np.array(columns[1], np.str_),
        slice_index=np.array(columns[2], np.int64),
        site=np.array(columns[3], np.str_),
        label=np.array(columns[4], np.int64),
        probabilities=np.array(columns[5], np.float64).reshape(len(rows), len(labels)),
    )


ROWS = [
    ("007", "b.dcm", 4, "A", 2, (0.1, 0.2, 0.7)),
    ("Smith, J", 'c "x".dcm', 0, "A", 0, (0.9, 0.05, 0.05)),
    ("007", "a.dcm", 9, "A", 2, (0.3, 0.4, 0.3)),
]


def assert_equal(table: SlicePredictions, other: SlicePredictions) -> None:
    assert table.labels == other.labels
    for field in dataclasses.fields(table):
        np.testing.assert_array_equal(getattr(table, field.name), getattr(other, field.name))


def test_a_person_is_the_mean_of_the_slices():
    persons = person_predictions(slices_of(ROWS))
    assert persons.patient_id.tolist() == ["007", "Smith, J"]
    assert persons.n_slices.tolist() == [2, 1]
    assert persons.label.tolist() == [2, 0]
    np.testing.assert_allclose(persons.probabilities, [[0.2, 0.3, 0.5], [0.9, 0.05, 0.05]])


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_each_person_is_aggregated_of_the_own_slices(aggregate):
    random = np.random.default_rng(0)
    names = random.choice(["b", "a", "c", "10", "9"], 40)
    rows = [(name, "x", i, "", 0, random.dirichlet([1, 1, 1])) for i, name in enumerate(names)]
    slices = slices_of(rows)
    persons = person_predictions(slices, aggregate, 1)
    for name, n, p in zip(persons.patient_id, persons.n_slices, persons.probabilities, strict=True):
        own = slices.probabilities[slices.patient_id == name]
        assert n == len(own)
        np.testing.assert_allclose(p, AGGREGATES[aggregate](own, 1))


def test_chosen_rows_keep_all_their_columns():
    chosen = slices_of(ROWS).of(np.array([True, False, True]))
    assert_equal(chosen, slices_of([ROWS[0], ROWS[2]]))
    assert len(chosen.of(np.zeros(2, bool))) == 0


def test_persons_come_in_the_order_of_their_first_slice():
    rows = [(name, "a", 0, "", 0, (1, 0, 0)) for name in ("z", "a", "z", "m", "a")]
    assert person_predictions(slices_of(rows)).patient_id.tolist() == ["z", "a", "m"]


def test_the_sites_of_a_person_are_joined():
    rows = [("p", "a", i, site, 0, (1, 0, 0)) for i, site in enumerate(["B", "A", "B"])]
    assert person_predictions(slices_of(rows)).site.tolist() == ["B + A"]


def test_no_slices_give_no_persons():
    persons = person_predictions(slices_of([]))
    assert len(persons) == 0
    assert persons.probabilities.shape == (0, 3)


def test_a_person_with_two_labels_is_an_error_that_names_the_person():
    rows = [*ROWS, ("Smith, J", "d.dcm", 1, "A", 2, (0.9, 0.05, 0.05))]
    with pytest.raises(InputError, match=r"'Smith, J'.*COVID-19 and healthy"):
        person_predictions(slices_of(rows))


def test_slices_csv_has_the_documented_columns(tmp_path):
    slices_of(ROWS).to_csv(tmp_path / "slices.csv")
    with open(tmp_path / "slices.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:5] == ["patient_id", "slice_name", "slice_index", "site", "label"]
    assert rows[0][5:] == ["p_COVID-19", "p_bacterial", "p_healthy"]
    assert rows[1] == ["007", "b.dcm", "4", "A", "healthy", "0.1", "0.2", "0.7"]


def test_persons_csv_has_the_documented_columns(tmp_path):
    person_predictions(slices_of(ROWS)).to_csv(tmp_path / "persons.csv")
    with open(tmp_path / "persons.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:4] == ["patient_id", "label", "n_slices", "site"]
    assert rows[0]["patient_id"] == "007"
    assert rows[1]["label"] == "COVID-19"
    assert float(rows[1]["p_COVID-19"]) == 0.9


# Ids with commas, quotes and leading zeros, as `prepare` stores them; names of files hold more.
names = st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"), whitelist_characters=',"'),
    max_size=8,
).map(clean)
texts = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), whitelist_characters=',"\n'), max_size=8
)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(names, texts, names, st.floats(0, 1)),
        max_size=6,
        unique_by=(lambda row: person_key(row[0]), lambda row: value_key(row[2])),
    )
)
def test_a_table_comes_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "slices.csv"
    slices = slices_of(
        [
            (person, name, i, site, i % 2, (p, 1 - p))
            for i, (person, name, site, p) in enumerate(rows)
        ],
        labels=("a,b", 'c"d'),
    )
    slices.to_csv(path)
    assert_equal(slices, SlicePredictions.from_csv(path))


def test_a_file_name_that_is_not_utf8_can_be_written(tmp_path):
    slices = slices_of([("p", "caf\udce9.dcm", 0, "", 0, (1, 0, 0))])
    slices.to_csv(tmp_path / "slices.csv")
    read = SlicePredictions.from_csv(tmp_path / "slices.csv")
    assert read.slice_name[0] == r"caf\udce9.dcm"


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "slices.csv"
    slices_of(ROWS).to_csv(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert_equal(slices_of(ROWS), SlicePredictions.from_csv(path))


HEADER = "patient_id,slice_name,slice_index,site,label,p_a,p_b\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'patient_id'"),
        ("patient_id,label\n", "no column 'slice_name'"),
        ("patient_id,slice_name,slice_index,site,label,p_a\n", "two or more labels"),
        (HEADER + "x,y,0,,c,0.5,0.5\n", "line 2: the label 'c'.*the labels there are a, b"),
        (HEADER + "x,y,one,,a,0.5,0.5\n", "line 2: .*'one'"),
        (HEADER + "x,y,0,,a,nan,0.5\n", "line 2: a probability is not finite"),
        (HEADER + "x,y,0,,a,0.5\n", "line 2: the row has not as many fields"),
        (HEADER + "x,y,0,,a,0.5,0.5,0.5\n", "line 2: the row has not as many fields"),
        (HEADER.replace("site", "label"), "has the column 'label' twice"),
        (HEADER.replace("p_b", "p_a"), "has the column 'p_a' twice"),
        (HEADER.replace("p_b", "p_A"), "column p_A: the label 'A' and 'a' .column p_a. differ"),
        (
            HEADER + "P1,y,0,,a,0.5,0.5\np1,z,0,,a,0.5,0.5\n",
            r"line 3: the patient_id 'p1' and 'P1' \(line 2\) differ only",
        ),
        (
            HEADER + "x,y,0,A,a,0.5,0.5\nz,y,0,a,b,0.5,0.5\n",
            r"line 3: the site 'a' and 'A' \(line 2\) differ only",
        ),
        (HEADER + "x\0,y,0,,a,0.5,0.5\n", r"line 2: patient_id 'x\\x00' holds a control"),
        ("\udcff", "not a CSV file in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used_is_reported_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "slices.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as error:
        SlicePredictions.from_csv(path)
    assert str(path) in str(error.value)


def test_names_in_a_table_are_read_as_prepare_stores_them(tmp_path):
    rows = "Zu\u0308rich\u00a0,a,0,X\u200b,a\u00a0,0.5,0.5\nZürich,b,1,X,a,0.5,0.5\n"
    (tmp_path / "slices.csv").write_text(HEADER + rows, encoding="utf-8")
    slices = SlicePredictions.from_csv(tmp_path / "slices.csv")
    assert slices.patient_id.tolist() == ["Zürich", "Zürich"]
    assert slices.site.tolist() == ["X", "X"]
    assert len(person_predictions(slices)) == 1


def test_a_missing_table_is_reported(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv cannot be read"):
        SlicePredictions.from_csv(tmp_path / "none.csv")


def test_columns_of_unequal_length_are_our_own_mistake():
    with pytest.raises(AssertionError, match="site"):
        PersonPredictions(
            labels=("a", "b"),
            patient_id=np.array(["p"]),
            site=np.array(["A", "B"]),
            label=np.array([0]),
            n_slices=np.array([1]),
            probabilities=np.array([[0.5, 0.5]]),
        )
