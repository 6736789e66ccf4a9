"""EfficientNet-Lite0's training step and prediction, beside the PyTorch package of its weights."""

from __future__ import annotations

import runpy
from collections.abc import Callable

from benchmarks.model import CLASSES, TrainingStep, prediction, random_batch
from benchmarks.timing import Row, faster_row, interleaved_timings
from drenet_jax import cli
from drenet_jax.errors import InputError

SUITE = "lite"
PACKAGES = ("efficientnet_lite_pytorch", "torch")


def run(batch: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The rows about EfficientNet-Lite0 at its 224 pixels, in float32, on the CPU.

    Args:
      batch: slices in a step and in a forward pass.
      rounds: how often everything is measured.

    Returns:
      rows, and no notes.

    Raises:
      InputError: the PyTorch package is not installed.
    """
    config = runpy.run_path(str(cli.CONFIGS / "efficientnet_lite0.py"))["get_config"]()
    config.model.image_size_px = 224
    rows = []
    for train in (True, False):
        ours = TrainingStep(config, batch) if train else prediction(config, batch, heat_maps=False)
        workloads = {
            "ours": ours,
            "PyTorch": _pytorch(config, batch, train=train, channels_last=False),
            "PyTorch channels_last": _pytorch(config, batch, train=train, channels_last=True),
        }
        times = {
            name: timing.per(batch)
            for name, timing in interleaved_timings(workloads, rounds).items()
        }
        best = min(list(times)[1:], key=lambda name: times[name].median)
        work = "training step" if train else "inference"
        what = f"{work} of EfficientNet-Lite0 at 224², per slice (batch {batch})"
        rows.append(faster_row(SUITE, what, times["ours"], best, times[best], 1.0))
    return rows, []


def _pytorch(config, batch: int, *, train: bool, channels_last: bool) -> Callable[[], object]:
    try:
        import torch
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise InputError(
            f"--suite={SUITE} needs {error.name}; pip install 'drenet_jax[test]'."
        ) from error
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = EfficientNet.from_name("efficientnet-lite0", num_classes=CLASSES)
    network = network.to(memory_format=layout).train(train)
    _, images, labels = random_batch(config, batch)
    pixels = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1).float() / 255
    pixels = pixels.to(memory_format=layout)
    targets = torch.from_numpy(labels).long()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(network(pixels), targets).backward()
        optimizer.step()

    def predict() -> None:
        with torch.inference_mode():
            network(pixels)

    return step if train else predict
