"""Dropout by the image's own key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from drenet_jax.models.dropout import dropout


def test_what_is_kept_is_scaled_up_and_the_share_is_the_rates():
    keys = jax.random.split(jax.random.key(0), 4)
    dropped = np.asarray(dropout(jnp.ones((4, 10_000)), keys, 0, 0.2))
    np.testing.assert_allclose(np.unique(dropped), [0, 1.25])
    assert abs((dropped == 0).mean() - 0.2) < 0.01


def test_streams_and_keys_draw_anew_and_the_same_key_draws_the_same():
    keys = jax.random.split(jax.random.key(0), 2)
    features = jnp.ones((2, 100))
    first = dropout(features, keys, 0, 0.5)
    assert (first == dropout(features, keys, 0, 0.5)).all()
    assert (first != dropout(features, keys, 1, 0.5)).any()
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(dropout(features[1:], keys[1:], 0, 0.5), first[1:])
