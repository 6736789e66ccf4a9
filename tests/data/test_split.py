"""The split by person: complete, disjoint, stratified, the same for the same seed."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.split import check_split, fold_persons, split_persons
from drenet_jax.errors import InputError


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    fractions=st.tuples(st.integers(1, 100), st.integers(0, 100), st.integers(0, 100)),
    seed=st.integers(0, 2**32),
)
def test_every_person_is_in_one_split_and_labels_are_shared_out_alike(counts, fractions, seed):
    labels = {
        f"p{label}-{i}": str(label) for label, count in enumerate(counts) for i in range(count)
    }
    split = split_persons(labels, fractions, seed)
    members = [person for name in SPLITS for person in split[name]]
    assert sorted(members) == sorted(labels)
    for name, fraction in zip(SPLITS, fractions, strict=True):
        share = fraction / sum(fractions)
        by_label = collections.Counter(labels[person] for person in split[name])
        for label, count in enumerate(counts):
            # Whole persons: what a label's share does not settle, and training's first person.
            assert abs(by_label[str(label)] - share * count) < len(SPLITS)
        if not fraction:
            assert not split[name]
    assert {labels[person] for person in split["train"]} == set(labels.values())


def test_the_paper_s_cohort_is_split_60_10_30():
    counts = {"COVID-19": 88, "bacterial": 100, "healthy": 86}
    labels = {f"{label}{i}": label for label, n in counts.items() for i in range(n)}
    split = split_persons(labels, (60, 10, 30), 0)
    assert [len(split[name]) for name in SPLITS] == [165, 27, 82]


def test_the_seed_decides_and_the_order_of_the_cohort_does_not():
    labels = {f"p{i}": str(i % 3) for i in range(60)}
    split = split_persons(labels, (60, 10, 30), 1)
    assert split == split_persons(dict(reversed(labels.items())), (60, 10, 30), 1)
    assert split != split_persons(labels, (60, 10, 30), 2)


def test_a_person_in_two_splits_is_named():
    persons = {"train": ["a", "b"], "validation": [], "test": ["b"]}
    with pytest.raises(InputError, match="'b' is in train and in test"):
        check_split(persons, "split.json")


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    n_folds=st.integers(2, 7),
    seed=st.integers(0, 2**32),
)
def test_every_person_is_in_one_fold_and_folds_are_alike(counts, n_folds, seed):
    labels = {
        f"p{label}-{i}": str(label) for label, count in enumerate(counts) for i in range(count)
    }
    folds = fold_persons(labels, n_folds, seed)
    assert sorted(person for fold in folds for person in fold) == sorted(labels)
    for part in (*(str(label) for label in range(len(counts))), None):
        sizes = [sum(part in (None, labels[person]) for person in fold) for fold in folds]
        assert max(sizes) - min(sizes) <= 1
    assert folds == fold_persons(dict(reversed(labels.items())), n_folds, seed)


def test_another_seed_deals_other_folds():
    labels = {f"p{i}": str(i % 3) for i in range(60)}
    assert fold_persons(labels, 5, 0) != fold_persons(labels, 5, 1)
