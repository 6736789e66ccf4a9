"""How far a device's results are from those of the CPU in float32."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import ml_collections
import numpy as np

from benchmarks.model import CLASSES, random_batch
from benchmarks.timing import Row
from drenet_jax import parallel
from drenet_jax.models.build import build_model, init_variables
from drenet_jax.models.slice_scorer import make_forward
from drenet_jax.training.step import make_gradient

SUITE = "parity"


def run(config: ml_collections.ConfigDict, batch: int, device: str) -> tuple[list[Row], list[str]]:
    """A prediction and a gradient of random slices with the first weights, on CPU and device.

    Args:
      config: of a DRENet.
      batch: slices.
      device: "cpu" or "gpu".

    Returns:
      rows, and sentences about them.
    """
    exact = _results(config, batch, jax.devices("cpu")[0], "float32", None)
    on_device = jax.local_devices()[0]
    rows = []
    for dtype, precision in (("float32", "highest"), ("float32", None), ("bfloat16", None)):
        outputs = _results(config, batch, on_device, dtype, precision)
        name = f"{device}, {dtype}{f', precision {precision}' if precision else ''}"
        rows += _rows(name, outputs, exact)
    return rows, [
        "Differences from the CPU in float32, of random weights and slices. Where rounding "
        "changes which boxes are picked, everything behind them differs; a gradient's difference "
        "is that of all parameters together, over the norm of the CPU's."
    ]


def _results(
    config: ml_collections.ConfigDict,
    batch: int,
    device: jax.Device,
    dtype: str,
    precision: str | None,
) -> Mapping[str, object]:
    config = config.copy_and_resolve_references()
    config.model.dtype, config.model.dropout = dtype, 0.0
    model = build_model(config, CLASSES, platform=device.platform)
    mesh = jax.sharding.Mesh(np.array([device]), (parallel.AXIS,))
    places, images, labels = (x[None] for x in random_batch(config, batch))
    with jax.default_device(jax.devices("cpu")[0]):
        variables = jax.tree.map(lambda x: np.asarray(x)[None], init_variables(model, 0))
        seed = np.asarray(jax.random.key_data(jax.random.key(0)))[None]
    step = np.zeros(1, np.int32)
    with jax.default_matmul_precision(precision):
        scored = parallel.map_over_mesh(make_forward(model, heat_maps=False), mesh)(
            variables, images
        )
        (gradient, losses), _ = parallel.map_over_mesh(make_gradient(model, config, None), mesh)(
            variables["params"], variables["batch_stats"], seed, step, places, images, labels
        )
    return jax.tree.map(
        np.asarray,
        {
            "probabilities": scored["probabilities"],
            "boxes": scored["boxes"],
            "loss": losses["loss"],
            "gradient": jax.tree.leaves(gradient),
        },
    )


def _rows(name: str, mapping: Mapping, exact: Mapping) -> list[Row]:
    same_boxes = np.all(mapping["boxes"] == exact["boxes"], axis=-1).mean()
    norms = [
        np.sqrt(sum(float(np.sum(np.square(np.float64(x)))) for x in leaves))
        for leaves in (
            [a - b for a, b in zip(mapping["gradient"], exact["gradient"], strict=True)],
            exact["gradient"],
        )
    ]
    values = {
        "largest difference of a probability": np.abs(
            mapping["probabilities"] - exact["probabilities"]
        ).max(),
        "relative difference of the loss": np.abs(mapping["loss"] / exact["loss"] - 1).max(),
        "relative difference of the gradient": norms[0] / norms[1],
    }
    rows = [_row(f"{name}: {what}", 1e6 * value, "ppm") for what, value in values.items()]
    return [*rows, _row(f"{name}: boxes that are the same", 100 * same_boxes, "%")]


def _row(what: str, value: float, unit: str) -> Row:
    return Row(SUITE, what, float(value), float(value), float(value), unit)
