"""Tests of the ways from a person's slices to the person."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drenet_jax.evaluation.aggregates import AGGREGATES


def softmaxes(seed: int, n: int, classes: int, sharpness: float) -> np.ndarray:
    logits = sharpness * np.random.default_rng(seed).normal(0, 1, (n, classes))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(list(AGGREGATES)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(2, 4),
    st.sampled_from([0, 1, 10, 1000]),  # 1000: zeros and ones
    st.integers(0, 3),
)
def test_a_persons_probabilities_sum_to_1_in_any_order(name, seed, n, classes, sharpness, positive):
    p, positive = softmaxes(seed, n, classes, sharpness), min(positive, classes - 1)
    person = AGGREGATES[name](p, positive)
    assert person.shape == (classes,)
    assert person.min() >= 0
    assert person.sum() == pytest.approx(1, abs=1e-12)
    order = np.random.default_rng(seed).permutation(n)
    np.testing.assert_allclose(AGGREGATES[name](p[order], positive), person, atol=1e-12)


@pytest.mark.parametrize("name", AGGREGATES)
def test_one_slice_alone_is_the_person(name):
    p = np.array([[0.2, 0.5, 0.3]])
    np.testing.assert_allclose(AGGREGATES[name](p, 1), p[0])


P = np.array([[0.9, 0.1, 0.0], [0.6, 0.2, 0.2], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5], [0.5, 0.5, 0.0]])


def test_the_mean_by_hand():
    np.testing.assert_allclose(AGGREGATES["mean"](P, 0), [0.46, 0.34, 0.2])


def test_the_median_by_hand():
    np.testing.assert_allclose(AGGREGATES["median"](P, 0), [0.5, 0.3, 0.2])
    even = np.array([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    np.testing.assert_allclose(AGGREGATES["median"](even, 0), [0.65, 0.35])


def test_medians_that_are_all_0_give_way_to_the_mean():
    np.testing.assert_allclose(AGGREGATES["median"](np.eye(3), 0), [1 / 3, 1 / 3, 1 / 3])


def test_the_mean_of_the_top_three_by_hand():
    np.testing.assert_allclose(AGGREGATES["top3_mean"](P, 0), np.mean(P[[0, 1, 4]], axis=0))
    np.testing.assert_allclose(AGGREGATES["top3_mean"](P, 2), np.mean(P[[3, 2, 1]], axis=0))
    np.testing.assert_allclose(AGGREGATES["top3_mean"](P[:2], 0), [0.75, 0.15, 0.1])


def test_slices_that_tie_for_the_third_place_share_it():
    p = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.4, 0.6, 0.0], [0.4, 0.0, 0.6], [0, 1, 0]])
    np.testing.assert_allclose(AGGREGATES["top3_mean"](p, 0), [0.7, 0.2, 0.1])


def test_noisy_or_by_hand():
    # 1 - 0.5 * 0.8; the rest, 0.4, is shared like the means of the other two, 0.4 and 0.25.
    p = np.array([[0.5, 0.2, 0.3], [0.2, 0.6, 0.2]])
    np.testing.assert_allclose(
        AGGREGATES["noisy_or"](p, 0), [0.6, 0.4 * 0.4 / 0.65, 0.4 * 0.25 / 0.65]
    )


def test_noisy_or_of_a_certain_slice_is_certain():
    p = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(AGGREGATES["noisy_or"](p, 0), [1, 0])
    np.testing.assert_array_equal(AGGREGATES["noisy_or"](p[[0, 2]], 0), [1, 0])


@pytest.mark.parametrize("name", ["noisy_or", "top3_mean"])
def test_a_few_slices_with_disease_make_a_person_positive(name):
    p = np.array([[0.95, 0.05]] * 3 + [[0.05, 0.95]] * 17)
    assert AGGREGATES[name](p, 0)[0] > 0.9
    assert AGGREGATES["mean"](p, 0)[0] < 0.2


@pytest.mark.parametrize("name", ["noisy_or", "top3_mean"])
def test_leaning_to_a_class_that_is_not_given_is_our_own_mistake(name):
    with pytest.raises(AssertionError, match="positive class"):
        AGGREGATES[name](P, None)
