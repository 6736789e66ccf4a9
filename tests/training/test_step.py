"""One step on one device, on eight, and in micro-batches."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from drenet_jax import parallel
from drenet_jax.models.build import build_model, init_variables
from drenet_jax.training.state import create_state, learning_rate, make_optimizer
from drenet_jax.training.step import make_train_step


def _run(config, devices, image, label, steps=2):
    """The state after some steps on so many devices; always the same batch."""
    model = build_model(config, 3)
    schedule = learning_rate(config, len(image), len(image))
    optimizer = make_optimizer(config, schedule)
    state = create_state(init_variables(model, config.seed), optimizer)
    step = jax.pmap(
        make_train_step(model, optimizer, schedule, config),
        axis_name=parallel.AXIS,
        devices=jax.devices()[:devices],
    )
    replicated = jax.tree.map(lambda x: np.stack([x] * devices), state)
    batch = [x.reshape(devices, -1, *x.shape[1:]) for x in (image, label)]
    for _ in range(steps):
        replicated, metrics = step(replicated, *batch)
    return jax.tree.map(lambda x: np.asarray(x)[0], (replicated, metrics))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (8, 96, 96), np.uint8), (np.arange(8) % 3).astype(np.int32)


def test_eight_devices_make_the_step_of_one(tiny_config, batch):
    assert jax.device_count() == 8
    one, one_metrics = _run(tiny_config, 1, *batch)
    eight, eight_metrics = _run(tiny_config, 8, *batch)
    for name, value in one_metrics.items():
        np.testing.assert_allclose(eight_metrics[name], value, rtol=1e-3, err_msg=name)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(eight), strict=True
    ):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))


def test_accumulation_averages_the_gradients_of_its_micro_batches(tiny_config, batch):
    tiny_config.model.dropout = 0.0
    tiny_config.data.flip = False
    tiny_config.data.brightness = 0.0
    image, label = batch
    # Twice the same half: both micro-batches have the batch norm of the whole.
    image, label = np.concatenate([image[:4]] * 2), np.concatenate([label[:4]] * 2)
    whole, _ = _run(tiny_config, 1, image, label, steps=1)
    tiny_config.train.accumulate = 2
    halves, _ = _run(tiny_config, 1, image, label, steps=1)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(halves.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_rises_and_falls_by_epochs(tiny_config):
    tiny_config.optimizer.learning_rate = 0.1
    tiny_config.optimizer.warmup_epochs = 2.0
    tiny_config.optimizer.decay_epochs = (6, 9)
    schedule = learning_rate(tiny_config, slices_in_epoch=40, batch_size=8)
    at = [float(schedule(step)) for step in (0, 4, 9, 29, 31, 46)]
    np.testing.assert_allclose(at, [0.01, 0.05, 0.1, 0.1, 0.01, 0.001], rtol=1e-5)


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
