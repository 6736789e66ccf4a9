"""A training step and a prediction, compared with bare passes and with the published model."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import published
from benchmarks.passes import bare_passes, stacks_of
from benchmarks.targets import GIB
from benchmarks.timing import Row, Timing, faster_row, interleaved_timings, ratio_row
from drenet_jax import parallel
from drenet_jax.models.build import DTYPES, build_model, init_variables
from drenet_jax.models.crops import crop_slices
from drenet_jax.models.proposals import select_proposals
from drenet_jax.models.slice_scorer import SliceScorer
from drenet_jax.training.state import create_state, learning_rate, make_optimizer
from drenet_jax.training.step import make_train_step, replicated_seed

SUITE = "model"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

CLASSES = 3

# At least so many times as fast as the published model: training, inference.
_AIMS_BESIDE_PUBLISHED = {"cpu": (1.0, 2.0), "gpu": (2.0, 3.0)}


class TrainingStep:
    """A step of `config` on random slices; call it again and again."""

    def __init__(self, config: ml_collections.ConfigDict, batch: int):
        config = config.copy_and_resolve_references()
        config.train.accumulate = 1
        model = build_model(config, CLASSES)
        schedule = learning_rate(config, 1000, batch)
        optimizer = make_optimizer(config, schedule)
        self.model, self.config = model, config
        self.schedule, self.optimizer = schedule, optimizer
        self.state = parallel.replicate(create_state(init_variables(model, 0), optimizer))
        self.micro_batch = next(parallel.on_devices([random_batch(config, batch)], parts=1))[0]
        self.seed = replicated_seed(config)
        self._step = make_train_step(model, optimizer, schedule, config)

    def __call__(self) -> None:
        self.state, metrics = self._step(self.state, [self.micro_batch])
        jax.block_until_ready((self.state, metrics))


def random_batch(config: ml_collections.ConfigDict, batch: int) -> tuple[np.ndarray, ...]:
    """What `train_batches` yields: places, slices, labels."""
    size = config.model.image_size_px
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size), np.uint8)
    places = np.arange(batch, dtype=np.int32)
    return places, images, places % CLASSES


def prediction(
    config: ml_collections.ConfigDict, batch: int, *, heat_maps: bool
) -> Callable[[], object]:
    """The scoring of a batch of random slices."""
    model = build_model(config, CLASSES)
    variables = parallel.replicate(init_variables(model, 0))
    scorer = SliceScorer(model, batch, heat_maps=heat_maps)
    images = random_batch(config, batch)[1]
    return lambda: scorer(variables, images)


def crops_of_a_batch(config: ml_collections.ConfigDict, batch: int) -> Callable[[], object]:
    """The picking of M boxes out of all anchors and the cutting of their crops."""
    network = build_model(config, CLASSES)
    size = config.model.image_size_px
    images = jax.random.uniform(jax.random.key(0), (batch, size, size))
    anchors = sum(level.anchors_per_cell * level.cells(size) ** 2 for level in network.levels)
    scores = jax.random.normal(jax.random.key(1), (batch, anchors))

    def crops(images: jax.Array, scores: jax.Array) -> jax.Array:
        _, boxes = select_proposals(
            scores,
            network.levels,
            network.groups,
            size,
            network.nms_iou,
            [group.train_proposals for group in network.groups],
        )
        return crop_slices(images, boxes, (network.crop_size_px,) * 2, network.backbone.dtype)

    compiled = jax.jit(crops).lower(images, scores).compile()
    return lambda: jax.block_until_ready(compiled(images, scores))


def run(
    config: ml_collections.ConfigDict, batch: int, rounds: int, device: str
) -> tuple[list[Row], list[str]]:
    """The rows about the network.

    Args:
      config: of a DRENet.
      batch: slices in a step and in a forward pass.
      rounds: how often everything is measured.
      device: "cpu" or "gpu".

    Returns:
      rows, and sentences about what could not be measured.
    """
    rows: list[Row] = []
    notes: list[str] = []
    has_reference = published.available(device)
    if not has_reference:
        notes.append(
            f"no published model to compare with: torch on {device}, or tests/, is missing"
        )
    elif config.model.image_size_px < published.IMAGE_SIZE_PX:
        has_reference = False
        notes.append(
            "no published model to compare with: its boxes need slices of "
            f"{published.IMAGE_SIZE_PX} pixels"
        )
    aims = _AIMS_BESIDE_PUBLISHED[device]
    for train in (True, False):
        work = "training step" if train else "inference"
        n, what = batch, f"{work}, per slice (batch {batch}, {config.model.dtype})"
        stacks = stacks_of(config, batch, train=train)
        ours = TrainingStep(config, batch) if train else prediction(config, batch, heat_maps=False)
        workloads = {"ours": ours, "bare": bare_passes(config, stacks, train=train)}
        if not train:
            workloads["heat maps"] = prediction(config, batch, heat_maps=True)
        if has_reference:
            workloads |= published.workloads(config, batch, device, train=train)
        times = {
            name: timing.per(n) for name, timing in interleaved_timings(workloads, rounds).items()
        }
        bare = f"bare passes ({_passes(config, train=train)})"
        rows.append(
            ratio_row(SUITE, what, times["ours"], bare, times["bare"], 1.04 if train else 1.02)
        )
        if "heat maps" in times:
            rows.append(
                ratio_row(
                    SUITE,
                    "inference with heat maps, per slice",
                    times["heat maps"],
                    "without",
                    times["ours"],
                    1.01,
                )
            )
        layouts = {name: time for name, time in times.items() if name.startswith("PyTorch")}
        if layouts:
            name, best = min(layouts.items(), key=lambda layout: layout[1].median)
            others = ", ".join(
                f"{other}: {1e3 * time.median:.1f} ms"
                for other, time in layouts.items()
                if other != name
            )
            reference = f"the published model in {name} ({others})"
            aim = aims[0] if train else aims[1]
            rows.append(faster_row(SUITE, what, times["ours"], reference, best, aim))
        if train:
            rows += _memory_rows(config, batch)
        del workloads, ours
    rows.append(_crops_row(config, batch, rounds))
    return rows, notes


def _memory_rows(config: ml_collections.ConfigDict, batch: int) -> list[Row]:
    """The most that was in use of a device that counts it; a CPU does not."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return []
    gib = stats["peak_bytes_in_use"] / GIB
    what = f"most of the device's memory in use (training, batch {batch}, {config.model.dtype})"
    return [Row(SUITE, what, gib, gib, gib, "GiB")]


