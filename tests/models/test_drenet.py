"""The whole network: shapes, gradients, and what depends on what."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drenet_jax import parallel
from drenet_jax.errors import InputError
from drenet_jax.models.build import build_model, init_variables
from drenet_jax.training.losses import all_losses

BATCH = 3


@pytest.fixture
def images():
    return jax.random.uniform(jax.random.key(7), (BATCH, 96, 96))


def _train_pass(model, variables, images, keys=None):
    if keys is None:
        keys = jax.random.split(jax.random.key(3), len(images))

    def forward(images, keys):
        return model.apply(
            variables, images, train=True, dropout_keys=keys, mutable=["batch_stats"]
        )

    # Batch statistics are averaged over a mapped axis, here of one device.
    mapped = jax.jit(jax.vmap(forward, axis_name=parallel.AXIS))
    return jax.tree.map(lambda x: x[0], mapped(images[None], keys[None]))


def _train_passes(model, variables, images, n):
    """The outputs of the last of `n` passes over the same images, and the statistics after it."""
    keys = jax.random.split(jax.random.key(3), len(images))

    def forward(images):
        def one(statistics, _):
            outputs, updated = model.apply(
                {**variables, **statistics},
                images,
                train=True,
                dropout_keys=keys,
                mutable=["batch_stats"],
            )
            return updated, outputs

        updated, outputs = jax.lax.scan(one, {"batch_stats": variables["batch_stats"]}, length=n)
        return jax.tree.map(lambda x: x[-1], outputs), updated

    mapped = jax.jit(jax.vmap(forward, axis_name=parallel.AXIS))
    return jax.tree.map(lambda x: x[0], mapped(images[None]))


def _eval_pass(model, variables, images):
    return jax.jit(lambda *args: model.apply(*args, train=False))(variables, images)


def test_outputs_have_the_shapes_of_the_design(tiny_config, images):
    tiny_config.model.train_proposals = (3,)
    model = build_model(tiny_config, 3)
    variables = init_variables(model, 0)
    outputs = _eval_pass(model, variables, images)
    assert outputs.logits.shape == outputs.raw_logits.shape == (BATCH, 3)
    assert outputs.part_logits.shape == (BATCH, 2, 3)
    assert outputs.scores.shape == (BATCH, 2)
    assert outputs.boxes.shape == (BATCH, 2, 4)
    training, _ = _train_pass(model, variables, images)
    assert training.part_logits.shape == (BATCH, 3, 3)
    for leaf in jax.tree.leaves(training):
        assert leaf.dtype == jnp.float32


def test_a_slice_is_scored_alike_alone_and_in_a_batch(tiny_config, images):
    model = build_model(tiny_config, 3)
    variables = init_variables(model, 0)
    together = _eval_pass(model, variables, images)
    alone = _eval_pass(model, variables, images[1:2])
    np.testing.assert_allclose(alone.logits[0], together.logits[1], atol=1e-5)


def test_every_parameter_gets_a_gradient(tiny_config, images):
    # So many proposals that both levels are among them.
    tiny_config.model.nms_iou = 0.9
    tiny_config.model.train_proposals = tiny_config.model.top_k = (8,)
    model = build_model(tiny_config, 3)
    variables = init_variables(model, 0)
    label = jnp.array([0, 1, 2])

    def loss(params):
        outputs, _ = _train_pass(model, {**variables, "params": params}, images)
        return all_losses(outputs, label)["loss"]

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.any(leaf), jax.tree_util.keystr(path)


@pytest.mark.parametrize("loss_name", ["rank", pytest.param("concat", marks=pytest.mark.slow)])
def test_the_proposal_head_learns_from_ranking_and_through_the_weighted_image(
    loss_name, tiny_config, images
):
    # So many proposals that both levels are among them.
    tiny_config.model.nms_iou = 0.9
    tiny_config.model.train_proposals = tiny_config.model.top_k = (8,)
    model = build_model(tiny_config, 3)
    variables = init_variables(model, 0)
    label = jnp.array([0, 1, 2])

    def loss(params):
        outputs, _ = _train_pass(model, {**variables, "params": params}, images)
        return all_losses(outputs, label)[loss_name]

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["proposal_head"]))
    if loss_name == "rank":
        # The head reads the feature map but must not bend it.
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["backbone"]))


@pytest.mark.slow
def test_a_detached_weighted_image_shows_the_same_and_teaches_the_scores_nothing(
    tiny_config, images
):
    label, found = jnp.array([0, 1, 2]), {}
    for context in ("weighted", "weighted_detached"):
        tiny_config.model.context = context
        model = build_model(tiny_config, 3)
        variables = init_variables(model, 0)

        def loss(params, model=model, variables=variables):
            outputs, _ = _train_pass(model, {**variables, "params": params}, images)
            return all_losses(outputs, label)["concat"], outputs.logits

        found[context] = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    (through, logits), (detached, detached_logits) = found.values()
    np.testing.assert_array_equal(logits, detached_logits)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(through.pop("proposal_head")))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(detached.pop("proposal_head")))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), through, detached)


def test_each_pass_may_have_running_statistics_of_its_own(tiny_config, images):
    tiny_config.model.dropout = 0.0
    tiny_config.model.train_proposals = tiny_config.model.top_k
    found = {}
    for kind in ("shared", "per_pass"):
        tiny_config.model.batch_statistics = kind
        model = build_model(tiny_config, 3)
        variables = init_variables(model, 0)
        # Nothing but the statistics is another: first predictions and training passes are the same.
        found[kind] = [_eval_pass(model, variables, images)]
        outputs, updated = _train_passes(model, variables, images, 100)
        found[kind] += [outputs, _eval_pass(model, {**variables, **updated}, images)]
    statistics = updated["batch_stats"]
    for shared, own in zip(*(found[kind][:2] for kind in found), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), shared, own)
    assert {leaf.shape[:-1] for leaf in jax.tree.leaves(statistics)} == {(3,)}
    # In the end the running statistics are those of the only batch there is, pass by pass; shared
    # ones are a mixture that suits none. (The running variance is a batch's own, as in training.)
    _, training, predicted = found["per_pass"]
    np.testing.assert_allclose(predicted.logits, training.logits, atol=2e-3)
    _, training, predicted = found["shared"]
    assert np.abs(predicted.logits - training.logits).max() > 0.01
    assert np.abs(predicted.raw_logits - training.raw_logits).max() > 0.01


def test_dropout_of_a_slice_depends_on_its_own_key_only(tiny_config, images):
    model = build_model(tiny_config, 3)
    variables = init_variables(model, 0)
    keys = jax.random.split(jax.random.key(3), BATCH)
    first, _ = _train_pass(model, variables, images, keys)
    again, _ = _train_pass(model, variables, images, keys)
    others, _ = _train_pass(model, variables, images, keys.at[0].set(jax.random.key(9)))
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.allclose(first.logits[0], others.logits[0])
    np.testing.assert_allclose(first.logits[1:], others.logits[1:], atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "alexnet"),
        ("backbone", "resnet19"),
        ("batch_statistics", "mine"),
        ("dtype", "float16"),
        ("top_k", (9,)),
        ("dropout", 1.0),
        ("anchor_strides_px", (16, 32)),
        ("anchor_sizes_px", (48,)),
        ("train_proposals", (60,)),
    ],
)
def test_a_config_that_cannot_be_built_is_reported_by_field(field, value, tiny_config):
    tiny_config.model[field] = value
    with pytest.raises(InputError, match=f"--config.model.{field}="):
        build_model(tiny_config, 3)
