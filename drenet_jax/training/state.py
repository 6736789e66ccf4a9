"""What training changes step by step, and the rule by which it does."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from drenet_jax.errors import InputError


@flax.struct.dataclass
class TrainState:
    """Everything that a run needs to go on from where it was.

    Attributes:
      step: updates made so far.
      params: of the network.
      batch_stats: running mean and variance of its batch norms.
      opt_state: momentum.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def learning_rate(
    config: ml_collections.ConfigDict, slices_in_epoch: int, batch_size: int
) -> optax.Schedule:
    """The learning rate at a step: `optimizer.learning_rate`, times `decay_factor` at each of the
    `decay_epochs`, after a linear rise over `warmup_epochs`."""
    optimizer = config.optimizer

    def steps(epochs: float) -> int:
        return round(epochs * slices_in_epoch / batch_size)

    decay = optax.piecewise_constant_schedule(
        optimizer.learning_rate,
        {steps(epoch): optimizer.decay_factor for epoch in optimizer.decay_epochs},
    )
    warmup_steps = steps(optimizer.warmup_epochs)

    def schedule(step: jax.Array) -> jax.Array:
        rise = jnp.minimum(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return decay(step) * rise

    return schedule


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """SGD with momentum, where weight decay is added to the gradient as in the authors' PyTorch
    code, or AdamW.

    Raises:
      InputError: `optimizer.name` is neither.
    """
    optimizer = config.optimizer
    if optimizer.name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(optimizer.weight_decay),
            optax.sgd(schedule, momentum=optimizer.momentum),
        )
    if optimizer.name == "adamw":
        return optax.adamw(schedule, b1=optimizer.momentum, weight_decay=optimizer.weight_decay)
    raise InputError(f"--config.optimizer.name={optimizer.name!r} must be sgd or adamw.")


def create_state(variables: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )
