"""One step: micro-batches, frozen stages, the learning rate, the optimiser."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from drenet_jax import parallel
from drenet_jax.configs import augmentation
from drenet_jax.errors import InputError
from drenet_jax.models.backbones import resnet
from drenet_jax.models.backbones.registry import BACKBONES
from drenet_jax.models.build import build_model, init_variables, variable_shapes
from drenet_jax.training.freezing import (
    optimizer_groups,
)
from drenet_jax.training.state import TrainState, create_state, learning_rate, make_optimizer
from drenet_jax.training.step import make_train_step


@pytest.fixture
def one_device(monkeypatch):
    """Four slices do not go on eight devices."""
    device = jax.local_devices()[0]
    monkeypatch.setattr(jax, "local_devices", lambda process_index=0: [device])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)


@pytest.fixture
def short_resnet(monkeypatch):
    """A ResNet18 of half the depth, which is compiled sooner."""
    monkeypatch.setitem(resnet.ARCHITECTURES, "resnet18", (resnet.BasicBlock, (1, 1, 1, 1)))


def _small(config, name, dropout):
    config.model = {
        "name": name,
        "width": 2,
        "image_size_px": 32,
        "dropout": dropout,
        "dtype": "float32",
    }
    return config


def _slices(n):
    image = np.random.default_rng(0).integers(0, 255, (n, 32, 32), np.uint8)
    return np.arange(n, dtype=np.int32), image, (np.arange(n) % 3).astype(np.int32)


def _states(config, batch, n_steps):
    """The state before the first step, and after each."""
    model = build_model(config, 3)
    schedule = learning_rate(config, len(batch[0]), len(batch[0]))
    optimizer = make_optimizer(config, schedule)
    start = create_state(
        init_variables(model, config.seed), optimizer, ema_decay=config.train.ema_decay
    )
    step = make_train_step(model, optimizer, schedule, config)
    state, states = parallel.replicate(start), []
    for micro_batches in parallel.on_devices([batch] * n_steps, parts=config.train.accumulate):
        state, _ = step(state, micro_batches)
        states.append(parallel.to_host(state))
    return start, states


def _step(config, batch, n_steps=1):
    """The state before and after so many steps."""
    start, states = _states(config, batch, n_steps)
    return start, states[-1]


def _named(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(key.key for key in path): np.asarray(leaf, np.float64) for path, leaf in leaves}


@pytest.mark.parametrize(
    "recipe",
    [
        "paper",
        pytest.param("strong with mixup, smoothing and an average", marks=pytest.mark.slow),
    ],
)
def test_four_micro_batches_of_four_are_a_batch_of_sixteen(recipe, one_device, tiny_config):
    # With augmentation, dropout and momentum; without batch norm, which sees a micro-batch.
    config = _small(tiny_config, "vgg16", dropout=0.5)
    config.optimizer.learning_rate = 0.1
    if recipe != "paper":
        augmentation.strong(config)
        config.augment.mixup = 0.4
        config.train.update(label_smoothing=0.1, ema_decay=0.9)
    config.train.accumulate = 1
    start, whole = _step(config, _slices(16), n_steps=2)
    config.train.accumulate = 4
    _, parts = _step(config, _slices(16), n_steps=2)
    assert parts.step == 2
    start, whole, parts = (_named(state.weights["params"]) for state in (start, whole, parts))
    for name, expected in whole.items():
        np.testing.assert_allclose(parts[name], expected, rtol=1e-4, atol=1e-6, err_msg=str(name))
    assert any(np.abs(whole[name] - start[name]).max() > 1e-3 for name in whole)


def test_frozen_stages_keep_their_weights_and_statistics_and_the_others_do_not(
    one_device, short_resnet, tiny_config
):
    config = _small(tiny_config, "resnet18", dropout=0.0)
    config.train.frozen_stages = 2
    config.optimizer.weight_decay = 0.1
    start, end = _step(config, _slices(8))
    for collection in ("params", "batch_stats"):
        before, after = (_named(getattr(state, collection)) for state in (start, end))
        assert before.keys() == after.keys()
        for path, value in before.items():
            frozen = path[0] == "backbone" and path[1].startswith(
                ("conv1", "bn1", "layer1_", "layer2_")
            )
            assert np.array_equal(after[path], value) == frozen, path


def test_batch_norms_of_frozen_stages_use_the_statistics_that_they_keep(short_resnet, tiny_config):
    config = _small(tiny_config, "resnet18", dropout=0.0)
    model = build_model(config, 3)
    variables = init_variables(model, 0)
    image = _slices(4)[1] / 255
    expected = model.apply(variables, image, train=False).logits

    def logits(frozen_stages):
        config.train.frozen_stages = frozen_stages
        model = build_model(config, 3)
        apply = jax.vmap(
            lambda image: model.apply(variables, image, train=True, mutable=["batch_stats"]),
            axis_name=parallel.AXIS,
        )
        return apply(image[None])[0].logits[0]

    np.testing.assert_allclose(logits(4), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(logits(3) - expected).max() > 1e-2


def test_batch_norms_of_frozen_stages_are_at_rest_in_every_pass(short_resnet, tiny_config):
    tiny_config.model.update(batch_statistics="per_pass", width=2, dropout=0.0)
    tiny_config.train.frozen_stages = 2
    model = build_model(tiny_config, 3)
    variables = init_variables(model, 0)
    image = np.random.default_rng(0).uniform(size=(4, 96, 96)).astype(np.float32)
    apply = jax.jit(
        jax.vmap(
            lambda image: model.apply(variables, image, train=True, mutable=["batch_stats"]),
            axis_name=parallel.AXIS,
        )
    )
    updated = jax.tree.map(lambda x: x[0], apply(image[None])[1])
    before, after = (_named(tree["batch_stats"]) for tree in (variables, updated))
    assert before.keys() == after.keys()
    for path, value in before.items():
        is_frozen = path[1].startswith(("bn1", "layer1_", "layer2_"))
        assert value.shape[0] == 3
        for one_pass in range(3):
            assert np.array_equal(after[path][one_pass], value[one_pass]) == is_frozen, path


def test_the_backbones_learning_rate_has_a_factor(tiny_config):
    params = {"backbone": {"conv1": np.ones(3)}, "head": np.ones(3)}
    gradients = jax.tree.map(lambda x: 2 * x, params)
    tiny_config.optimizer.backbone_factor = 0.25
    for name in ("sgd", "adamw"):
        tiny_config.optimizer.name = name
        optimizer = make_optimizer(tiny_config, lambda step: 0.1)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose(
            updates["backbone"]["conv1"], 0.25 * updates["head"], rtol=1e-6, err_msg=name
        )
        assert np.all(updates["head"] < 0)


@pytest.mark.parametrize(
    ("architecture", "stages"),
    [
        ("resnet18", [{"conv1", "bn1", "layer1_0", "layer1_1"}, {"layer2_0", "layer2_1"}]),
        ("densenet121", [{"conv0", "norm0", "transition1"}, {"transition2"}]),
        ("vgg16", [{"features_0", "features_2"}, {"features_5", "features_7"}]),
        ("efficientnet_lite0", [{"conv_stem", "bn0", "blocks_0"}, {"blocks_1", "blocks_2"}]),
    ],
)
def test_every_part_of_a_backbone_has_a_stage(architecture, stages, tiny_config):
    config = _small(tiny_config, architecture, dropout=0.0)
    parts = variable_shapes(build_model(config, 2))["params"]["backbone"].keys()
    network = BACKBONES[architecture]
    n = network.stage_count(architecture)
    by_stage = [
        {part for part in parts if network.stage_of(architecture, part) == i + 1} for i in range(n)
    ]
    assert set.union(*by_stage) == set(parts)
    assert all(by_stage)
    for expected, stage in zip(stages, by_stage, strict=False):
        assert {part for part in stage if "denselayer" not in part} == expected
    config.train.frozen_stages = n
    groups = optimizer_groups(config, variable_shapes(build_model(config, 2))["params"])
    assert set(jax.tree.leaves(groups["backbone"])) == {"frozen"}
    assert set(jax.tree.leaves(groups["head"])) == {"rest"}


def test_the_learning_rate_rises_and_falls_by_epochs(tiny_config):
    tiny_config.optimizer.learning_rate = 0.1
    tiny_config.optimizer.warmup_epochs = 2.0
    tiny_config.optimizer.decay_epochs = (6, 9)
    schedule = learning_rate(tiny_config, slices_in_epoch=40, batch_size=8)
    at = [float(schedule(step)) for step in (0, 4, 9, 29, 31, 46)]
    np.testing.assert_allclose(at, [0.01, 0.05, 0.1, 0.1, 0.01, 0.001], rtol=1e-5)


def test_a_cosine_falls_from_the_end_of_the_rise_to_the_end_of_the_epochs(tiny_config):
    tiny_config.optimizer.update(
        schedule="cosine", learning_rate=0.1, warmup_epochs=2.0, final_factor=0.1
    )
    tiny_config.train.epochs = 12
    schedule = learning_rate(tiny_config, slices_in_epoch=40, batch_size=8)
    at = [float(schedule(step)) for step in (0, 9, 10, 35, 60, 70)]
    np.testing.assert_allclose(at, [0.01, 0.1, 0.1, 0.055, 0.01, 0.01], rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule", "line", "optimizer.schedule='line' must be steps or cosine"),
        ("warmup_epochs", 12.0, "optimizer.warmup_epochs=12.0 must be below --config.train.epochs"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(field, value, message, tiny_config):
    tiny_config.optimizer.schedule = "cosine"
    tiny_config.optimizer[field] = value
    tiny_config.train.epochs = 12
    with pytest.raises(InputError, match=message):
        learning_rate(tiny_config, slices_in_epoch=40, batch_size=8)


def test_the_average_follows_weights_and_statistics_and_changes_nothing_else(
    one_device, short_resnet, tiny_config
):
    config = _small(tiny_config, "resnet18", dropout=0.0)
    _, without = _states(config, _slices(4), n_steps=3)
    config.train.ema_decay = 0.15
    start, states = _states(config, _slices(4), n_steps=3)
    expected = start.weights
    # The decay is (1 + t) / (10 + t) at first.
    for decay, state in zip((1 / 10, 0.15, 0.15), states, strict=True):
        now = {"params": state.params, "batch_stats": state.batch_stats}
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, now)
        for path, value in _named(state.average).items():
            np.testing.assert_allclose(
                value, _named(expected)[path], rtol=1e-5, atol=1e-6, err_msg=str(path)
            )
    assert without[-1].average is None
    for a, b in zip(
        jax.tree.leaves(without[-1]), jax.tree.leaves(states[-1].replace(average=None)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    resumed = TrainState.resumed(3, states[-1].weights, states[-1].rest)
    jax.tree.map(np.testing.assert_array_equal, resumed, states[-1])


def test_sgd_equals_pytorchs_with_momentum_and_weight_decay(tiny_config):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=5), rng.normal(size=(4, 5))
    tiny_config.optimizer.weight_decay = 0.01
    optimizer = make_optimizer(tiny_config, lambda step: 0.1)
    ours = start.astype(np.float32)
    state = optimizer.init(ours)
    theirs = torch.nn.Parameter(torch.from_numpy(start.astype(np.float32)))
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    for gradient in gradients.astype(np.float32):
        updates, state = optimizer.update(gradient, state, ours)
        ours = ours + updates
        theirs.grad = torch.from_numpy(gradient)
        sgd.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)
