"""VGG's features and pooling; `test_parity.py` has its numerics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drenet_jax.models.backbones.vgg import VGG, adaptive_average_pool


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (3, 64, 96, 3))


@pytest.fixture(scope="module")
def variables(images):
    model = VGG("vgg16", 2, jnp.float32, dropout=0.5)
    return jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))


def test_features_have_stride_32_and_hidden_layers_take_any_size(variables, images):
    model = VGG("vgg16", 2, jnp.float32, dropout=0.5)
    feature_map, pooled = model.apply(variables, images, train=False)
    assert feature_map.shape == (3, 2, 3, 8 * 2)
    assert pooled.shape == (3, 64 * 2)


def test_dropout_follows_the_images_key_not_its_place(variables, images):
    model = VGG("vgg16", 2, jnp.float32, dropout=0.5)
    keys = jax.random.split(jax.random.key(2), 3)
    _, pooled = model.apply(variables, images, train=True, dropout_keys=keys)
    _, backwards = model.apply(variables, images[::-1], train=True, dropout_keys=keys[::-1])
    np.testing.assert_allclose(backwards[::-1], pooled, atol=1e-6)
    _, others = model.apply(variables, images, train=True, dropout_keys=keys[::-1])
    assert np.abs(others - pooled).max() > 0.1 * np.abs(pooled).max()


def test_without_dropout_training_needs_no_keys_and_equals_evaluation(variables, images):
    model = VGG("vgg16", 2, jnp.float32, dropout=0.0)
    _, training = model.apply(variables, images, train=True)
    _, evaluation = model.apply(variables, images, train=False)
    np.testing.assert_array_equal(training, evaluation)


def test_bfloat16_keeps_parameters_and_pooled_in_float32(images):
    model = VGG("vgg16", 2, jnp.bfloat16, dropout=0.5)

    def run():
        variables = model.init(jax.random.key(0), images, train=False)
        return variables, model.apply(variables, images, train=False)

    variables, (feature_map, pooled) = jax.eval_shape(run)
    assert feature_map.dtype == jnp.bfloat16
    assert pooled.dtype == jnp.float32
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("rows", [1, 3, 7, 10, 14])
def test_adaptive_pooling_averages_the_parts_that_the_docstring_names(rows):
    x = np.random.default_rng(rows).normal(size=(2, rows, 9, 4)).astype(np.float32)
    pooled = adaptive_average_pool(jnp.asarray(x), 7)
    for i in range(7):
        for j in range(7):
            part = x[:, i * rows // 7 : -(-(i + 1) * rows // 7), j * 9 // 7 : -(-(j + 1) * 9 // 7)]
            np.testing.assert_allclose(pooled[:, i, j], part.mean((1, 2)), atol=1e-6)
