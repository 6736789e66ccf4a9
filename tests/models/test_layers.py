"""Layers with gradients of their own give what Flax's and XLA's give."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drenet_jax.models import custom_gradients, layers
from drenet_jax.models.norm import BatchNorm

DEVICES = 2


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def _image(*shape: int) -> jax.Array:
    """Few values, so that many pixels are equal."""
    return jnp.round(2 * jax.random.normal(jax.random.key(0), shape, jnp.float64)) / 2


def _batch_norm(kind: type[nn.Module], **options) -> dict:
    """Outputs, new statistics and gradients over two devices that share their statistics."""
    images = 3 + _image(DEVICES, 4, 5, 6, 3)
    norm = kind(
        use_running_average=False, momentum=0.9, epsilon=1e-5, axis_name="devices", **options
    )
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


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_batch_norm_is_flaxs_over_all_devices(platform, double):
    ours = _batch_norm(BatchNorm, platform=platform)
    flaxs = _batch_norm(nn.BatchNorm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, flaxs)
    assert np.abs(ours["images"]).max() > 0.1


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_batch_norms_gradient_can_be_taken_from_outside_the_mapped_pass(platform):
    norm = BatchNorm(use_running_average=False, axis_name="devices", platform=platform)
    images = jax.random.normal(jax.random.key(0), (DEVICES, 2, 3, 3, 4))
    variables = BatchNorm(use_running_average=True).init(jax.random.key(1), images[0])

    def loss(images):
        mapped = jax.vmap(
            lambda x: norm.apply(variables, x, mutable=["batch_stats"])[0], axis_name="devices"
        )
        return jnp.sum(jax.jit(mapped)(images) ** 3)

    assert np.any(jax.grad(loss)(images))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_what_follows_a_batch_norm_is_computed_with_it(relu, with_shortcut, platform, double):
    images, shortcut = jax.random.normal(jax.random.key(0), (2, 4, 5, 6, 3), jnp.float64)
    ours = BatchNorm(use_running_average=False, platform=platform)
    flaxs = nn.BatchNorm(use_running_average=False, momentum=0.9)
    variables = {
        "params": {"scale": jnp.array([-0.7, 0.3, 2.0]), "bias": jnp.array([0.2, -0.4, 0.1])},
        "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
    }

    def plain(params, images, shortcut):
        y, updates = flaxs.apply(variables | {"params": params}, images, mutable=["batch_stats"])
        y = y + shortcut if with_shortcut else y
        return (nn.relu(y) if relu else y), updates

    def joined(params, images, shortcut):
        return ours.apply(
            variables | {"params": params},
            images,
            shortcut if with_shortcut else None,
            relu=relu,
            mutable=["batch_stats"],
        )

    def found(network):
        def loss(*arguments):
            y, updates = network(*arguments)
            return jnp.sum(jnp.sin(3 * y)), (y, updates)

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        return gradient(variables["params"], images, shortcut)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found(joined), found(plain)
    )


def test_a_batch_norm_at_rest_adds_the_shortcut_before_the_relu():
    images, shortcut = jax.random.normal(jax.random.key(0), (2, 4, 5, 6, 3))
    norm = BatchNorm(use_running_average=True)
    variables = norm.init(jax.random.key(1), images)
    expected = nn.relu(norm.apply(variables, images) + shortcut)
    np.testing.assert_array_equal(norm.apply(variables, images, shortcut, relu=True), expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_the_first_of_equal_maxima_gets_the_gradient_as_in_xla(size, double):
    images = _image(2, *size, 3)
    weight = jax.random.normal(jax.random.key(2), layers.max_pool_3x3(images).shape)

    def gradient(pool):
        return jax.jit(jax.grad(lambda x: jnp.sum(pool(x) * weight)))(images)

    expected = gradient(custom_gradients.plain_max_pool)
    np.testing.assert_allclose(gradient(custom_gradients.max_pool), expected, atol=1e-12)


def test_no_gradient_is_lost_where_what_is_pooled_is_computed_twice():
    # The compiler joins the cheap steps before the pooling with its gradient, and may round there
    # otherwise than where it found the maxima.
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 8))

    def total(bias):
        return jnp.sum(custom_gradients.max_pool(nn.relu((images - 0.1) * 1.7 + 10 + bias)))

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


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_1x1_convolution_and_its_gradients_are_flaxs_on_every_platform(stride, platform, double):
    images = jax.random.normal(jax.random.key(1), (2, 9, 8, 5))
    ours = layers.Conv1x1(7, stride, jnp.float64, platform)
    plain = nn.Conv(7, (1, 1), stride, "VALID", use_bias=False, dtype=jnp.float64)
    variables = ours.init(jax.random.key(0), images)

    def found(network):
        def loss(variables, images):
            y = network.apply(variables, images)
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, images)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found(ours), found(plain)
    )
