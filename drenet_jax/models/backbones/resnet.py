"""ResNet 18, 34 and 50 (He et al. 2016; v1.5: the stride sits in the 3×3), torchvision's numerics.

Padding is written out everywhere: SAME pads a strided convolution by (0, 1) where PyTorch, and so
every ImageNet weight in use, pads by (1, 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from drenet_jax.models.backbones.backbone import LEAVES, Backbone, Features, Images, Probe
from drenet_jax.models.layers import Conv1x1, StemConv, conv3x3, max_pool_3x3
from drenet_jax.models.model_outputs import probed
from drenet_jax.models.norm import BatchNorm

Maps = Float[Array, "batch height width channels"]
NewMaps = Float[Array, "batch new_height new_width new_channels"]


class _Block(nn.Module):
    """A residual block."""

    features: int
    stride: int
    norm: Callable[..., BatchNorm]
    dtype: DTypeLike
    platform: str | None = None

    # Channels of the result over `features`.
    expansion: ClassVar[int]

    def shortcut(self, x: Maps) -> NewMaps:
        """What is added to the result: x, or where the shapes differ a 1×1 convolution of it."""
        features = self.features * self.expansion
        if self.stride == 1 and x.shape[-1] == features:
            return x
        x = Conv1x1(features, self.stride, self.dtype, self.platform, name="downsample_conv")(x)
        return self.norm(name="downsample_bn")(x)


class BasicBlock(_Block):
    """Two 3×3 convolutions and a shortcut (ResNet 18 and 34)."""

    expansion = 1

    @nn.compact
    def __call__(self, x: Maps) -> NewMaps:
        y = conv3x3(self.features, self.stride, self.dtype, "conv1")(x)
        y = self.norm(name="bn1")(y, relu=True)
        y = conv3x3(self.features, 1, self.dtype, "conv2")(y)
        return self.norm(name="bn2")(y, self.shortcut(x), relu=True)


class Bottleneck(_Block):
    """1×1, 3×3 (with the stride) and 1×1 convolutions and a shortcut (ResNet 50)."""

    expansion = 4

    @nn.compact
    def __call__(self, x: Maps) -> NewMaps:
        out = self.features * self.expansion
        y = Conv1x1(self.features, 1, self.dtype, self.platform, name="conv1")(x)
        y = self.norm(name="bn1")(y, relu=True)
        y = conv3x3(self.features, self.stride, self.dtype, "conv2")(y)
        y = self.norm(name="bn2")(y, relu=True)
        y = Conv1x1(out, 1, self.dtype, self.platform, name="conv3")(y)
        return self.norm(name="bn3")(y, self.shortcut(x), relu=True)


# name -> (block, blocks in each of the four stages)
ARCHITECTURES: dict[str, tuple[type[_Block], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


# Children by number, as a Sequential of them names them (RadImageNet).
_CHILDREN = {"0": "conv1", "1": "bn1", **{str(3 + i): f"layer{i}" for i in range(1, 5)}, "9": "fc"}


class ResNet(Backbone):
    """A ResNet; its feature map has 8 × width × expansion channels."""

    @property
    def channels(self) -> int:
        block, stage_sizes = ARCHITECTURES[self.architecture]
        return self.width * 2 ** (len(stage_sizes) - 1) * block.expansion

    @nn.compact
    def __call__(
        self, images: Images, train: bool, probe: Probe | None = None, domain: int = 0
    ) -> Features:
        """See `Backbone`."""
        block, stage_sizes = ARCHITECTURES[self.architecture]
        block = nn.remat(block) if self.remat and train else block
        x = StemConv(self.width, self.dtype, self.platform, name="conv1")(images)
        x = self.norm(1, train, domain)(name="bn1")(x, relu=True)
        x = max_pool_3x3(x, self.platform)
        for stage, n_blocks in enumerate(stage_sizes):
            for i in range(n_blocks):
                x = block(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    norm=self.norm(stage + 1, train, domain),
                    dtype=self.dtype,
                    platform=self.platform,
                    name=f"layer{stage + 1}_{i}",
                )(x)
        x = probed(x, probe)
        return x, jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    @classmethod
    def stage_count(cls, architecture: str) -> int:
        return len(ARCHITECTURES[architecture][1])

    @classmethod
    def stage_of(cls, architecture: str, module: str) -> int:
        """See `Backbone`; the first stage has the stem with it."""
        layer = re.match(r"layer(\d)", module)
        return int(layer[1]) if layer else 1

    @staticmethod
    def torch_name(path: Sequence[str]) -> str:
        """torchvision's name; a shortcut is a Sequential there."""
        *modules, leaf = path
        module = ".".join(modules).replace("_", ".")
        module = module.replace("downsample.conv", "downsample.0")
        module = module.replace("downsample.bn", "downsample.1")
        return f"{module}.{LEAVES[leaf]}"

    @staticmethod
    def canonical_name(name: str) -> str:
        first, dot, rest = name.partition(".")
        return _CHILDREN.get(first, first) + dot + rest
