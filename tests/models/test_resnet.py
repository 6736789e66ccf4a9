"""ResNet's size and numerics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drenet_jax.models.backbones.resnet import ResNet

# torchvision's published counts less the class head (features × 1000 + 1000).
PARAMETERS = {"resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032}


@pytest.mark.parametrize("architecture", PARAMETERS)
def test_parameter_counts_are_torchvisions(architecture):
    model = ResNet(architecture, 64, jnp.float32, None)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == PARAMETERS[architecture]


def test_features_have_stride_32_and_pooled_is_their_mean():
    model = ResNet("resnet50", 4, jnp.float32, None)
    images = jax.random.normal(jax.random.key(1), (2, 70, 96, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    feature_map, pooled = model.apply(variables, images, train=False)
    assert feature_map.shape == (2, 3, 3, 4 * 8 * 4)
    np.testing.assert_allclose(pooled, feature_map.mean((1, 2)), rtol=1e-5)


def test_bfloat16_keeps_parameters_statistics_and_pooled_in_float32():
    model = ResNet("resnet18", 4, jnp.bfloat16, None)
    images = jnp.ones((2, 64, 64, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    (feature_map, pooled), updates = model.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    assert feature_map.dtype == jnp.bfloat16
    assert pooled.dtype == jnp.float32
    for leaf in jax.tree.leaves((variables, updates)):
        assert leaf.dtype == jnp.float32


def test_blocks_computed_anew_give_the_same_gradients_under_the_same_names():
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = ResNet("resnet18", 4, jnp.float32, None).init(
        jax.random.key(0), images, train=False
    )

    def gradient(remat: bool):
        model = ResNet("resnet18", 4, jnp.float32, None, remat)

        def loss(params):
            (_, pooled), updates = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(pooled**2), updates

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        gradient(True),
        gradient(False),
    )
