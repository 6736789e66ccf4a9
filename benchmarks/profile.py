"""Where a training step spends its time, and what share of the device's peak it reaches."""

from __future__ import annotations

import dataclasses
import glob
import re
import tempfile
from collections import Counter
from collections.abc import Callable

import jax
import ml_collections

from benchmarks.model import TrainingStep, crops_of_a_batch, random_batch, rate_row
from benchmarks.passes import bare_passes, stacks_of
from benchmarks.timing import Row, Timing, interleaved_timings, plain_row
from drenet_jax import parallel
from drenet_jax.training.step import make_gradient, make_update

SUITE = "profile"

# The first that fits an operation of XLA (its name, and what it was made of) is its kind.
_KINDS = (
    (
        "convolutions and products",
        r"conv_general_dilated|dot_general|^dot|^convolution|/transpose$",
    ),
    ("maxima (pooling)", r"reduce[-_]window|max_pool|select_and_scatter|scatter"),
    ("copies, transposes, slices", r"^(wrapped_)?(copy|transpose|slice|concatenate|pad)"),
    ("sums (batch norms, means)", r"reduce_sum|^(wrapped_)?reduce"),
)
_REST = "element by element (batch norms, ReLUs, the rest)"


def run(
    config: ml_collections.ConfigDict, batch: int, rounds: int, device: str
) -> tuple[list[Row], list[str]]:
    """Parts of a training step timed apart, its operations by kind, and its rate.

    Parts timed apart need not add up to the step: the compiler joins them, and overlaps them.

    Returns:
      rows, and sentences to print below them.
    """
    step = TrainingStep(config, batch)
    stacks = stacks_of(config, batch, train=True)
    times = interleaved_timings(
        {
            "step": step,
            "forward": bare_passes(config, stacks, train=True, backward=False),
            "both": bare_passes(config, stacks, train=True),
            "crops": crops_of_a_batch(config, batch),
            "update": _update(step),
            "input": lambda: next(parallel.on_devices([random_batch(config, batch)], parts=1)),
        },
        rounds,
    )
    backward = _difference(times["both"], times["forward"])
    rest = times["step"]
    for part in ("both", "crops", "update"):
        rest = _difference(rest, times[part])
    parts = {
        "the whole step": times["step"],
        "backbone, forward": times["forward"],
        "backbone, backward (the passes less their forward part)": backward,
        "suppression and crops": times["crops"],
        "optimiser's update": times["update"],
        "the rest (proposal head, heads, losses, gradients of crops)": rest,
        "slices to the device": times["input"],
    }
    rows = [
        _share_row(f"{what}, batch {batch}", timing, times["step"])
        for what, timing in parts.items()
    ]
    gradient = _gradient(step)
    lowered = gradient.lower(*_arguments(step))
    flops = lowered.cost_analysis()["flops"]
    rows.append(rate_row(times["step"], flops, device, config.model.dtype))
    compiled = lowered.compile()
    rows += _kind_rows(compiled, lambda: jax.block_until_ready(compiled(*_arguments(step))))
    return rows, [
        "The parts of a step were timed separately and need not add up to it; XLA's operations run "
        "in parallel, with durations from its own trace."
    ]


def _difference(a: Timing, b: Timing) -> Timing:
    return Timing(tuple(x - y for x, y in zip(a.seconds, b.seconds, strict=True)))


def _share_row(what: str, timing: Timing, whole: Timing) -> Row:
    ratio = timing.median / whole.median
    row = plain_row(SUITE, what, timing)
    return dataclasses.replace(row, reference="the whole step", ratio=ratio)


def _gradient(step: TrainingStep) -> Callable:
    return parallel.map_over_devices(make_gradient(step.model, step.config, None))


def _arguments(step: TrainingStep) -> tuple:
    state = step.state
    return state.params, state.batch_stats, step.seed, state.step, *step.micro_batch


def _update(step: TrainingStep) -> Callable[[], None]:
    """The optimiser's update with a gradient that stays."""
    update = parallel.map_over_devices(make_update(step.optimizer, step.schedule, 1), donate=(0,))
    gradient, _ = _gradient(step)(*_arguments(step))

    def work() -> None:
        step.state, _ = update(step.state, gradient, step.state.batch_stats)
        jax.block_until_ready(step.state)

    return work


def _kind_rows(compiled, work: Callable[[], object]) -> list[Row]:
    operations = _operations(compiled.as_text())
    work()
    with tempfile.TemporaryDirectory(prefix="drenet_jax_") as folder:
        with jax.profiler.trace(folder):
            work()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        profile = jax.profiler.ProfileData.from_file(path)
        spent: Counter[str] = Counter()
        for plane in profile.planes:
            for line in plane.lines:
                for event in line.events:
                    # A GPU's kernels have their own names; the operation is in another field.
                    name = dict(event.stats).get("hlo_op", event.name)
                    if name in operations:
                        spent[_kind(name, operations[name])] += event.duration_ns
    total = sum(spent.values())
    return [
        Row(
            SUITE,
            f"operations: {kind}",
            spent[kind] / 1e6,
            spent[kind] / 1e6,
            spent[kind] / 1e6,
            "ms",
            "all operations of the gradient, in XLA's trace",
            spent[kind] / total,
        )
        for kind in (*(name for name, _ in _KINDS), _REST)
        if total
    ]


def _operations(hlo: str) -> dict[str, str]:
    """name of an operation -> what it was made of; of a compiled program's text."""
    sources = {}
    for line in hlo.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        if match:
            made_of = re.search(r'op_name="([^"]*)"', line)
            sources[match[1]] = made_of[1] if made_of else _inside(line)
    return sources


def _inside(line: str) -> str:
    # A fusion without a name that makes a kernel's gradient holds a convolution.
    return "conv_general_dilated" if "ynn_fusion" in line else ""


def _kind(name: str, made_of: str) -> str:
    for kind, pattern in _KINDS:
        if re.search(pattern, name) or re.search(pattern, made_of):
            return kind
    return _REST
