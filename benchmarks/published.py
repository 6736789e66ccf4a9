"""The published model in PyTorch: our own independent implementation, which the tests hold ours to.

It lies in the repository's `tests/`, so there is a reference where this package runs from a
checkout and torch is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_collections
import numpy as np

# Its three levels of boxes do not fit into smaller slices.
IMAGE_SIZE_PX = 448

_TESTS = Path(__file__).resolve().parents[1] / "tests"


def available(device: str) -> bool:
    """Whether there is a reference on `device`, "cpu" or "gpu"."""
    if not (_TESTS / "oracles" / "torch_nts.py").is_file():
        return False
    try:
        import torch
    except ImportError:
        return False
    return device == "cpu" or torch.cuda.is_available()


def workloads(
    config: ml_collections.ConfigDict, batch: int, device: str, *, train: bool
) -> Mapping[str, Callable[[], object]]:
    """The published model's step or prediction in each memory layout, as work that waits.

    The authors' three levels of boxes in two groups, six crops and the zoomed box: 14.1 ResNet50
    passes a slice. On a GPU under autocast to bfloat16 and `torch.compile`.

    Args:
      config: whose backbone and sizes are taken.
      batch: slices.
      device: "cpu" or "gpu".
      train: a step (losses, backward, SGD with momentum); else a prediction.

    Returns:
      name of the layout -> work.
    """
    import torch

    return {
        "PyTorch NCHW": _work(config, batch, device, train, torch.contiguous_format),
        "PyTorch channels_last": _work(config, batch, device, train, torch.channels_last),
    }


def _work(config, batch, device, train, layout) -> Callable[[], object]:
    import torch

    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    from oracles import torch_nts

    model = config.model
    where = torch.device("cuda" if device == "gpu" else "cpu")
    network = torch_nts.NTSNet(
        torch_nts.AUTHORS_GROUPS,
        True,
        3,
        architecture=model.backbone,
        width=model.width,
        image_px=model.image_size_px,
        crop_px=model.crop_size_px,
        head_features=model.head_features,
    )
    network = network.to(where, memory_format=layout).train(train)
    pixels = np.random.default_rng(0).random((batch, 3, *(model.image_size_px,) * 2), np.float32)
    images = torch.from_numpy(pixels).to(where, memory_format=layout)
    label = torch.arange(batch, device=where) % 3
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=1e-4)
    backbone = network.pretrained_model
    if device == "gpu":
        # The backbone alone: boxes are picked in NumPy.
        backbone.features = torch.compile(backbone.features)
    cast = torch.autocast(where.type, torch.bfloat16, enabled=device == "gpu")

    def wait() -> None:
        if device == "gpu":
            torch.cuda.synchronize()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with cast:
            loss = torch_nts.losses(network(images), label)["loss"]
        loss.backward()
        optimizer.step()
        wait()

    def predict() -> None:
        with torch.inference_mode(), cast:
            network(images)
        wait()

    return step if train else predict
