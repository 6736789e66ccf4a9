"""What a training step needs of the device's memory, as its compiler plans it, without running."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import ml_collections
import numpy as np

from benchmarks.programs import make_program
from benchmarks.targets import GIB
from benchmarks.timing import Row
from drenet_jax import parallel

SUITE = "memory"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CARDS_GIB = (24, 80)


def step_bytes(config: ml_collections.ConfigDict, batch: int, *, remat: bool) -> int:
    """The peak of a training step in one micro-batch: the state, the gradient and its program.

    Args:
      config: of any model.
      batch: slices in the micro-batch.
      remat: `model.remat`.
    """
    config = config.copy_and_resolve_references()
    config.model.remat, config.train.accumulate = remat, 1
    program = make_program("training step", config, jax.default_backend(), batch)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
    plan = program.lower(mesh).compile().memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )


def run(
    config: ml_collections.ConfigDict, batches: Sequence[int] = BATCHES
) -> tuple[list[Row], list[str]]:
    """The peak for each batch size, with and without `model.remat`, and what fits a card."""
    rows, notes = [], []
    for remat in (False, True):
        sizes = {batch: step_bytes(config, batch, remat=remat) for batch in batches}
        mode = "model.remat" if remat else "without remat"
        for batch, size in sizes.items():
            gib = size / GIB
            rows.append(
                Row(
                    SUITE,
                    f"training step of {batch}, {config.model.dtype}, {mode}",
                    gib,
                    gib,
                    gib,
                    "GiB",
                )
            )
        for card in CARDS_GIB:
            notes.append(
                f"{mode}: by these plans {largest_batch(sizes, card * GIB)} slices fit a card of "
                f"{card} GiB."
            )
    return rows, notes


def largest_batch(sizes: dict[int, int], memory: int) -> int:
    """The largest batch that fits, on a straight line through the two largest measured."""
    (a, size_a), (b, size_b) = sorted(sizes.items())[-2:]
    slope = (size_b - size_a) / (b - a)
    return max(0, int((memory - size_a) / slope + a))
