"""One training step, written for one device of many."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from drenet_jax import parallel
from drenet_jax.models.drenet import DRENet
from drenet_jax.training.augment import augment
from drenet_jax.training.losses import drenet_losses
from drenet_jax.training.state import TrainState

AUGMENT_STREAM, DROPOUT_STREAM = 0, 1


def make_train_step(
    model: DRENet,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ml_collections.ConfigDict,
) -> Callable:
    """`step(state, image, label) -> (state, metrics)` for one device; to be mapped over devices.

    `image` is uint8 [b, S, S] and `label` int32 [b], this device's part of the global batch, in
    order. Chance depends on (seed, step, place in the global batch) alone, so any number of devices
    draws the same. With `train.accumulate` = n the part is worked off in n micro-batches; their
    gradients are averaged, batch norms see one micro-batch (of all devices) at a time.
    """
    accumulate = config.train.accumulate

    def losses_of(params, batch_stats, image, label, keys):
        fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        image = augment(
            image.astype(jnp.float32) / 255,
            fold(keys, AUGMENT_STREAM),
            flip=config.data.flip,
            brightness=config.data.brightness,
        )
        outputs, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            dropout_keys=fold(keys, DROPOUT_STREAM),
            mutable=["batch_stats"],
        )
        losses = drenet_losses(outputs, label)
        accuracy = jnp.mean(jnp.argmax(outputs.logits, axis=1) == label)
        return losses["loss"], (updates["batch_stats"], {**losses, "accuracy": accuracy})

    gradient_of = jax.grad(losses_of, has_aux=True)

    def step(state: TrainState, image: jax.Array, label: jax.Array):
        keys = _slice_keys(config.seed, state.step, len(image))

        def micro_batch(carry, micro):
            batch_stats, total = carry
            gradient, (batch_stats, metrics) = gradient_of(state.params, batch_stats, *micro)
            total = jax.tree.map(jnp.add, total, gradient)
            return (batch_stats, total), metrics

        if accumulate == 1:
            gradient, (batch_stats, metrics) = gradient_of(
                state.params, state.batch_stats, image, label, keys
            )
        else:
            micro_batches = jax.tree.map(
                lambda x: x.reshape(accumulate, -1, *x.shape[1:]), (image, label, keys)
            )
            zeros = jax.tree.map(jnp.zeros_like, state.params)
            (batch_stats, total), stacked = jax.lax.scan(
                micro_batch, (state.batch_stats, zeros), micro_batches
            )
            gradient = jax.tree.map(lambda x: x / accumulate, total)
            metrics = jax.tree.map(jnp.mean, stacked)

        gradient, metrics = parallel.mean_over_devices((gradient, metrics))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics["learning_rate"] = schedule(state.step)
        metrics["gradient_norm"] = optax.global_norm(gradient)
        return TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        ), metrics

    return step


def _slice_keys(seed: int, step: jax.Array, slices: int) -> jax.Array:
    """A PRNG key for each slice on this device, by its place in the global batch."""
    place = parallel.device_index() * slices + jnp.arange(slices)
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, place)
