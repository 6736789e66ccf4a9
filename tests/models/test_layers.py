"""Layers with gradients of their own give what Flax's and XLA's give."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drenet_jax.models import layers

DEVICES = 2


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def _image(*shape: int) -> jax.Array:
    """Few values, so that many pixels are equal."""
    return jnp.round(2 * jax.random.normal(jax.random.key(0), shape, jnp.float64)) / 2


def _batch_norm(kind: type[nn.Module]) -> dict:
    """Outputs, new statistics and gradients over two devices that share their statistics."""
    images = 3 + _image(DEVICES, 4, 5, 6, 3)
    norm = kind(use_running_average=False, momentum=0.9, epsilon=1e-5, axis_name="devices")
    alone = kind(use_running_average=True)
    variables = jax.tree.map(
        lambda x: x.astype(jnp.float64) + 0.5, alone.init(jax.random.key(1), images[0])
    )

    def loss(params, images):
        y, updates = norm.apply({**variables, "params": params}, images, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), (y, updates)

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    mapped = jax.vmap(gradient, in_axes=(None, 0), axis_name="devices")
    (by_params, by_images), (y, updates) = mapped(variables["params"], images)
    return {"params": by_params, "images": by_images, "y": y, "updates": updates}


def test_a_batch_norm_is_flaxs_over_all_devices(double):
    ours, flaxs = _batch_norm(layers.BatchNorm), _batch_norm(nn.BatchNorm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, flaxs)
    assert np.abs(ours["images"]).max() > 0.1


def test_batch_norms_gradient_can_be_taken_from_outside_the_mapped_pass():
    norm = layers.BatchNorm(use_running_average=False, axis_name="devices")
    images = jax.random.normal(jax.random.key(0), (DEVICES, 2, 3, 3, 4))
    variables = layers.BatchNorm(use_running_average=True).init(jax.random.key(1), images[0])

    def loss(images):
        mapped = jax.vmap(
            lambda x: norm.apply(variables, x, mutable=["batch_stats"])[0], axis_name="devices"
        )
        return jnp.sum(jax.jit(mapped)(images) ** 3)

    assert np.any(jax.grad(loss)(images))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_the_first_of_equal_maxima_gets_the_gradient_as_in_xla(size, double):
    images = _image(2, *size, 3)
    weight = jax.random.normal(jax.random.key(2), layers.max_pool_3x3(images).shape)

    def gradient(pool):
        return jax.jit(jax.grad(lambda x: jnp.sum(pool(x) * weight)))(images)

    expected = gradient(layers._plain_max_pool)
    np.testing.assert_allclose(gradient(layers._max_pool), expected, atol=1e-12)


def test_no_gradient_is_lost_where_what_is_pooled_is_computed_twice():
    # The compiler joins the cheap steps before the pooling with its gradient, and may round there
    # otherwise than where it found the maxima.
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 8))

    def total(bias):
        return jnp.sum(layers._max_pool(nn.relu((images - 0.1) * 1.7 + 10 + bias)))

    count = layers.max_pool_3x3(images).size
    np.testing.assert_allclose(jax.jit(jax.grad(total))(0.0), count, rtol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (13, 18), (7, 1)])
def test_the_stem_and_its_gradients_are_those_of_flaxs_convolution(size, double):
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))
    ours = layers.StemConv(5, jnp.float64)
    plain = nn.Conv(5, (7, 7), 2, ((3, 3), (3, 3)), use_bias=False, dtype=jnp.float64)
    variables = ours.init(jax.random.key(1), images)

    def found(network):
        def loss(variables, images):
            y = network.apply(variables, images)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, images)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), found(ours), found(plain)
    )


def test_other_devices_keep_flaxs_and_xlas_own(monkeypatch):
    images = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))

    def gradient():
        return jax.make_jaxpr(jax.grad(lambda x: jnp.sum(layers.max_pool_3x3(x))))(images)

    assert "select_and_scatter" not in str(gradient())
    monkeypatch.setattr(layers, "is_tuned_for_cpu", lambda: False)
    assert "select_and_scatter" in str(gradient())
