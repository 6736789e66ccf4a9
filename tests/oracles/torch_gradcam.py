"""Grad-CAM in PyTorch by hooks and autograd, as Selvaraju et al. (2017) write it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def last_block(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The feature map [B, C, h, w] of each pass in the block, as the layers behind it see it.

    That is what a ResNet's `layer4` gives, a DenseNet's `features` after their ReLU, or a VGG's
    `features`.
    """
    found: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        found.append(output)

    names = ("layer4", "last_relu", "features")
    name = next(name for name in names if hasattr(network, name))
    handle = network.get_submodule(name).register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def heat_maps(logits: torch.Tensor, feature_map: torch.Tensor) -> np.ndarray:
    """[N, classes, h, w] from logits [B, classes] and a feature map [N, C, h, w]."""
    maps = []
    for logit in logits.sum(0):
        (gradient,) = torch.autograd.grad(logit, feature_map, retain_graph=True)
        weights = gradient.mean((2, 3), keepdim=True)
        maps.append(torch.relu((weights * feature_map).sum(1)))
    return torch.stack(maps, 1).detach().numpy()
