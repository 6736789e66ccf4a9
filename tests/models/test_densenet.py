"""DenseNet's features; `test_parity.py` has its numerics."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from drenet_jax.models.backbones.densenet import DenseNet


def test_features_have_stride_32():
    model = DenseNet("densenet121", 4, jnp.float32, None)
    images = jnp.zeros((2, 64, 96, 3))
    (feature_map, pooled), _ = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, train=False)
    )
    assert feature_map.shape == (2, 2, 3, 4 * 16)
    assert pooled.shape == (2, 4 * 16)


def test_bfloat16_keeps_parameters_statistics_and_pooled_in_float32():
    model = DenseNet("densenet121", 4, jnp.bfloat16, None)

    def run():
        images = jnp.ones((2, 32, 32, 3))
        variables = model.init(jax.random.key(0), images, train=False)
        return variables, model.apply(variables, images, train=True, mutable=["batch_stats"])

    variables, ((feature_map, pooled), updates) = jax.eval_shape(run)
    assert feature_map.dtype == jnp.bfloat16
    assert pooled.dtype == jnp.float32
    for leaf in jax.tree.leaves((variables, updates)):
        assert leaf.dtype == jnp.float32
