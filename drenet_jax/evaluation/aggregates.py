"""How the probabilities of a person's slices become the person's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_TOP = 3


def _mean(probabilities: np.ndarray, positive: int | None) -> np.ndarray:
    return probabilities.mean(axis=0)


def _median(probabilities: np.ndarray, positive: int | None) -> np.ndarray:
    median = np.median(probabilities, axis=0)
    total = median.sum()
    # Three slices, each certain of another class, have no class with a median above 0.
    return median / total if total > 0 else probabilities.mean(axis=0)


def _noisy_or(probabilities: np.ndarray, positive: int | None) -> np.ndarray:
    """The other classes share what is left in the proportions of their means."""
    assert positive is not None, "noisy_or needs the positive class"
    none = np.prod(1 - np.minimum(probabilities[:, positive], 1))
    person = probabilities.mean(axis=0)
    person[positive] = 0
    others = person.sum()
    if others > 0:
        person *= none / others
    person[positive] = 1 - none
    return person


def _top3_mean(probabilities: np.ndarray, positive: int | None) -> np.ndarray:
    assert positive is not None, "top3_mean needs the positive class"
    score = probabilities[:, positive]
    if len(score) <= _TOP:
        return probabilities.mean(axis=0)
    # Slices that tie for the last places share them, so that the order of the rows does not matter.
    last = np.sort(score)[-_TOP]
    above, tied = score > last, score == last
    share = (_TOP - above.sum()) / tied.sum()
    return (probabilities[above].sum(axis=0) + share * probabilities[tied].sum(axis=0)) / _TOP


# Each takes the probabilities [n, C] of a person's slices, n at least 1, and the index of the
# positive class (None where the function does not need it), and gives [C].
AGGREGATES: dict[str, Callable[[np.ndarray, int | None], np.ndarray]] = {
    "mean": _mean,
    "noisy_or": _noisy_or,
    "top3_mean": _top3_mean,
    "median": _median,
}

# Those that cannot do without the positive class.
NEED_POSITIVE = ("noisy_or", "top3_mean")
