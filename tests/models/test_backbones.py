"""What all backbones have in common, and a DRENet over each of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from drenet_jax import parallel
from drenet_jax.errors import InputError
from drenet_jax.models.backbones.registry import BACKBONES
from drenet_jax.models.build import build_model, variable_shapes
from drenet_jax.models.grad_cam import grad_cam

ONE_OF_EACH = ("resnet18", "densenet121", "vgg16", "efficientnet_lite0")


@pytest.mark.parametrize("size_px", [64, 75])
@pytest.mark.parametrize("architecture", ONE_OF_EACH)
def test_the_feature_map_is_as_large_as_the_network_declares(architecture, size_px):
    network = BACKBONES[architecture](architecture, 8, jnp.float32)
    images = jax.ShapeDtypeStruct((1, size_px, size_px, 3), jnp.float32)
    (feature_map, pooled), _ = jax.eval_shape(
        lambda images: network.init_with_output(jax.random.key(0), images, train=False), images
    )
    cells = -(-size_px // 32) if network.rounds_up else size_px // 32
    assert feature_map.shape == (1, cells, cells, network.channels)
    assert pooled.dtype == jnp.float32


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("resnet18", "densenet121") else [])
        for name in ONE_OF_EACH
    ],
)
def test_a_drenet_over_any_backbone_is_trained_and_explained(tiny_config, architecture):
    tiny_config.model.update(backbone=architecture, width=8)
    model = build_model(tiny_config, 3)
    shapes = variable_shapes(model)
    images = jnp.zeros((2, model.image_size_px, model.image_size_px))

    def loss(params, images, keys):
        variables = {"params": params, "batch_stats": statistics}
        outputs, updates = model.apply(
            variables, images, train=True, dropout_keys=keys, mutable=["batch_stats"]
        )
        return outputs.logits.sum(), (outputs, updates)

    def step(params, images):
        keys = jax.random.split(jax.random.key(0), len(images))
        return jax.grad(loss, has_aux=True)(params, images, keys)

    params, statistics = (
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes[name])
        for name in ("params", "batch_stats")
    )
    over_devices = jax.vmap(step, in_axes=(None, 0), axis_name=parallel.AXIS)
    gradients, (outputs, updates) = jax.eval_shape(over_devices, params, images[None])
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    assert outputs.logits.shape == (1, 2, 3)
    axes_of_statistics = {leaf.ndim for leaf in jax.tree.leaves(updates)}
    assert axes_of_statistics == (set() if architecture == "vgg16" else {3})

    _, maps = jax.eval_shape(lambda v, x: grad_cam(model, v, x), shapes, images)
    assert maps.image.shape[:2] == (2, 3)
    assert maps.crops.shape[2] == sum(tiny_config.model.top_k)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet101"}, "config.model.backbone=resnet101 is none of resnet18"),
        ({"backbone": "drenet"}, "config.model.backbone=drenet is none of"),
        ({"backbone": "vgg16", "remat": True}, "config.model.remat=True is not for a vgg16"),
        (
            {"backbone": "densenet121", "image_size_px": 100},
            "config.model.image_size_px=100 must be a multiple of 32 with "
            "model.backbone=densenet121",
        ),
    ],
)
def test_what_does_not_fit_the_backbone_is_refused_by_field(tiny_config, fields, message):
    tiny_config.model.update(fields)
    with pytest.raises(InputError, match=message):
        build_model(tiny_config, 3)
