"""Flip and brightness, each slice by its own key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from drenet_jax.training.augment import augment


def _images(n):
    return jax.random.uniform(jax.random.key(0), (n, 6, 6), maxval=0.5)


def test_about_half_of_the_slices_are_mirrored_and_nothing_else_moves():
    images = _images(400)
    keys = jax.random.split(jax.random.key(1), 400)
    done = np.asarray(augment(images, keys, flip=True, brightness=0.0))
    same = np.all(np.isclose(done, images), axis=(1, 2))
    mirrored = np.all(np.isclose(done, images[:, :, ::-1]), axis=(1, 2))
    assert np.all(same ^ mirrored)
    assert 150 < mirrored.sum() < 250


def test_brightness_is_a_factor_within_its_bounds():
    images = _images(200)
    keys = jax.random.split(jax.random.key(2), 200)
    factor = np.asarray(augment(images, keys, flip=False, brightness=0.126) / images)
    np.testing.assert_allclose(factor, factor[:, :1, :1].repeat(6, 1).repeat(6, 2), rtol=1e-4)
    assert 0.874 <= factor.min() < 0.9
    assert 1.1 < factor.max() <= 1.127
    bright = augment(jnp.ones((50, 2, 2)), keys[:50], flip=False, brightness=0.126)
    assert bright.max() == 1


def test_a_slice_is_augmented_alike_in_any_company():
    images = _images(8)
    keys = jax.random.split(jax.random.key(3), 8)
    together = augment(images, keys, flip=True, brightness=0.126)
    alone = augment(images[5:6], keys[5:6], flip=True, brightness=0.126)
    np.testing.assert_allclose(together[5], alone[0], rtol=1e-6)
