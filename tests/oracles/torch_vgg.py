"""VGG16 without batch norm in PyTorch, written from the paper, with torchvision's names."""

from __future__ import annotations

import torch
from torch import nn


class VGG(nn.Module):
    """Simonyan and Zisserman 2015, table 1, column D, with its class head `classifier.6`.

    Args:
      blocks: 3×3 convolutions in each block; a 2×2 max-pooling ends a block.
      width: channels of the first block; the hidden layers have 64 times as many (4096).
      classes: outputs of `classifier.6`.
      dropout: share of the hidden features dropped while training.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] = (2, 2, 3, 3, 3),
        width: int = 64,
        classes: int = 1000,
        dropout: float = 0.5,
    ):
        super().__init__()
        features: list[nn.Module] = []
        channels_in = 3
        for i, n in enumerate(blocks):
            channels = width * min(2**i, 8)
            for _ in range(n):
                features += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU()]
                channels_in = channels
            features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)
        # torchvision's way to take images of other sizes than 224.
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        hidden = 64 * width
        self.classifier = nn.Sequential(
            nn.Linear(7 * 7 * channels_in, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
