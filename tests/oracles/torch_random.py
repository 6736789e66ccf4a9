"""Random weights for the PyTorch networks with which a slip in any layer shows in the output."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomise(network: nn.Module, images: torch.Tensor, seed: int) -> nn.Module:
    """Draws all weights, biases and batch-norm statistics anew; returns the network, to evaluate.

    Convolutions and linear layers keep the size of what passes through them (He et al. 2015).
    Batch-norm statistics are those of `images`, disturbed. So values stay near 1 through all
    layers: where they grow from layer to layer, the biases and means of the last ones are lost, and
    where they shrink, all but these.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            layer.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if layer.bias is not None:
                layer.bias.normal_(0, 0.2, generator=generator)
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0, 0.2, generator=generator)
        # The running statistics become those of one pass.
        norm.momentum = 1.0
    network.train()(images)
    for norm in norms:
        norm.momentum = 0.1
        shift = torch.empty_like(norm.running_mean).normal_(0, 0.2, generator=generator)
        norm.running_mean += shift * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(shift).uniform_(0.7, 1.4, generator=generator)
    return network.eval()
