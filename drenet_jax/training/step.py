"""One training step over all devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float, Int32, Key, UInt8, UInt32

from drenet_jax import parallel
from drenet_jax.models.build import Model, selection
from drenet_jax.training import freezing
from drenet_jax.training.augment import Augmentation, augment, mixup
from drenet_jax.training.losses import all_losses, soft_targets
from drenet_jax.training.proposal_monitor import proposal_metrics
from drenet_jax.training.state import TrainState, update_average

AUGMENT_STREAM, DROPOUT_STREAM = 0, 1

PyTree = Any
# On one device, as all that follows.
Metrics = dict[str, Float[Array, ""]]
Seed = UInt32[Array, " key"]
Positions = Int32[Array, " batch"]
Labels = Int32[Array, " batch"]
Images = UInt8[Array, "batch height width"]


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ml_collections.ConfigDict,
    *,
    class_weights: np.ndarray | None = None,
) -> Callable[..., Any]:
    """`step(state, micro_batches) -> (state, metrics)`; state and metrics are replicated.

    `micro_batches` are this host's parts of the `train.accumulate` micro-batches of a step, on the
    devices (`parallel.on_devices`): position in the global batch, uint8 images and labels
    (`batches.train_batches`). They are processed one after the other over all devices, and their
    gradients are averaged; batch norms see one micro-batch at a time, on all devices together.
    Randomness depends on (seed, step, position) alone, not on the number of devices and hosts.

    The state is donated: it must not be used again.
    """
    accumulate = config.train.accumulate
    gradient = make_gradient(model, config, class_weights)
    update = make_update(optimizer, schedule, accumulate, ema_decay=config.train.ema_decay)
    seed = replicated_seed(config)

    if accumulate == 1:
        # One program: gradients are used where they are made, and the host passes the state once.
        whole_step = parallel.map_over_devices(make_whole_step(gradient, update), donate=(0,))
        return lambda state, micro_batches: whole_step(state, seed, *micro_batches[0])

    gradient_on_devices = parallel.map_over_devices(gradient)
    add_on_devices = parallel.map_over_devices(
        lambda a, b: jax.tree.map(jnp.add, a, b), donate=(0,)
    )
    update_on_devices = parallel.map_over_devices(update, donate=(0,))

    def step(
        state: TrainState, micro_batches: Sequence[tuple[Any, ...]]
    ) -> tuple[TrainState, PyTree]:
        total, batch_stats = None, state.batch_stats
        # Calls of one compiled program rather than a loop inside it: on CPU, XLA runs convolutions
        # within a loop on a single core.
        for micro_batch in micro_batches:
            sums, batch_stats = gradient_on_devices(
                state.params, batch_stats, seed, state.step, *micro_batch
            )
            total = sums if total is None else add_on_devices(total, sums)
        return update_on_devices(state, total, batch_stats)

    return step


def make_whole_step(gradient: Callable[..., Any], update: Callable[..., Any]) -> Callable[..., Any]:
    """For one device: a step of a single micro-batch, of `make_gradient` and `make_update`."""

    def whole_step(
        state: TrainState, seed: Seed, position: Positions, image: Images, label: Labels
    ) -> tuple[TrainState, Metrics]:
        total, batch_stats = gradient(
            state.params, state.batch_stats, seed, state.step, position, image, label
        )
        return update(state, total, batch_stats)

    return whole_step


def replicated_seed(config: ml_collections.ConfigDict) -> UInt32[Array, "devices key"]:
    """The seed as an argument of a step, so that one compiled program serves all seeds."""
    return parallel.replicate(jax.random.key_data(jax.random.key(config.seed)))


def make_gradient(
    model: Model, config: ml_collections.ConfigDict, class_weights: np.ndarray | None
) -> Callable[..., Any]:
    """For one device: the gradient and the metrics of a micro-batch, and new batch statistics."""
    is_learned = selection(config.model) == "learned"
    augmentation = Augmentation.from_config(config)
    smoothing = config.train.label_smoothing

    def losses_of(
        params: PyTree,
        batch_stats: PyTree,
        keys: Key[Array, " batch"],
        image: Images,
        label: Labels,
    ) -> tuple[Float[Array, ""], tuple[PyTree, Metrics]]:
        fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        augment_keys = fold(keys, AUGMENT_STREAM)
        augmented = augment(image.astype(jnp.float32) / 255, augment_keys, augmentation)
        target = label
        if smoothing or augmentation.mixup:
            augmented, target = mixup(
                augmented,
                soft_targets(label, model.classes, smoothing),
                augment_keys,
                augmentation.mixup,
            )
        params = freezing.stop_frozen_gradients(config, params)
        outputs, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            augmented,
            train=True,
            dropout_keys=fold(keys, DROPOUT_STREAM),
            mutable=["batch_stats"],
        )
        losses = all_losses(
            outputs,
            target,
            class_weights,
            rank_factor=config.train.rank_factor if is_learned else None,
        )
        metrics = {**losses, "accuracy": jnp.mean(jnp.argmax(outputs.logits, axis=1) == label)}
        if is_learned:
            metrics |= proposal_metrics(outputs, target)
        return losses["loss"], (updates["batch_stats"], metrics)

    def gradient(
        params: PyTree,
        batch_stats: PyTree,
        seed: Seed,
        step: Int32[Array, ""],
        position: Positions,
        image: Images,
        label: Labels,
    ) -> tuple[tuple[PyTree, Metrics], PyTree]:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed), step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, position)
        gradients, (batch_stats, metrics) = jax.grad(losses_of, has_aux=True)(
            params, batch_stats, keys, image, label
        )
        return (gradients, metrics), batch_stats

    return gradient


def make_update(
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulate: int,
    *,
    ema_decay: float = 0.0,
) -> Callable[..., Any]:
    """For one device: the state after a step, from the sums over its micro-batches."""

    def update(
        state: TrainState, total: tuple[PyTree, Metrics], batch_stats: PyTree
    ) -> tuple[TrainState, Metrics]:
        gradient, metrics = parallel.mean_over_devices(
            jax.tree.map(lambda x: x / accumulate, total)
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics["learning_rate"] = schedule(state.step)
        metrics["gradient_norm"] = optax.global_norm(gradient)
        params = optax.apply_updates(state.params, updates)
        return TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            average=update_average(
                state.average,
                {"params": params, "batch_stats": batch_stats},
                state.step,
                ema_decay,
            ),
        ), metrics

    return update
