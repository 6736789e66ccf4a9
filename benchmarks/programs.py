"""The programs that training and prediction run, lowered for devices that are only described."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from benchmarks.model import CLASSES
from benchmarks.passes import Passes, stack_shapes
from drenet_jax import parallel
from drenet_jax.models.build import DTYPES, build_model, variable_shapes
from drenet_jax.models.slice_scorer import make_forward
from drenet_jax.training.state import create_state, learning_rate, make_optimizer
from drenet_jax.training.step import make_gradient, make_update, make_whole_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What runs on one device.

    Attributes:
      function: of all arguments.
      fixed: shapes of the first arguments, which do not grow with the batch: weights, optimiser.
      batch: shapes of the others.
      donate: positions of arguments whose memory the result takes over.
    """

    function: Callable
    fixed: tuple
    batch: tuple
    donate: tuple[int, ...] = ()

    @property
    def fixed_bytes(self) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.fixed))

    def lower(self, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
        """Lowers it for the devices of a mesh along the axis `parallel.AXIS`."""
        sharding = jax.NamedSharding(mesh, jax.P(parallel.AXIS))
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((mesh.size, *x.shape), x.dtype, sharding=sharding),
            self.fixed + self.batch,
        )
        return parallel.map_over_mesh(self.function, mesh, donate=self.donate).lower(*arguments)


def make_program(
    name: str, config: ml_collections.ConfigDict, platform: str, per_device: int
) -> Program:
    """One of `ahead_of_time.PROGRAMS`.

    Args:
      name: of the program.
      config: of a DRENet. A training step is one of `train.accumulate = 1`.
      platform: for which it is lowered: "cpu", "gpu" or "tpu".
      per_device: slices on each device.
    """
    if name.startswith("bare"):
        return _bare(config, platform, per_device, train="training" in name)
    model = build_model(config, CLASSES, platform=platform)
    variables = variable_shapes(model)
    size = config.model.image_size_px
    images = jax.ShapeDtypeStruct((per_device, size, size), jnp.uint8)
    if name != "training step":
        forward = make_forward(model, heat_maps=name == "explanation")
        return Program(forward, (variables,), (images,))
    schedule = learning_rate(config, slices_in_epoch=1000, batch_size=per_device)
    optimizer = make_optimizer(config, schedule)
    state = jax.eval_shape(
        lambda: create_state(
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables), optimizer
        )
    )
    step = make_whole_step(
        make_gradient(model, config, None), make_update(optimizer, schedule, accumulate=1)
    )
    seed = jax.ShapeDtypeStruct((2,), jnp.uint32)
    rows = jax.ShapeDtypeStruct((per_device,), jnp.int32)
    return Program(step, (state, seed), (rows, images, rows), donate=(0,))


def _bare(
    config: ml_collections.ConfigDict, platform: str, per_device: int, *, train: bool
) -> Program:
    model = config.model
    network = Passes(
        model.backbone,
        model.width,
        DTYPES[model.dtype],
        model.get("remat", False),
        parallel.AXIS,
        platform,
    )
    stacks = stack_shapes(config, per_device, train=train)
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), [jnp.zeros((1, 64, 64, 3))], False)
    )
    return Program(
        network.gradient if train else network.forward,
        (variables["params"], variables["batch_stats"]),
        (stacks,),
    )
