"""All that knows about pmap and hosts: each process drives its local devices, `AXIS` joins all.

Arrays on devices have a leading axis with an entry for each device: of this host where there is one
host, of all hosts ("global arrays") where there are several.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from drenet_jax.errors import InputError, one_line

# The pmap axis over which gradients and batch statistics are averaged.
AXIS = "batch"

# Batches that are on the devices before the step that takes them.
_AHEAD = 2

# How long a host that is done, or has failed, waits for the others before it leaves.
_SHUTDOWN_TIMEOUT_S = 60

PyTree = Any


def start_hosts(
    coordinator: str = "", num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run on several hosts; does nothing for a run on one.

    They are those that the arguments name, the tasks of a Slurm step (`srun`), or the workers of a
    TPU pod. Must be called before anything is computed.

    Args:
      coordinator: host:port of the first process, at which the others can reach it.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      InputError: some of the three are missing, do not fit each other, or the others are not
        reached.
    """
    named = [bool(coordinator), num_processes is not None, process_id is not None]
    if any(named):
        if not coordinator or num_processes is None or process_id is None:
            raise InputError(
                "--coordinator, --num_processes and --process_id belong together; give all three "
                "or none."
            )
        _check_processes(coordinator, num_processes, process_id)
        _join(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        # JAX gives a Slurm task one device only, which is right for one task per device.
        one_per_node = os.environ.get("SLURM_STEP_NUM_NODES") == os.environ["SLURM_STEP_NUM_TASKS"]
        _join(local_device_ids=[] if one_per_node else None)
    elif importlib.util.find_spec("libtpu"):
        # JAX finds no hosts where there is no TPU.
        with contextlib.suppress(ValueError):
            _join()


def _check_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--coordinator={coordinator} must be host:port.")
    if num_processes < 1:
        raise InputError(f"--num_processes={num_processes} must be 1 or more.")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1}, as "
            f"--num_processes={num_processes}."
        )


def _join(**kwargs) -> None:
    # Its handler of SIGTERM would take the place of ours (`training/stopping.py`).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S, **kwargs)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            "the hosts of the run do not reach each other (--coordinator, or Slurm's or the TPU "
            f"pod's own settings): {one_line(error)}; check that all were "
            "started, and that the coordinator's port is open."
        ) from error
    if host_count() > 1 and jax.default_backend() == "cpu":
        # Only the first host writes to the cache. Where the others do not see its folder, its lead
        # over them can be more than the 30 seconds that CPU hosts wait for each other.
        jax.config.update("jax_enable_compilation_cache", False)


def host_count() -> int:
    """How many processes share the run."""
    return jax.process_count()


def is_first_host() -> bool:
    """Whether this process writes the files and messages of the run."""
    return jax.process_index() == 0


def wait_for_hosts(point: str) -> None:
    """Returns when all hosts have come to `point`."""
    if host_count() > 1:
        multihost_utils.sync_global_devices(point)


def host_slice(size: int) -> slice:
    """Which of `size` slices in a row are this host's; hosts follow each other."""
    per_host = size // host_count()
    return slice(jax.process_index() * per_host, (jax.process_index() + 1) * per_host)


def gather_rows(parts: np.ndarray) -> np.ndarray:
    """The rows of all hosts, where each has processed its `host_slice` of every batch.

    Args:
      parts: [batches, rows, ...], this host's; of one shape on all hosts.

    Returns:
      [batches · hosts · rows, ...], in the order of the batches.
    """
    by_host = multihost_utils.process_allgather(parts)
    return np.moveaxis(by_host, 0, 1).reshape(-1, *parts.shape[2:])


def on_any_host(wanted: bool) -> bool:
    """Whether `wanted` holds on any host; a barrier, which all hosts must call."""
    return bool(np.any(multihost_utils.process_allgather(np.array(wanted))))


class AnyAcrossHosts:
    """Whether `wanted` holds on any host, with the same answer on all after the same call."""

    def __init__(self) -> None:
        self._largest = map_over_devices(lambda x: lax.pmax(x, AXIS))
        self._late: jax.Array | None = None

    def __call__(self, wanted: bool) -> bool:
        """All hosts must call it equally often.

        With several hosts the answer is that of the call before, so that none has to wait.
        """
        if host_count() == 1:
            return wanted
        own = np.full(jax.local_device_count(), wanted, np.int32)
        late, self._late = self._late, self._largest(_put(own))
        return late is not None and bool(to_host(late))


def mean_over_devices(tree: PyTree) -> PyTree:
    """Inside a mapped function: the mean over all devices of all hosts."""
    return lax.pmean(tree, AXIS)


