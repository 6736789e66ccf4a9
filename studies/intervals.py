"""Estimates with intervals: over the tested persons and the training seeds, at once.

A draw is a draw of the persons, with all their slices, and a draw of the seeds, both with
replacement. All arms that are tested on the same persons are judged on the same draws, so their
differences are paired. Of one seed, the interval is over the persons alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from drenet_jax.evaluation.metrics import ranking_metrics
from drenet_jax.evaluation.statistics import person_draws
from studies.results import Table

DRAWS = 2000
PERSONS_SEED, SEEDS_SEED = 0, 1

_Measure = Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate:
    """A number and its draws.

    Attributes:
      value: the mean over the seeds.
      by_seed: [S], of each.
      drawn: [DRAWS].
    """

    value: float
    by_seed: np.ndarray
    drawn: np.ndarray

    def minus(self, other: Estimate) -> Estimate:
        """The paired difference."""
        return Estimate(
            self.value - other.value, self.by_seed - other.by_seed, self.drawn - other.drawn
        )

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """95%, percentiles of the draws."""
        low, high = np.percentile(self.drawn, (2.5, 97.5))
        return float(low), float(high)


def person_auc(table: Table, arm: str, positive: str) -> Estimate:
    """AUC of the persons, the positive class against the rest."""
    is_positive = table.label == positive
    return _estimate(table, arm, lambda item, *draws: _auc(is_positive, item[positive], *draws))


def slice_auc(table: Table, arm: str, positive: str) -> Estimate:
    """AUC of the slices."""
    is_positive = table.label == positive
    return _estimate(table, arm, lambda item, *draws: _auc(is_positive, item[""], *draws))


def hits_above_chance(table: Table, arm: str, point: str) -> Estimate:
    """The share of slices with a lesion that are hit, less that of random points in the lungs."""
    chance = table.label.astype(float)
    return _estimate(table, arm, lambda item, *draws: _mean(item[point] - chance, *draws))


def _estimate(table: Table, arm: str, measure: _Measure) -> Estimate:
    person, times = _draws(tuple(table.patient_id))
    seeds = [table.values[arm][seed] for seed in sorted(table.values[arm])]
    n = len(seeds)
    drawn_seeds = np.random.default_rng(SEEDS_SEED).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    of_seeds = np.stack([measure(seed, person, times) for seed in seeds], axis=1)
    drawn = np.sum(drawn_seeds * of_seeds[1:], axis=1) / n
    return Estimate(float(of_seeds[0].mean()), of_seeds[0], drawn)


@functools.lru_cache(maxsize=8)
def _draws(patient_id: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The number of each case's person, and how often each person is in a draw.

    The first draw is the persons as they are.
    """
    person, times = person_draws(np.array(patient_id), DRAWS, PERSONS_SEED)
    return person, np.concatenate([np.ones((1, times.shape[1])), times])


def _auc(
    is_positive: np.ndarray, score: np.ndarray, person: np.ndarray, times: np.ndarray
) -> np.ndarray:
    return ranking_metrics(is_positive, score, person, times, ())["auc"]


def _mean(values: np.ndarray, person: np.ndarray, times: np.ndarray) -> np.ndarray:
    n = times.shape[1]
    total = times @ np.bincount(person, np.asarray(values, float), n)
    return total / (times @ np.bincount(person, minlength=n))
