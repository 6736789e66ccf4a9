"""Which slices of a series are sampled."""

from __future__ import annotations


def sample_uniform(n_slices: int, count: int) -> list[int]:
    """Evenly spaced places in a series: `floor(i * n_slices / count)` (paper 2.2.1).

    Args:
      n_slices: how many slices the series has.
      count: how many are wanted, at least 1.

    Returns:
      `count` indices in rising order, or all of them if the series has no more.
    """
    assert count >= 1
    if n_slices <= count:
        return list(range(n_slices))
    return [i * n_slices // count for i in range(count)]
