"""The crop against PyTorch, finite differences and plain NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drenet_jax.models.crops import box_attention, crop_and_resize, crop_slices
from drenet_jax.models.model_outputs import normalise

SIZE = 40


def _torch_crop(image: np.ndarray, box: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle of the crop, is not installed")
    y0, x0, y1, x1 = box
    pad = 200
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    cut = padded[y0 + pad : y1 + pad, x0 + pad : x1 + pad]
    tensor = torch.from_numpy(cut.transpose(2, 0, 1)[None].copy())
    resized = torch.nn.functional.interpolate(
        tensor, size=size, mode="bilinear", align_corners=True
    )
    return resized[0].numpy().transpose(1, 2, 0)


@settings(deadline=None, max_examples=40)
@given(
    y0=st.integers(-60, 60),
    x0=st.integers(-60, 60),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.sampled_from([(1, 1), (24, 24), (33, 16)]),
    seed=st.integers(0, 9),
)
def test_crop_equals_torch_inside_across_and_outside_the_border(y0, x0, height, width, size, seed):
    image = np.random.default_rng(seed).normal(size=(SIZE, SIZE, 2)).astype(np.float32)
    box = (y0, x0, y0 + height, x0 + width)
    ours = crop_and_resize(jnp.array([image]), jnp.array([[box]], jnp.float32), size)[0, 0]
    # A position of up to 60 pixels is rounded to 4e-6, and neighbours may differ by 6.
    np.testing.assert_allclose(ours, _torch_crop(image, box, size), atol=3e-5)


def test_crop_of_a_batch_takes_traced_boxes_under_jit():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, SIZE, SIZE, 3)).astype(np.float32)
    corner = rng.integers(-10, 30, (3, 4, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 30, (3, 4, 2))], axis=-1)
    crop = jax.jit(lambda images, boxes: crop_and_resize(images, boxes, (12, 9)))
    crops = crop(images, boxes.astype(np.float32))
    assert crops.shape == (3, 4, 12, 9, 3)
    for image, some, theirs in zip(images, crops, boxes, strict=True):
        for ours, box in zip(some, theirs, strict=True):
            np.testing.assert_allclose(ours, _torch_crop(image, tuple(box), (12, 9)), atol=1e-5)


def test_crops_by_products_and_their_gradients_are_those_by_gathers():
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        images = jnp.asarray(rng.normal(size=(2, SIZE, SIZE, 3)))
        corner = rng.uniform(-10, 30, (2, 5, 2))
        boxes = jnp.asarray(np.concatenate([corner, corner + rng.uniform(1, 30, (2, 5, 2))], -1))

        def found(platform):
            def total(images, boxes):
                crops = crop_and_resize(images, boxes, (12, 9), platform)
                return jnp.sum(jnp.sin(crops)), crops

            return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(images, boxes)

        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), found("tpu"), found("gpu")
        )


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_crops_of_slices_are_those_of_normalised_images(platform):
    rng = np.random.default_rng(4)
    images = jnp.asarray(rng.uniform(size=(2, SIZE, SIZE)), jnp.float32)
    corner = rng.uniform(-20, 30, (2, 5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 40, (2, 5, 2))], -1)
    boxes = jnp.asarray(boxes, jnp.float32)
    np.testing.assert_allclose(
        crop_slices(images, boxes, (12, 9), jnp.float32, platform),
        crop_and_resize(normalise(images), boxes, (12, 9)),
        atol=2e-5,
    )


def test_gradients_of_the_crop_equal_finite_differences():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        image = jnp.asarray(rng.normal(size=(1, 12, 12, 1)))
        # Off the pixel centres, where the bilinear surface has its folds.
        boxes = jnp.asarray([[[1.3, 2.4, 7.6, 9.1], [-3.7, 4.2, 5.9, 15.5]]])
        weights = jnp.asarray(rng.normal(size=(1, 2, 6, 5, 1)))

        @jax.jit
        def total(image, boxes):
            return jnp.sum(crop_and_resize(image, boxes, (6, 5)) * weights)

        step = 1e-5
        for argument in (0, 1):
            inputs = [image, boxes]
            gradient = np.asarray(jax.grad(total, argument)(*inputs))
            numeric = np.zeros(gradient.size)
            for i in range(gradient.size):
                delta = np.zeros(gradient.size)
                delta[i] = step
                delta = delta.reshape(gradient.shape)
                high, low = list(inputs), list(inputs)
                high[argument] = inputs[argument] + delta
                low[argument] = inputs[argument] - delta
                numeric[i] = (total(*high) - total(*low)) / (2 * step)
            np.testing.assert_allclose(gradient.ravel(), numeric, rtol=1e-6, atol=1e-8)


def test_attention_is_the_largest_confidence_of_the_boxes_that_hold_a_pixel():
    boxes = jnp.array([[[-2, -2, 4, 5], [2, 3, 9, 9]]], jnp.float32)
    confidences = jnp.array([[0.3, 0.7]], jnp.float32)
    expected = np.zeros((8, 10), np.float32)
    expected[0:4, 0:5] = 0.3
    expected[2:8, 3:9] = 0.7
    np.testing.assert_array_equal(box_attention(boxes, confidences, 8, 10)[0], expected)


def test_attention_passes_the_gradient_to_the_confidence_that_won():
    boxes = jnp.array([[[0, 0, 4, 4], [0, 0, 2, 2]]], jnp.float32)
    confidences = jnp.array([[0.3, 0.7]])
    gradient = jax.grad(lambda c: box_attention(boxes, c, 4, 4).sum())(confidences)
    np.testing.assert_allclose(gradient, [[12, 4]])
