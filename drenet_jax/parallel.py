"""All that knows about pmap: one process drives its local devices, `AXIS` joins all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.jax_utils
import jax
import numpy as np
from jax import lax

from drenet_jax.errors import InputError

# The pmap axis over which gradients and batch statistics are averaged.
AXIS = "batch"

PyTree = Any


def mean_over_devices(tree: PyTree) -> PyTree:
    """Inside a mapped function: the mean over all devices of all hosts."""
    return lax.pmean(tree, AXIS)


def map_over_devices(function: Callable, *, donate: tuple[int, ...] = ()) -> Callable:
    """`function` on every local device at once.

    Args:
      function: of arrays whose leading axis is split over devices; it may use `AXIS`.
      donate: positions of arguments whose memory the result may take over. Such an argument must
        not be used again: on two or more CPU devices that is a segmentation fault.
    """
    return jax.pmap(function, axis_name=AXIS, donate_argnums=donate)


def replicate(tree: PyTree) -> PyTree:
    """A copy of `tree` on every local device."""
    # Through pmap, so that the copies are laid out as a mapped function returns them: the second
    # call of a training step would be compiled anew otherwise.
    return jax.pmap(lambda x: x, axis_name=AXIS)(flax.jax_utils.replicate(tree))


def unreplicate(tree: PyTree) -> PyTree:
    """One device's copy of a replicated `tree`."""
    return flax.jax_utils.unreplicate(tree)


def to_host(tree: PyTree) -> PyTree:
    """A replicated `tree` as NumPy arrays of their own.

    A copy, since on CPU NumPy would look into the device's memory, which a step that donates it
    writes over while a checkpoint is still being saved in the background.
    """
    return jax.tree.map(lambda x: np.array(x, copy=True), unreplicate(tree))


def shard(batch: PyTree) -> PyTree:
    """[B, ...] -> [local devices, B / local devices, ...], for every array of `batch`."""
    n = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)


def unshard(tree: PyTree) -> PyTree:
    """[local devices, b, ...] -> NumPy [local devices · b, ...], for every array of `tree`."""
    return jax.tree.map(
        lambda x: np.asarray(x).reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree
    )


def round_up_to_devices(batch_size: int) -> int:
    """The smallest multiple of the number of local devices that is not below `batch_size`."""
    n = jax.local_device_count()
    return -(-batch_size // n) * n


@contextlib.contextmanager
def out_of_memory_told(message: str) -> Iterator[None]:
    """Turns the devices' "out of memory" into an InputError with this message."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not any(text in str(error) for text in ("RESOURCE_EXHAUSTED", "Out of memory")):
            raise
        raise InputError(f"{message}.") from error


def check_batch_size(batch_size: int, accumulate: int) -> None:
    """Raises InputError unless the global batch splits evenly over devices and micro-batches."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % (devices * accumulate):
        raise InputError(
            f"--config.data.batch_size={batch_size} must be a multiple of the {devices} devices "
            f"times --config.train.accumulate={accumulate}."
        )
