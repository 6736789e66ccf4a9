"""The training state, the learning rate schedule and the optimizer."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Int32

from drenet_jax.errors import InputError
from drenet_jax.training.freezing import optimizer_groups

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that a run needs to resume.

    Attributes:
      step: updates made so far, int32.
      params: of the network.
      batch_stats: running mean and variance of its batch norms.
      opt_state: momentum.
      average: moving average of `params` and `batch_stats`, under these names; None without
        `train.ema_decay`.
    """

    # Of arrays on the host or on devices, and of shapes.
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any = None

    @property
    def weights(self) -> dict[str, Any]:
        """What is validated and saved as the result: the average, or the network as it is."""
        if self.average is not None:
            return self.average
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def rest(self) -> dict[str, Any]:
        """What else a run needs to resume, but for the step."""
        if self.average is None:
            return {"opt_state": self.opt_state}
        return {
            "opt_state": self.opt_state,
            "params": self.params,
            "batch_stats": self.batch_stats,
        }

    @classmethod
    def resumed(cls, step: int, weights: dict[str, Any], rest: dict[str, Any]) -> TrainState:
        """The state of which these are `weights` and `rest`."""
        average = weights if "params" in rest else None
        return cls(step=jnp.int32(step), average=average, **{**weights, **rest})


def learning_rate(
    config: ml_collections.ConfigDict, slices_in_epoch: int, batch_size: int
) -> optax.Schedule:
    """The learning rate at a step, after a linear rise over `optimizer.warmup_epochs`.

    "steps": `optimizer.learning_rate`, times `decay_factor` at each of the `decay_epochs`.
    "cosine": half a cosine wave from the end of the rise to the end of `train.epochs`, where
    `final_factor` of `learning_rate` is left.

    Raises:
      InputError: `optimizer.schedule` is neither, or leaves no epoch after the rise.
    """
    optimizer = config.optimizer

    def steps(epochs: float) -> int:
        return round(epochs * slices_in_epoch / batch_size)

    warmup_steps = steps(optimizer.warmup_epochs)
    if optimizer.schedule == "steps":
        decay = optax.piecewise_constant_schedule(
            optimizer.learning_rate,
            {steps(epoch): optimizer.decay_factor for epoch in optimizer.decay_epochs},
        )
    elif optimizer.schedule == "cosine":
        if optimizer.warmup_epochs >= config.train.epochs:
            raise InputError(
                f"--config.optimizer.warmup_epochs={optimizer.warmup_epochs} must be below "
                f"--config.train.epochs={config.train.epochs}."
            )
        cosine = optax.cosine_decay_schedule(
            optimizer.learning_rate,
            max(1, steps(config.train.epochs) - warmup_steps),
            alpha=optimizer.final_factor,
        )

        def decay(step: jax.typing.ArrayLike) -> jax.Array:
            return cosine(jnp.maximum(0, step - warmup_steps))

    else:
        raise InputError(
            f"--config.optimizer.schedule={optimizer.schedule!r} must be steps or cosine."
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        rise = jnp.minimum(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return jnp.asarray(decay(step) * rise)

    return schedule


def make_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """SGD with momentum, where weight decay is added to the gradient as in the authors' PyTorch
    code, or AdamW. `train.frozen_stages` of the backbone stay as they are, without weight decay
    too, and updates of the rest of it are multiplied by `optimizer.backbone_factor`.

    Raises:
      InputError: `optimizer.name` or `train.frozen_stages` cannot be.
    """
    optimizer = config.optimizer
    if optimizer.name == "sgd":
        rule = optax.chain(
            optax.add_decayed_weights(optimizer.weight_decay),
            optax.sgd(schedule, momentum=optimizer.momentum),
        )
    elif optimizer.name == "adamw":
        rule = optax.adamw(schedule, b1=optimizer.momentum, weight_decay=optimizer.weight_decay)
    else:
        raise InputError(f"--config.optimizer.name={optimizer.name!r} must be sgd or adamw.")
    if optimizer.backbone_factor == 1 and not config.train.frozen_stages:
        return rule
    return optax.multi_transform(
        {
            "frozen": optax.set_to_zero(),
            "backbone": optax.chain(rule, optax.scale(optimizer.backbone_factor)),
            "rest": rule,
        },
        functools.partial(optimizer_groups, config),
    )


def update_average(
    average: PyTree, weights: PyTree, step: Int32[Array, ""], decay: float
) -> PyTree:
    """An exponential moving average of weights (Polyak and Juditsky 1992), after an update.

    Args:
      average: before; None: there is none.
      weights: after the update.
      step: updates before this one. The first weights are random: as in TensorFlow's
        `ExponentialMovingAverage` the decay is at most (1 + step) / (10 + step).
      decay: of the average in an update, below 1.
    """
    if average is None:
        return None
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + share * (new - old), average, weights)


def create_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> TrainState:
    """The state before the first step, with an average if `ema_decay` is not 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        average={name: variables[name] for name in ("params", "batch_stats")}
        if ema_decay
        else None,
    )
