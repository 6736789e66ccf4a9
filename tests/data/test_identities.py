"""Names in one spelling, and names that are too alike to be two."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drenet_jax.data.identities import (
    clean,
    control_character,
    person_key,
    person_variants,
    shown,
    value_key,
    value_variants,
)
from drenet_jax.errors import InputError

texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=10)
INVISIBLE = ["\u200b", "\ufeff", "\u2060", "\u00ad", "\u200e", "\u202a", "\ufe0f"]
BLANKS = [" ", "\u00a0", "\u2009", "\u202f", "\u3000", "\t"]
DASHES = ["\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2212", "\ufe58", "\uff0d"]


@given(texts)
def test_a_clean_name_is_composed_has_no_blank_ends_and_stays_as_it_is(text):
    once = clean(text)
    assert clean(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip()
    assert not set(once) & set(INVISIBLE)


@given(texts, st.sampled_from(["NFC", "NFD"]))
def test_both_forms_of_unicode_are_one_name(text, form):
    assert clean(unicodedata.normalize(form, text)) == clean(text)


@given(texts, st.sampled_from(INVISIBLE + BLANKS), st.sampled_from(INVISIBLE + BLANKS))
def test_what_nobody_sees_at_the_ends_is_no_part_of_a_name(text, before, after):
    name = clean(text)
    assert clean(before + name + after) == name


@given(st.text("abcÄöж東0123456789", min_size=2, max_size=8), st.data())
def test_an_invisible_character_within_a_name_is_no_part_of_it(text, data):
    place = data.draw(st.integers(0, len(text)))
    assert clean(text[:place] + data.draw(st.sampled_from(INVISIBLE)) + text[place:]) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zu\u0308rich", "Zürich"),
        ("A\u00a0B", "A B"),
        ("COVID-19\u00a0", "COVID-19"),
        ("\u200bill", "ill"),
        # The non-joiner belongs to the Persian word and is kept within it, not at its end.
        ("می\u200cشود", "می\u200cشود"),
        ("می\u200c", "می"),
        ("P 1", "P 1"),
        ("007", "007"),
    ],
)
def test_the_spelling_that_is_kept(text, expected):
    assert clean(text) == expected


SAME_VALUES = [
    ("COVID-19", "covid-19"),
    ("COVID-19", "Covid 19"),
    ("COVID-19", "COVID19"),
    ("non-COVID", "non_covid"),
    ("0", "0.0"),
    ("0", "-0"),
    ("1", "1,0"),
    ("1", "01"),
    ("0.5", ".50"),
    ("Straße", "STRASSE"),
    ("CT-0", "\u0421\u0422-0"),  # Cyrillic letters
    ("\uff23\uff34-0", "CT-0"),  # full width
    ("\u0663", "3"),
    ("St. Mary's", "St. Mary\u2019s"),
    ("\u0130stanbul", "istanbul"),
    ("A  B", "A B"),
    *((f"COVID{dash}19", "COVID-19") for dash in DASHES),
]
OTHER_VALUES = [
    ("COVID-19", "COVID"),
    ("covid+", "covid-"),
    ("1", "-1"),
    ("1", "10"),
    ("1-2", "12"),
    ("CT-1", "CT-11"),
    ("stage 1.1", "stage 11"),
    ("healthy", "unhealthy"),
    ("Zürich", "Zurich"),
]


@pytest.mark.parametrize(("name", "other"), SAME_VALUES)
def test_labels_that_differ_in_spelling_only_have_one_key(name, other):
    assert clean(name) != clean(other)
    assert value_key(clean(name)) == value_key(clean(other))
    twins = value_variants("label")
    twins.add(clean(name), "cohort.csv", "line 2")
    with pytest.raises(InputError) as caught:
        twins.add(clean(other), "cohort.csv", "line 7")
    for part in ("cohort.csv, line 7", "line 2", shown(clean(name)), shown(clean(other))):
        assert part in str(caught.value)


@pytest.mark.parametrize(("name", "other"), OTHER_VALUES)
def test_labels_that_mean_something_else_have_two(name, other):
    twins = value_variants("label")
    for text in (name, other, name):
        twins.add(text, "cohort.csv", "line 2")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("P01", "p01"),
        ("P-1", "P\u20111"),
        ("P 1", "P  1"),
        ("1", "1.0"),
        ("1", "01"),
        ("007", "7"),
        ("0", "00"),
        ("\u0420 1", "P 1"),
        ("Müller", "MÜLLER"),
    ],
)
def test_patient_ids_that_a_spreadsheet_may_have_changed_are_refused(name, other):
    twins = person_variants()
    twins.add(name, "cohort.csv", "line 2")
    with pytest.raises(InputError, match="one person, or give one of them another id"):
        twins.add(other, "cohort.csv", "line 3")


@pytest.mark.parametrize(
    "ids",
    [
        ("P1", "P01", "P001", "P10"),
        ("1", "2", "10", "100", "-1"),
        ("12.1", "12.10", "12.01"),
        ("P-1", "P1", "P_1", "P 1"),
        ("1-2", "12", "1/2"),
        ("1e5", "100000"),
        ("1.2.840.10008", "1.2.84.010008"),
        ("patient a", "patient b"),
    ],
)
def test_the_ids_of_a_usual_cohort_are_persons_of_their_own(ids):
    twins = person_variants()
    for line, id_ in enumerate(ids * 2):
        twins.add(id_, "cohort.csv", f"line {line}")
    assert len({person_key(patient_id) for patient_id in ids}) == len(ids)


@pytest.mark.parametrize("number", [0, 9, 13, 27, 0x7F, 0x85, 0x2028])
def test_a_control_character_is_named(number):
    assert control_character(f"a{chr(number)}b") == f"U+{number:04X}"


def test_letters_of_all_scripts_are_no_control_characters():
    assert control_character("Zürich 東京 می\u200cشود") == ""


def test_a_message_shows_what_the_eye_does_not_see():
    assert shown("COVID\u201119") == "'COVID\u201119' (with U+2011 NON-BREAKING HYPHEN)"
    assert "CYRILLIC CAPITAL LETTER ES" in shown("\u0421T")
    assert shown("Zürich") == "'Zürich'"
