"""The split by person into training, validation and test (paper 2.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.errors import InputError


def split_persons(
    labels: Mapping[str, str], fractions: Sequence[float], seed: int
) -> dict[str, list[str]]:
    """Draws a split in which every label is shared out in the same proportions.

    Whole persons that the proportions do not settle go where most are missing over all labels; a
    label's first person goes to training.

    Args:
      labels: patient_id -> label.
      fractions: parts for training, validation and test, in any unit (60, 10, 30).
      seed: of the draw. The order of `labels` does not matter.

    Returns:
      split -> patient_ids, sorted.
    """
    shares = np.array(fractions, float) / np.sum(fractions)
    assert shares.shape == (len(SPLITS),)
    assert (shares >= 0).all()
    rng = np.random.default_rng(seed)
    persons: dict[str, list[str]] = {split: [] for split in SPLITS}
    by_label: dict[str, list[str]] = {}
    for patient_id in sorted(labels):
        by_label.setdefault(labels[patient_id], []).append(patient_id)

    counts = {}
    for label, members in by_label.items():
        # A hair above: 30% of 10 is 2.9999... in floating point.
        counts[label] = np.floor(shares * len(members) + 1e-9).astype(int)
        if not counts[label][0] and shares[0]:
            counts[label][0] = 1
            if counts[label].sum() > len(members):
                counts[label][np.argmax(counts[label][1:]) + 1] -= 1
    for label, members in by_label.items():
        for _ in range(len(members) - counts[label].sum()):
            missing = shares * len(labels) - sum(counts.values())
            counts[label][np.argmax(missing)] += 1

    for label, members in by_label.items():
        drawn = rng.permutation(members).tolist()
        for split, count in zip(SPLITS, counts[label], strict=True):
            persons[split] += drawn[:count]
            drawn = drawn[count:]
    return {split: sorted(members) for split, members in persons.items()}


def fold_persons(labels: Mapping[str, str], n_folds: int, seed: int) -> list[list[str]]:
    """Deals persons to folds: every person to one, and every label to all folds alike.

    The numbers of persons of two folds differ by at most one, of each label and of all together.

    Args:
      labels: patient_id -> label.
      n_folds: how many.
      seed: of the draw. The order of `labels` does not matter.

    Returns:
      patient_ids of each fold, sorted.
    """
    rng = np.random.default_rng(seed)
    dealt: list[str] = []
    for label in sorted(set(labels.values())):
        members = sorted(person for person in labels if labels[person] == label)
        dealt += rng.permutation(members).tolist()
    # As cards are dealt: where one label ends, the next goes on.
    return [sorted(dealt[fold::n_folds]) for fold in range(n_folds)]


def check_split(persons: Mapping[str, Sequence[str]], where: str) -> None:
    """Raises InputError, naming the person, if a person is in two splits (or in one twice).

    Args:
      persons: split -> patient_ids.
      where: the file with the split.
    """
    seen: dict[str, str] = {}
    for split in SPLITS:
        for patient_id in persons[split]:
            if patient_id in seen:
                raise InputError(
                    f"{where}: person {patient_id!r} is in {seen[patient_id]} and in {split}; "
                    "a person belongs in one split, so run prepare again."
                )
            seen[patient_id] = split
