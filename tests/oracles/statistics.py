"""Statistics written down from their definitions, slowly and in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


def delong_covariance(
    positive_scores: Sequence[Sequence[float]], negative_scores: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray]:
    """The AUCs of M models and their covariance, by DeLong, DeLong and Clarke-Pearson (1988).

    Args:
      positive_scores: [M][m], the scores of each model for the m positive cases.
      negative_scores: [M][n].

    Returns:
      the AUCs [M] and the covariance [M, M].
    """

    def kernel(x: float, y: float) -> float:
        return 1.0 if y < x else 0.5 if y == x else 0.0

    models = range(len(positive_scores))
    m, n = len(positive_scores[0]), len(negative_scores[0])
    v10 = [
        [sum(kernel(x, y) for y in negative_scores[r]) / n for x in positive_scores[r]]
        for r in models
    ]
    v01 = [
        [sum(kernel(x, y) for x in positive_scores[r]) / m for y in negative_scores[r]]
        for r in models
    ]
    auc = [sum(v10[r]) / m for r in models]
    covariance = [
        [
            sum((v10[r][i] - auc[r]) * (v10[s][i] - auc[s]) for i in range(m)) / (m - 1) / m
            + sum((v01[r][j] - auc[r]) * (v01[s][j] - auc[s]) for j in range(n)) / (n - 1) / n
            for s in models
        ]
        for r in models
    ]
    return np.array(auc), np.array(covariance)


def bca(
    statistic: Callable[[Sequence[int]], float], n: int, samples: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """Efron's (1987) BCa 95% interval; draws equal to the value count half in the bias.

    Args:
      statistic: of a sample, given as places among the n persons, with repetition.
      n: the number of persons.
      samples: the bootstrap samples.
    """
    from scipy.stats import norm

    value = statistic(range(n))
    drawn = sorted(statistic(sample) for sample in samples)
    drawn = [one for one in drawn if not math.isnan(one)]
    less = sum(one < value - 1e-12 for one in drawn)
    equal = sum(abs(one - value) <= 1e-12 for one in drawn)
    z0 = norm.ppf((less + equal / 2) / len(drawn))
    left_out = [statistic([j for j in range(n) if j != i]) for i in range(n)]
    left_out = [one for one in left_out if not math.isnan(one)]
    mean = sum(left_out) / len(left_out)
    cubes = sum((mean - one) ** 3 for one in left_out)
    squares = sum((mean - one) ** 2 for one in left_out)
    a = cubes / (6 * squares**1.5) if squares > 1e-20 else 0.0

    def quantile(share: float) -> float:
        place = share * (len(drawn) - 1)
        below = math.floor(place)
        above = min(below + 1, len(drawn) - 1)
        return drawn[below] + (place - below) * (drawn[above] - drawn[below])

    ends = [z0 + (z0 + norm.ppf(p)) / (1 - a * (z0 + norm.ppf(p))) for p in (0.025, 0.975)]
    return tuple(quantile(norm.cdf(end)) for end in ends)