def map_over_devices(function: Callable, *, donate: tuple[int, ...] = ()) -> Callable:
    """`function` on every local device at once. With several hosts, all must call it alike.

    Args:
      function: of arrays whose leading axis is split over devices; it may use `AXIS`.
      donate: positions of arguments whose memory the result may take over. Such an argument must
        not be used again: on two or more CPU devices that is a segmentation fault.
    """
    if host_count() == 1:
        return jax.pmap(function, axis_name=AXIS, donate_argnums=donate)
    # With several hosts pmap turns each array of each call into a global one and back, in Python.
    return map_over_mesh(function, _mesh(), donate=donate)


def map_over_mesh(
    function: Callable, mesh: jax.sharding.Mesh, *, donate: tuple[int, ...] = ()
) -> Callable:
    """What pmap makes of `function`, over the devices of a mesh, which may be described only.

    Args:
      function: as for `map_over_devices`.
      mesh: with the one axis `AXIS`.
      donate: as for `map_over_devices`.
    """

    def on_one_device(*args: PyTree) -> PyTree:
        result = function(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], result)

    mapped = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=jax.P(AXIS), out_specs=jax.P(AXIS), check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate)


def replicate(tree: PyTree) -> PyTree:
    """A copy of `tree` on every device."""
    # Through a mapped function, so that the copies are laid out as one returns them: the second
    # call of a training step would be compiled anew otherwise. It also makes them JAX's own: a
    # step that donates them must not write over NumPy's memory.
    return map_over_devices(lambda x: x)(put_on_devices(tree))


def put_on_devices(tree: PyTree) -> PyTree:
    """As `replicate`, for arrays that no function takes over: nothing is compiled for it.

    On CPU the result may look into the memory of `tree`, which must then stay as it is.
    """
    n = jax.local_device_count()
    return _put(jax.tree.map(lambda x: np.broadcast_to(x, (n, *np.shape(x))), tree))


def replicated_shapes(shapes: PyTree) -> PyTree:
    """Shapes and types of what `put_on_devices` makes of arrays with these."""
    n = _mesh().size
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), shapes)


def to_host(tree: PyTree) -> PyTree:
    """One device's copy of a replicated `tree`, as NumPy arrays of their own.

    A copy, since on CPU NumPy would look into the device's memory, which a step that donates it
    writes over while a checkpoint is still being saved in the background.
    """
    return jax.tree.map(
        lambda x: np.array(np.asarray(x.addressable_shards[0].data)[0], copy=True), tree
    )


def shard(batch: PyTree) -> PyTree:
    """[B, ...] -> [local devices, B / local devices, ...], for every array of `batch`."""
    n = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), batch)


def shard_on_devices(batch: PyTree) -> PyTree:
    """As `shard`, and on its way to the devices."""
    return _put(shard(batch))


def unshard(tree: PyTree) -> PyTree:
    """What this host's devices hold of [devices, b, ...] -> NumPy [local devices · b, ...]."""

    def joined(x: jax.Array | np.ndarray) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            if not x.size:
                # Boxes of a model without proposals: JAX keeps a copy on each device.
                return np.zeros((jax.local_device_count() * x.shape[1], *x.shape[2:]), x.dtype)
            shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start)
            x = np.concatenate([shard.data for shard in shards])
        return np.asarray(x).reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    return jax.tree.map(joined, tree)


def on_devices(batches: Iterable[PyTree], *, parts: int) -> Iterator[list[PyTree]]:
    """Cuts batches into micro-batches and has them on the devices before they are asked for.

    Args:
      batches: of arrays [B, ...].
      parts: micro-batches in a batch.

    Yields:
      the micro-batches of a batch, in order: arrays [devices, b, ...].
    """
    ready: deque[list[PyTree]] = deque()
    for batch in batches:
        split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
        micro_batches = [jax.tree.map(lambda x, i=i: x[i], split) for i in range(parts)]
        ready.append([shard_on_devices(micro_batch) for micro_batch in micro_batches])
        if len(ready) > _AHEAD:
            yield ready.popleft()
    yield from ready


def _mesh() -> jax.sharding.Mesh:
    """The devices of all hosts, host by host, as pmap has them."""
    by_host = [jax.local_devices(process_index=host) for host in range(host_count())]
    return jax.sharding.Mesh(np.concatenate(by_host), (AXIS,))


def _put(tree: PyTree) -> PyTree:
    sharding = jax.NamedSharding(_mesh(), jax.P(AXIS))
    if host_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def best_batch_size(most: int) -> int:
    """Slices in a forward pass that costs least for a few slices: `most`, or 1 a device on CPU.

    On CPU one slice at a time costs as much a slice as eight do (docs/performance.md), and no
    black images fill up the last batch.
    """
    return jax.local_device_count() if jax.default_backend() == "cpu" else most


def round_up_to_devices(batch_size: int) -> int:
    """The smallest multiple of the number of local devices that is not below `batch_size`."""
    n = jax.local_device_count()
    return -(-batch_size // n) * n


@contextlib.contextmanager
def translate_out_of_memory(message: str) -> Iterator[None]:
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
