from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from drenet_jax.ct.sampling import sample_uniform


def test_fifteen_of_168_are_the_papers_indices():
    assert sample_uniform(168, 15) == [
        0,
        11,
        22,
        33,
        44,
        56,
        67,
        78,
        89,
        100,
        112,
        123,
        134,
        145,
        156,
    ]


def test_a_short_series_is_taken_whole():
    assert sample_uniform(4, 15) == [0, 1, 2, 3]
    assert sample_uniform(15, 15) == list(range(15))
    assert sample_uniform(0, 15) == []


@given(n_slices=st.integers(1, 2000), count=st.integers(1, 60))
def test_picks_rise_evenly_through_the_series(n_slices, count):
    picked = sample_uniform(n_slices, count)
    assert len(picked) == min(n_slices, count)
    assert picked[0] == 0
    steps = [b - a for a, b in zip(picked, [*picked[1:], n_slices], strict=True)]
    assert min(steps) >= 1
    assert max(steps) - min(steps) <= 1