def _crops_row(config: ml_collections.ConfigDict, batch: int, rounds: int) -> Row:
    crop = config.model.crop_size_px
    stack = jax.random.normal(jax.random.key(0), (batch, crop, crop, 3), DTYPES[config.model.dtype])
    times = interleaved_timings(
        {
            "crops": crops_of_a_batch(config, batch),
            "pass": bare_passes(config, [stack], train=False),
        },
        rounds,
    )
    count = sum(config.model.train_proposals)
    return ratio_row(
        SUITE,
        f"suppression and {count} crops of {batch} slices",
        times["crops"],
        f"one {config.model.backbone} pass at {crop}² of {batch}",
        times["pass"],
        0.05,
    )


def _passes(config: ml_collections.ConfigDict, *, train: bool) -> str:
    model = config.model
    whole = 1 if model.context == "none" else 2
    crops = sum(model.train_proposals if train else model.top_k)
    return f"{whole} at {model.image_size_px}², {crops} at {model.crop_size_px}²"


def peak_flops(device: str, dtype: str) -> tuple[float, str]:
    """Operations a second that the device can do, and where the figure is from."""
    kind = jax.devices()[0].device_kind
    if device == "gpu":
        for name, flops in _BF16_PEAKS.items():
            if name in kind:
                return flops, f"{kind}'s data sheet, bfloat16, dense"
    size = 4096 if device == "gpu" else 2048
    a = jnp.ones((size, size), DTYPES[dtype])
    product = jax.jit(lambda a: a @ a)
    (timing,) = interleaved_timings({"product": lambda: product(a).block_until_ready()}, 5).values()
    return 2 * size**3 / min(timing.seconds), f"a product of {size}² {dtype} matrices, measured"


# NVIDIA's data sheets (SXM).
_BF16_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def rate_row(step: Timing, flops: float, device: str, dtype: str) -> Row:
    """What share of the peak a step reaches.

    Args:
      step: seconds of it.
      flops: operations of it.
      device, dtype: as above.
    """
    peak, source = peak_flops(device, dtype)
    rates = [flops / seconds for seconds in step.seconds]
    return Row(
        "profile",
        "operations of a training step",
        flops / step.median / 1e9,
        min(rates) / 1e9,
        max(rates) / 1e9,
        "GFLOP/s",
        f"peak {peak / 1e9:.0f} GFLOP/s ({source})",
        flops / step.median / peak,
    )
