"""Augmentation against SciPy and NumPy, and its randomness."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import config_flags

from drenet_jax import cli
from drenet_jax.errors import InputError
from drenet_jax.training import augment as module
from drenet_jax.training.augment import Augmentation, augment, mixup
from drenet_jax.training.config_checks import check_config


def _preset(name, **changes):
    config = importlib.import_module("drenet_jax.configs.drenet").get_config(name)
    return dataclasses.replace(Augmentation.from_config(config), **changes)


OFF = _preset("paper", flip=False, brightness=0.0, is_black_outside=True)
STRONG = _preset("strong")


_augment = jax.jit(augment, static_argnums=2)
_mixup = jax.jit(mixup, static_argnums=3)


def _warp(image, *args):
    return module.warp(jnp.asarray(image), *args)


@pytest.fixture(params=["_by_gathers", "_by_products"])
def resampling(request, monkeypatch):
    """Resampling as on CPU and GPU, and as on TPU."""
    monkeypatch.setattr(module, "_by_gathers", getattr(module, request.param))


def _images(n, maxval=0.5):
    return jax.random.uniform(jax.random.key(0), (n, 6, 6), maxval=maxval)


def _keys(n, seed=1):
    return jax.random.split(jax.random.key(seed), n)


def _smooth(height=60, width=50):
    """An image of few low frequencies, which all interpolations agree on."""
    noise = np.random.default_rng(0).uniform(size=(height, width))
    image = scipy.ndimage.gaussian_filter(noise, 5)
    return ((image - image.min()) / np.ptp(image)).astype(np.float32)


def test_about_half_of_the_slices_are_mirrored_and_nothing_else_moves():
    images = _images(400)
    done = np.asarray(_augment(images, _keys(400), dataclasses.replace(OFF, flip=True)))
    same = np.all(np.isclose(done, images), axis=(1, 2))
    mirrored = np.all(np.isclose(done, images[:, :, ::-1]), axis=(1, 2))
    assert np.all(same ^ mirrored)
    assert 150 < mirrored.sum() < 250


def test_brightness_is_a_factor_within_its_bounds():
    images, keys = _images(200), _keys(200, 2)
    bright = dataclasses.replace(OFF, brightness=0.126)
    factor = np.asarray(_augment(images, keys, bright) / images)
    np.testing.assert_allclose(factor, factor[:, :1, :1].repeat(6, 1).repeat(6, 2), rtol=1e-4)
    assert 0.874 <= factor.min() < 0.9
    assert 1.1 < factor.max() <= 1.127
    assert _augment(jnp.ones((50, 2, 2)), keys[:50], bright).max() == 1


def test_the_paper_s_preset_is_bit_for_bit_flip_and_brightness_alone():
    def before(image, key):
        flip_key, brightness_key = jax.random.split(key)
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        factor = jax.random.uniform(brightness_key, minval=1 - 0.126, maxval=1 + 0.126)
        return jnp.clip(image * factor, 0, 1)

    images, keys = _images(50), _keys(50)
    now = _augment(images, keys, _preset("paper"))
    np.testing.assert_array_equal(now, jax.jit(jax.vmap(before))(images, keys))


def test_a_slice_is_augmented_alike_in_any_company():
    images, keys = _images(8), _keys(8)
    together = _augment(images, keys, STRONG)
    alone = _augment(images[5:6], keys[5:6], STRONG)
    np.testing.assert_allclose(together[5], alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(_augment(images, keys, STRONG), together)
    same_image = _augment(jnp.broadcast_to(images[0], images.shape), keys, STRONG)
    assert np.ptp(same_image, axis=0).max() > 0.05


@pytest.mark.parametrize("is_black_outside", [True, False])
def test_scale_and_shift_equal_scipys_affine_transform(is_black_outside, resampling):
    image = np.random.default_rng(0).uniform(size=(30, 25)).astype(np.float32)
    matrix = jnp.array([[1.2, 0, -3.3], [0, 0.9, 2.7]])
    mode = "grid-constant" if is_black_outside else "mirror"
    expected = scipy.ndimage.affine_transform(
        image, matrix[:, :2], matrix[:, 2], order=1, mode=mode
    )
    actual = _warp(image, matrix, is_black_outside)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_a_random_affine_equals_scipys_affine_transform_on_a_smooth_image(seed, resampling):
    image = _smooth()
    matrix = module.random_affine(jax.random.key(seed), STRONG, image.shape)
    expected = scipy.ndimage.affine_transform(
        image, np.asarray(matrix[:, :2]), matrix[:, 2], order=1, mode="grid-constant"
    )
    actual = np.asarray(_warp(image, matrix, True))
    # At the border the image falls to 0 in one pixel, where the two interpolations differ.
    positions = np.einsum("ij,jyx->iyx", matrix[:, :2], np.mgrid[:60, :50])
    y, x = positions + np.asarray(matrix[:, 2:, None])
    is_inside = (y >= 1) & (y <= 58) & (x >= 1) & (x <= 48)
    assert is_inside.mean() > 0.5
    np.testing.assert_allclose(actual[is_inside], expected[is_inside], atol=1e-3)
    assert np.abs(actual - expected).max() < 0.05
    mirrored = np.asarray(_warp(image, matrix, False))
    np.testing.assert_allclose(mirrored[is_inside], actual[is_inside], atol=1e-5)


def test_a_rotation_equals_scipys_rotate():
    image = np.pad(_smooth(50, 50), 15)
    turned = dataclasses.replace(OFF, rotation_deg=15.0)
    matrix = module.random_affine(jax.random.key(3), turned, image.shape)
    angle_deg = np.rad2deg(np.arctan2(matrix[0, 1], matrix[0, 0]))
    assert 1 < abs(angle_deg) <= 15
    expected = scipy.ndimage.rotate(image, angle_deg, reshape=False, order=1)
    assert np.abs(_warp(image, matrix, True) - expected).mean() < 5e-4


def test_random_affines_cover_their_ranges_and_stay_within_them():
    matrices = jax.vmap(lambda key: module.random_affine(key, STRONG, (100, 100)))(_keys(2000))
    matrices = np.asarray(matrices, np.float64)
    forward = np.linalg.inv(matrices[:, :, :2])
    angle = np.rad2deg(np.arctan2(forward[:, 1, 0], forward[:, 0, 0]))
    sides = np.linalg.norm(forward, axis=1)
    scale, aspect = np.sqrt(sides.prod(axis=1)), sides[:, 0] / sides[:, 1]
    centre = np.array([49.5, 49.5])
    shift = np.einsum("nij,nj->ni", forward, centre - matrices[:, :, 2]) - centre
    for values, low, high in (
        (angle, -15, 15),
        (np.log(scale), np.log(0.8), np.log(1.25)),
        (np.log(aspect), -np.log(1.2), np.log(1.2)),
        (shift, -8, 8),
    ):
        span = high - low
        assert low - 1e-3 <= values.min() < low + 0.02 * span
        assert high - 0.02 * span < values.max() <= high + 1e-3
        assert abs(values.mean() - (low + high) / 2) < 0.03 * span


@pytest.mark.parametrize("sigma_px", [0.0, 0.3, 1.1, 2.0])
def test_a_blur_equals_scipys_gaussian_filter(sigma_px):
    image = np.random.default_rng(0).uniform(size=(30, 25)).astype(np.float32)
    expected = scipy.ndimage.gaussian_filter(image, sigma_px)
    np.testing.assert_allclose(
        module.gaussian_blur(jnp.asarray(image), sigma_px, 2.0), expected, atol=1e-5
    )


def test_contrast_and_gamma_are_their_formulas():
    image = np.random.default_rng(0).uniform(size=(8, 8)).astype(np.float32)
    expected = np.clip(image.mean() + 1.5 * (image - image.mean()), 0, 1)
    np.testing.assert_allclose(module.adjust_contrast(jnp.asarray(image), 1.5), expected, atol=1e-6)
    gamma = dataclasses.replace(OFF, gamma=(0.5, 2.0))
    done = _augment(jnp.broadcast_to(image, (200, 8, 8)), _keys(200), gamma)
    exponents = np.log(done) / np.log(image)
    np.testing.assert_allclose(exponents, exponents[:, :1, :1].repeat(8, 1).repeat(8, 2), rtol=1e-3)
    assert 0.499 < exponents.min() < 0.52
    assert 1.9 < exponents.max() <= 2.001


def test_noise_has_a_deviation_up_to_the_largest():
    done = _augment(jnp.full((200, 30, 30), 0.5), _keys(200), dataclasses.replace(OFF, noise=0.1))
    deviations = np.std(done, axis=(1, 2))
    assert deviations.min() < 0.005
    assert 0.09 < deviations.max() < 0.11
    assert abs(float(done.mean()) - 0.5) < 1e-3


def test_cutout_blanks_one_square_with_black_or_the_mean():
    images = 0.5 + _images(200)
    images = jnp.pad(images, ((0, 0), (2, 2), (2, 2)), constant_values=0.75)
    for is_black_outside in (True, False):
        cutout = dataclasses.replace(OFF, cutout=0.4, is_black_outside=is_black_outside)
        done = np.asarray(_augment(images, _keys(200), cutout))
        blank = done != images
        value = np.zeros(200) if is_black_outside else images.mean(axis=(1, 2))
        np.testing.assert_allclose(
            done[blank], np.broadcast_to(value[:, None, None], done.shape)[blank], rtol=1e-5
        )
        rows, columns = blank.any(axis=2).sum(axis=1), blank.any(axis=1).sum(axis=1)
        np.testing.assert_array_equal(blank.sum(axis=(1, 2)), rows * columns)
        assert rows.max() == columns.max() == 4


def test_mixup_mixes_neighbours_and_their_labels_by_one_share():
    images, targets = _images(64), jnp.eye(64)
    mixed, shares = (np.asarray(x) for x in _mixup(images, targets, _keys(64), 0.4))
    own = np.diag(shares)
    assert own.min() >= 0.5
    assert own.min() < 0.6
    partner = np.arange(64) ^ 1
    np.testing.assert_allclose(shares[np.arange(64), partner], 1 - own, atol=1e-6)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed, np.einsum("nm,mhw->nhw", shares, images), atol=1e-6)
    # Neighbours only, whatever else is in the batch.
    part, _ = _mixup(images[2:6], targets[2:6], _keys(64)[2:6], 0.4)
    np.testing.assert_allclose(part, mixed[2:6], rtol=1e-6)


_UNIT = st.floats(0, 1, width=32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), level=_UNIT, spread=_UNIT, is_black_outside=st.booleans())
def test_results_stay_in_0_to_1_and_finite(seed, level, spread, is_black_outside):
    low, high = sorted((level, spread))
    images = jax.random.uniform(jax.random.key(seed), (2, 12, 12), minval=low, maxval=high)
    settings = dataclasses.replace(STRONG, is_black_outside=is_black_outside, noise=0.5)
    done = np.asarray(_augment(images, _keys(2, seed), settings))
    assert np.all(np.isfinite(done))
    assert done.min() >= 0
    assert done.max() <= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("augment.rotation_deg", 45.0),
        ("augment.scale", (1.2, 0.8)),
        ("augment.scale", (0.0, 1.0)),
        ("augment.scale", (1.0,)),
        ("augment.aspect", 0.8),
        ("augment.shift", -0.1),
        ("augment.gamma", (0.0, 1.0)),
        ("augment.contrast", (float("nan"), 1.0)),
        ("augment.noise", 1.5),
        ("augment.blur_px", -1.0),
        ("augment.cutout", 1.0),
        ("augment.mixup", -0.2),
        ("train.label_smoothing", 1.0),
        ("train.ema_decay", 1.0),
    ],
)
def test_values_that_cannot_be_are_refused_by_field(field, value, tiny_config, prepared):
    _check(tiny_config, prepared)
    group, name = field.split(".")
    tiny_config[group][name] = value
    with pytest.raises(InputError, match=f"--config.{field}=.* must be "):
        _check(tiny_config, prepared)


def test_mixup_with_an_odd_number_of_slices_on_a_device_is_refused(tiny_config, prepared):
    tiny_config.augment.mixup = 0.2  # 8 slices on 8 devices
    with pytest.raises(InputError, match=r"augment\.mixup=0.2 mixes pairs .* a device 1 at a time"):
        _check(tiny_config, prepared)
    tiny_config.data.batch_size = 16
    _check(tiny_config, prepared)


def _check(config, prepared):
    from drenet_jax.data.prepared_data import open_data

    check_config(config, open_data(prepared))


def test_every_config_of_a_model_takes_a_preset():
    for path in cli.CONFIGS.glob("[a-z]*.py"):
        config_module = importlib.import_module(f"drenet_jax.configs.{path.stem}")
        if path.stem in ("audit", "augmentation", "node", "prepare", "serve"):
            continue
        assert config_module.get_config("strong").augment.rotation_deg == 15, path.stem
        # The recipe of docs/study.md is a fine-tuning with strong augmentation.
        preset = "strong" if path.stem == "covid_ct" else "paper"
        assert config_module.get_config().augment == config_module.get_config(preset).augment


def test_a_preset_that_does_not_exist_is_refused_in_one_sentence(capsys, monkeypatch):
    argv = ["train", f"--config={cli.CONFIGS / 'demo.py'}:strnog"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())

    def define():
        config_flags.DEFINE_config_file("config", flag_values=flags.FLAGS)

    with pytest.raises(SystemExit) as stop:
        cli._parse_flags(define, required=())
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: flag {argv[1]}: the augmentation 'strnog' must be one of")
    assert "Traceback" not in message


def test_fields_on_the_command_line_win_over_the_preset():
    flag_values = flags.FlagValues()
    argv = [
        "train",
        f"--config={cli.CONFIGS / 'demo.py'}:strong",
        "--config.augment.cutout=0.3",
        "--config.augment.gamma=(0.5, 2.0)",
    ]
    holder = config_flags.DEFINE_config_file(
        "config", flag_values=flag_values, sys_argv=argv, lock_config=True
    )
    flag_values(argv)
    assert holder.value.augment.cutout == 0.3
    assert holder.value.augment.gamma == (0.5, 2.0)
    assert holder.value.augment.rotation_deg == 15
