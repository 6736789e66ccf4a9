"""DenseNet-121 in PyTorch, written from the paper, with torchvision's parameter names."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn


class DenseLayer(nn.Module):
    """BN, ReLU, 1×1, BN, ReLU, 3×3; its output is put behind its input (Huang et al. 2017, 3)."""

    def __init__(self, channels_in: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        y = self.conv2(torch.relu(self.norm2(y)))
        return torch.cat([x, y], dim=1)


class Transition(nn.Module):
    """BN, ReLU, 1×1 to half the channels, 2×2 average pooling."""

    def __init__(self, channels_in: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels_in)
        self.conv = nn.Conv2d(channels_in, channels_in // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.conv(torch.relu(self.norm(x))))


class DenseNet(nn.Module):
    """A DenseNet with its class head `classifier`.

    Args:
      blocks: layers in each dense block.
      width: channels of the stem; a layer adds half as many (32 in DenseNet-121).
      classes: outputs of `classifier`.
    """

    def __init__(
        self, blocks: tuple[int, ...] = (6, 12, 24, 16), width: int = 64, classes: int = 1000
    ):
        super().__init__()
        growth = width // 2
        features: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, width, 7, 2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(width),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, 2, padding=1),
        )
        channels = width
        for i, n in enumerate(blocks):
            block: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(n):
                block[f"denselayer{j + 1}"] = DenseLayer(channels, growth)
                channels += growth
            features[f"denseblock{i + 1}"] = nn.Sequential(block)
            if i + 1 < len(blocks):
                features[f"transition{i + 1}"] = Transition(channels)
                channels //= 2
        features["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(features)
        self.last_relu = nn.ReLU()  # a module, so that a hook can be set behind it
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.last_relu(self.features(x)).mean((2, 3)))
