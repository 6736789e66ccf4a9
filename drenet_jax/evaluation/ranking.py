"""Figures that depend on the order of the scores alone: the ROC and precision-recall curves'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Draws are worked through in blocks of so many weights, which keeps them in the cache.
_BLOCK_WEIGHTS = 1 << 18

# In cases: far below one, far above the rounding of a share times a number of cases.
_ROUNDING = 1e-6


def recall_at(specificity: float) -> str:
    """The name of the recall at a fixed specificity, such as `recall_at_specificity_0.90`."""
    return f"recall_at_specificity_{max(f'{specificity:.2f}', repr(specificity), key=len)}"


def ranking_of_draws(
    is_positive: np.ndarray,
    score: np.ndarray,
    person: np.ndarray,
    times: np.ndarray,
    specificities: Sequence[float],
) -> dict[str, np.ndarray]:
    """What `ranking_by_scikit_learn` gives, of each of many draws of persons.

    Args:
      is_positive: [N] bool.
      score: [N] float, higher is more positive.
      person: [N] int, each row's person (see `intervals.person_draws`).
      times: [D, P] float, how many times each person counts.
      specificities: each in (0, 1).

    Returns:
      [D] float64 for each name; NaN where a draw leaves it undefined.
    """
    names = ["auc", "average_precision", *map(recall_at, specificities)]
    values = {name: np.full(len(times), np.nan) for name in names}
    if len(score) == 0:
        return values
    order = np.argsort(-score, kind="stable")
    positive, person = is_positive[order], person[order]
    # Rows of equal score pass a threshold together: where each such group ends.
    ends = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    block = max(1, _BLOCK_WEIGHTS // len(score))
    for first in range(0, len(times), block):
        rows = slice(first, first + block)
        weight = times[rows, person]
        tp = np.cumsum(weight * positive, axis=1)[:, ends]
        fp = np.cumsum(weight * ~positive, axis=1)[:, ends]
        n_positive, n_negative = tp[:, -1], fp[:, -1]
        gained = np.diff(tp, axis=1, prepend=0)
        lost = np.diff(fp, axis=1, prepend=0)
        # A positive case wins against the negative ones below it, and half against its equals.
        won = np.sum(lost * (tp - gained / 2), axis=1)
        pairs = n_positive * n_negative
        np.divide(won, pairs, out=values["auc"][rows], where=pairs > 0)
        precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=gained > 0)
        np.divide(
            np.sum(gained * precision, axis=1),
            n_positive,
            out=values["average_precision"][rows],
            where=n_positive > 0,
        )
        for specificity in specificities:
            passed = (fp <= _allowed(n_negative, specificity)[:, None]).sum(axis=1)
            found = np.where(passed > 0, tp[np.arange(len(tp)), passed - 1], 0)
            np.divide(found, n_positive, out=values[recall_at(specificity)][rows], where=pairs > 0)
    return values


def ranking_by_scikit_learn(
    is_positive: np.ndarray, score: np.ndarray, specificities: Sequence[float]
) -> dict[str, float]:
    """`auc`, `average_precision` and the recall at each specificity, by scikit-learn.

    The recall at a specificity is the highest of all thresholds whose specificity is no lower;
    nothing is interpolated.

    Args:
      is_positive: [N] bool.
      score: [N] float, higher is more positive.
      specificities: each in (0, 1).

    Returns:
      a float for each name; NaN where it is undefined.
    """
    # Imported here: 0.7 s that `predict`, which shares this package, does without.
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    nan = float("nan")
    both = is_positive.any() and not is_positive.all()
    values = {
        "auc": roc_auc_score(is_positive, score) if both else nan,
        "average_precision": average_precision_score(is_positive, score)
        if is_positive.any()
        else nan,
    }
    if not both:
        return values | {recall_at(one): nan for one in specificities}
    n_negative = np.sum(~is_positive)
    false_positive, recall, _ = roc_curve(is_positive, score, drop_intermediate=False)
    return values | {
        recall_at(one): recall[false_positive * n_negative <= _allowed(n_negative, one)].max()
        for one in specificities
    }


def _allowed(n_negative: np.ndarray, specificity: float) -> np.ndarray:
    """How many of the negative cases may pass."""
    return (1 - specificity) * n_negative + _ROUNDING
