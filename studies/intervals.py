"""Figures with intervals: over the tested persons and the training seeds, at once.

A draw is a draw of the persons, with all their slices, and a draw of the seeds, both with
replacement. All arms that are tested on the same persons are judged on the same draws, so their
differences are paired.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from drenet_jax.evaluation.metrics import ranking_metrics
from drenet_jax.evaluation.statistics import person_draws
from studies.predictions import Table

DRAWS = 2000
PERSONS_SEED, SEEDS_SEED = 0, 1


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
    """A figure and its draws.

    Attributes:
      value: the mean over the seeds.
      by_seed: [S], of each.
      drawn: [DRAWS].
    """

    value: float
    by_seed: np.ndarray
    drawn: np.ndarray

    def less(self, other: Figure) -> Figure:
        """The paired difference."""
        return Figure(
            self.value - other.value, self.by_seed - other.by_seed, self.drawn - other.drawn
        )

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """95%, percentiles of the draws."""
        low, high = np.percentile(self.drawn, (2.5, 97.5))
        return float(low), float(high)


def persons_figures(table: Table, arm: str, positive: str) -> dict[str, Figure]:
    """Person AUC, COVID-19 against the rest and each other class, and accuracy."""
    seeds = table.values[arm]
    labels = list(next(iter(seeds.values())))
    is_positive = table.label == positive
    everybody = np.ones(len(is_positive), bool)

    def auc(rows: np.ndarray, against: str = "") -> Callable:
        def of(item: Mapping[str, np.ndarray], person: np.ndarray, times: np.ndarray) -> np.ndarray:
            score = item[positive]
            if against:
                # Rounded to nothing, both are as likely.
                both = score + item[against]
                score = np.divide(score, both, out=np.full(len(both), 0.5), where=both > 0)
            return _auc(is_positive[rows], score[rows], person[rows], times)

        return of

    def accuracy(
        item: Mapping[str, np.ndarray], person: np.ndarray, times: np.ndarray
    ) -> np.ndarray:
        result = np.stack([item[label] for label in labels]).argmax(axis=0)
        return _mean(np.array(labels)[result] == table.label, person, times)

    measures = {"person_auc": auc(everybody), "person_accuracy": accuracy}
    if len(labels) > 2:
        for label in labels:
            if label != positive:
                rows = is_positive | (table.label == label)
                measures[f"person_auc_{label}"] = auc(rows, label)
    return _figures(table, arm, measures)


def slices_figures(table: Table, arm: str, positive: str) -> dict[str, Figure]:
    """Slice AUC, COVID-19 against the rest."""
    is_positive = table.label == positive
    return _figures(table, arm, {"slice_auc": lambda item, *to: _auc(is_positive, item[""], *to)})


def pointed_figures(table: Table, arm: str) -> dict[str, Figure]:
    """Shares of hits on slices with a lesion, and what is above chance; boxes if there are any."""
    chance = table.label.astype(float)
    measures: dict[str, Callable] = {"chance": lambda item, *to: _mean(chance, *to)}
    for point in next(iter(table.values[arm].values())):
        measures[point] = lambda item, *to, point=point: _mean(item[point], *to)
        measures[f"{point}_above_chance"] = lambda item, *to, point=point: _mean(
            item[point] - chance, *to
        )
    return _figures(table, arm, measures)


def _figures(table: Table, arm: str, measures: Mapping[str, Callable]) -> dict[str, Figure]:
    person, times = person_draws(table.patient_id, DRAWS, PERSONS_SEED)
    # The persons as they are, before the draws.
    times = np.concatenate([np.ones((1, times.shape[1])), times])
    seeds = [table.values[arm][seed] for seed in sorted(table.values[arm])]
    n = len(seeds)
    drawn_seeds = np.random.default_rng(SEEDS_SEED).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    result = {}
    for name, measure in measures.items():
        of_seeds = np.stack([measure(seed, person, times) for seed in seeds], axis=1)
        drawn = np.sum(drawn_seeds * of_seeds[1:], axis=1) / n
        result[name] = Figure(float(of_seeds[0].mean()), of_seeds[0], drawn)
    return result


def _auc(
    is_positive: np.ndarray, score: np.ndarray, person: np.ndarray, times: np.ndarray
) -> np.ndarray:
    return ranking_metrics(is_positive, score, person, times, ())["auc"]


def _mean(values: np.ndarray, person: np.ndarray, times: np.ndarray) -> np.ndarray:
    n = times.shape[1]
    total = times @ np.bincount(person, np.asarray(values, float), n)
    return total / (times @ np.bincount(person, minlength=n))
