"""Grad-CAM by its definition, for the model that has no PyTorch twin (the paper's DRENet).

Parity with PyTorch is in test_parity.py and test_parity_nts.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drenet_jax.models.build import build_model, init_variables
from drenet_jax.models.grad_cam import grad_cam
from drenet_jax.models.model_outputs import FeatureMaps

CLASSES = 3


@pytest.fixture
def model(tiny_config):
    return build_model(tiny_config, CLASSES)


@pytest.fixture
def variables(model):
    return init_variables(model, 0)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).random((2, 96, 96), np.float32)


def test_maps_follow_what_a_brighter_channel_does_to_the_logits(tiny_config, images):
    """Adding e to a channel everywhere changes a logit by e · h · w · a_k, measured here.

    With the zoomed box: the weighted image depends on the scores and so on the channels, too, but
    no gradient is let through there.
    """
    tiny_config.model.context = "zoom"
    model = build_model(tiny_config, CLASSES)
    variables = init_variables(model, 0)
    outputs, maps = jax.jit(lambda v, x: grad_cam(model, v, x))(variables, images)
    of_image, of_crops = outputs.feature_maps.image, outputs.feature_maps.crops
    nothing = model.no_probes(images)
    step = 1e-2

    @jax.jit
    def logits(probes):
        return model.apply(variables, images, train=False, probes=probes).logits

    def slope(probe_of):
        return (logits(probe_of(step)) - logits(probe_of(-step))) / (2 * step)

    weights = np.zeros((CLASSES, *of_image.shape[::3]))  # [classes, B, C]
    crop_weights = np.zeros((CLASSES, *of_crops.shape[:2], of_crops.shape[-1]))
    for channel in range(of_image.shape[-1]):

        def on_image(amount, channel=channel):
            added = nothing.image.at[..., channel].add(amount)
            return FeatureMaps(added, nothing.crops)

        cells = of_image.shape[1] * of_image.shape[2]
        weights[:, :, channel] = slope(on_image).T / cells
        for crop in range(of_crops.shape[1]):

            def on_crop(amount, channel=channel, crop=crop):
                added = nothing.crops.at[:, crop, ..., channel].add(amount)
                return FeatureMaps(nothing.image, added)

            cells = of_crops.shape[2] * of_crops.shape[3]
            crop_weights[:, :, crop, channel] = slope(on_crop).T / cells

    expected = np.maximum(np.einsum("bhwc,kbc->bkhw", of_image, weights), 0)
    assert expected.max() > 0
    np.testing.assert_allclose(maps.image, expected, atol=2e-2 * expected.max())
    expected = np.maximum(np.einsum("bphwc,kbpc->bkphw", of_crops, crop_weights), 0)
    assert expected.max() > 0
    np.testing.assert_allclose(maps.crops, expected, atol=2e-2 * expected.max())


def test_the_maps_change_nothing_else(model, variables, images):
    outputs, _ = jax.jit(lambda v, x: grad_cam(model, v, x))(variables, images)
    plain = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    for name in ("logits", "raw_logits", "part_logits", "scores", "boxes"):
        np.testing.assert_allclose(getattr(outputs, name), getattr(plain, name), atol=1e-5)


def test_bfloat16_gives_float32_maps_near_those_of_float32(tiny_config, model, variables, images):
    tiny_config.model.dtype = "bfloat16"
    half = build_model(tiny_config, CLASSES)
    _, expected = jax.jit(lambda v, x: grad_cam(model, v, x))(variables, images)
    _, got = jax.jit(lambda v, x: grad_cam(half, v, x))(variables, images)
    assert got.image.dtype == jnp.float32
    assert np.abs(got.image - expected.image).max() < 0.1 * expected.image.max()
