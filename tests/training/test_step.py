"""One step: micro-batches, the learning rate, the optimiser."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from drenet_jax import parallel
from drenet_jax.models.build import build_model, init_variables
from drenet_jax.training.state import create_state, learning_rate, make_optimizer
from drenet_jax.training.step import make_train_step


def _step(config, image, label):
    """The state after one step."""
    model = build_model(config, 3)
    schedule = learning_rate(config, len(image), len(image))
    optimizer = make_optimizer(config, schedule)
    state = create_state(init_variables(model, config.seed), optimizer)
    step = make_train_step(model, optimizer, schedule, config)
    state, _ = step(parallel.replicate(state), image, label)
    return parallel.to_host(state)


def test_accumulation_averages_the_gradients_of_its_micro_batches(tiny_config):
    tiny_config.model.dropout = 0.0
    tiny_config.data.flip = False
    tiny_config.data.brightness = 0.0
    image = np.random.default_rng(0).integers(0, 255, (8, 96, 96), np.uint8)
    label = (np.arange(8) % 3).astype(np.int32)
    whole = _step(tiny_config, image, label)
    tiny_config.train.accumulate = 2
    # The same half twice, so that both micro-batches have the batch norm of the whole.
    halves = _step(tiny_config, np.concatenate([image] * 2), np.concatenate([label] * 2))
    assert halves.step == 1
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(halves.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)


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
