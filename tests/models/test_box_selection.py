"""Proposals that are not learned: random ones, and the same ones in every image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from drenet_jax import parallel
from drenet_jax.errors import InputError
from drenet_jax.models.build import build_model, init_variables
from drenet_jax.models.grad_cam import grad_cam
from drenet_jax.models.proposals import (
    Group,
    Level,
    anchor_boxes,
    grid_anchors,
    group_anchors,
    image_keys,
    pairwise_iou,
    random_scores,
    select_proposals,
)
from drenet_jax.models.slice_scorer import SliceScorer
from drenet_jax.training.losses import all_losses

PAPER = (Level(32, 48, (1.0,), (1.0,)), Level(64, 96, (1.0,), (1.0,)))


@pytest.fixture
def slices():
    return np.random.default_rng(0).integers(0, 256, (9, 96, 96), np.uint8)


def _model(config, selection):
    config.model.proposals = selection
    config.model.train_proposals = (3,)
    model = build_model(config, 3)
    return model, init_variables(model, 0)


def _forward(model, variables, slices):
    pixels = jnp.asarray(slices, jnp.float32) / 255
    return jax.jit(lambda *args: model.apply(*args, train=False))(variables, pixels)


def test_random_boxes_of_a_slice_do_not_depend_on_the_batch_or_the_devices(tiny_config, slices):
    model, variables = _model(tiny_config, "random")
    scored = SliceScorer(model, 8)(parallel.replicate(variables), slices)
    alone = _forward(model, variables, slices[5:6])
    np.testing.assert_array_equal(alone.boxes[0], scored["boxes"][5])
    np.testing.assert_allclose(alone.logits[0], scored["logits"][5], atol=1e-5)
    assert len(np.unique(scored["boxes"].reshape(9, -1), axis=0)) > 5
    np.testing.assert_array_equal(scored["scores"], 0)


def test_one_grey_level_of_one_pixel_changes_the_key_of_an_image(slices):
    pixels = jnp.asarray(slices[:1], jnp.float32) / 255
    changed = pixels.at[0, 7, 8].add(1 / 255)
    keys = [jax.random.key_data(image_keys(x)) for x in (pixels, pixels, changed)]
    np.testing.assert_array_equal(keys[0], keys[1])
    assert np.any(keys[0] != keys[2])


def test_random_boxes_are_drawn_evenly_and_overlap_as_learned_ones_may():
    boxes = anchor_boxes(PAPER, 448)
    scores = random_scores(jax.random.split(jax.random.key(0), 5000), len(boxes))
    _, selected = select_proposals(scores, PAPER, (Group(2, 6, 3),), 448, 0.25, [6])
    places = {tuple(box): i for i, box in enumerate(boxes.tolist())}
    first = np.bincount(
        [places[tuple(box)] for box in np.asarray(selected)[:, 0].tolist()], minlength=len(boxes)
    )
    assert stats.chisquare(first).pvalue > 0.01
    overlaps = [pairwise_iou(of_image) - np.eye(6) for of_image in np.asarray(selected)[:50]]
    assert np.max(overlaps) < 0.25


def test_random_boxes_of_a_training_pass_follow_the_keys_of_the_slices(tiny_config, slices):
    model, variables = _model(tiny_config, "random")
    apply = jax.jit(
        jax.vmap(
            lambda images, keys: model.apply(
                variables, images, train=True, dropout_keys=keys, mutable=["batch_stats"]
            )[0],
            axis_name=parallel.AXIS,
        )
    )
    images = jnp.asarray(slices[None, :3], jnp.float32) / 255
    keys = jax.random.split(jax.random.key(1), 3)[None]
    first = apply(images, keys)
    again = apply(images[:, ::-1], keys[:, ::-1])
    others = apply(images, keys.at[0, 0].set(jax.random.key(2)))
    np.testing.assert_array_equal(first.boxes, again.boxes[:, ::-1])
    np.testing.assert_array_equal(first.boxes[:, 1:], others.boxes[:, 1:])
    assert np.any(first.boxes[:, 0] != others.boxes[:, 0])
    losses = all_losses(jax.tree.map(lambda x: x[0], first), jnp.arange(3), rank_factor=None)
    assert set(losses) == {"loss", "raw", "concat", "parts"}
    assert losses["loss"] == losses["raw"] + losses["concat"] + losses["parts"]


def test_the_grid_is_the_same_in_every_image_and_grad_cam_sees_it(tiny_config, slices):
    model, variables = _model(tiny_config, "grid")
    pixels = jnp.asarray(slices[:3], jnp.float32) / 255
    outputs, heat = jax.jit(lambda x: grad_cam(model, variables, x))(pixels)
    np.testing.assert_array_equal(outputs.boxes, np.tile(outputs.boxes[:1], (3, 1, 1)))
    np.testing.assert_array_equal(outputs.scores, 0)
    ((_, boxes, iou),) = group_anchors(model.levels, model.groups, 96)
    expected = boxes[grid_anchors(boxes, iou, 96, model.nms_iou, 2)]
    np.testing.assert_array_equal(outputs.boxes[0], expected)
    assert np.any(heat.image)
    assert heat.crops.shape == (3, 3, 2, 1, 1)


def test_the_grid_takes_the_anchors_that_a_plain_search_takes():
    levels = (Level(32, 24, (1.0,), (0.5, 1.0)), Level(64, 48, (1.0,), (1.0,)))
    boxes = anchor_boxes(levels, 128)
    iou = pairwise_iou(boxes)
    y, x = np.meshgrid(np.arange(1, 128, 2), np.arange(1, 128, 2), indexing="ij")
    picks: list[int] = []
    for _ in range(4):
        sums = []
        for i in range(len(boxes)):
            distances = [
                np.maximum(np.maximum(y0 - y, y - y1 + 1), 0) ** 2
                + np.maximum(np.maximum(x0 - x, x - x1 + 1), 0) ** 2
                for y0, x0, y1, x1 in boxes[[*picks, i]]
            ]
            allowed = all(iou[i, pick] < 0.25 for pick in picks)
            sums.append(np.min(distances, axis=0).sum() if allowed else np.inf)
        picks.append(int(np.argmin(sums)))
    assert grid_anchors(boxes, iou, 128, 0.25, 4) == picks


def test_the_grid_of_the_paper_starts_at_the_centre_of_the_image():
    boxes = anchor_boxes(PAPER, 448)
    y0, x0, y1, x1 = boxes[grid_anchors(boxes, pairwise_iou(boxes), 448, 0.25, 6)[0]]
    assert (y0 + y1) / 2 == (x0 + x1) / 2 == 224


def test_without_a_proposal_head_all_other_weights_start_alike(tiny_config):
    variables = {name: _model(tiny_config, name)[1] for name in ("learned", "random", "grid")}
    learned = variables.pop("learned")
    assert learned["params"].pop("proposal_head")
    for other in variables.values():
        jax.tree.map(np.testing.assert_array_equal, other, learned)


def test_a_selection_that_does_not_exist_is_reported_by_field(tiny_config):
    tiny_config.model.proposals = "centre"
    with pytest.raises(
        InputError, match=r"model\.proposals=centre is none of learned, random, grid"
    ):
        build_model(tiny_config, 3)


def test_a_config_without_the_field_has_learned_proposals(tiny_config):
    del tiny_config.model.proposals
    assert build_model(tiny_config, 3).selection == "learned"
