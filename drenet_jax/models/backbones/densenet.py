"""DenseNet-121 (Huang et al. 2017), torchvision's numerics: a rival in the paper's tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from drenet_jax.models.backbones.backbone import LEAVES, Backbone, Features, Images, Probe
from drenet_jax.models.layers import Conv1x1, max_pool_3x3
from drenet_jax.models.model_outputs import probed
from drenet_jax.models.norm import BatchNorm

# As torchvision draws them. Conv1x1 draws by what goes out; a batch norm follows and undoes it.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

# name -> layers in each dense block
ARCHITECTURES: dict[str, tuple[int, ...]] = {"densenet121": (6, 12, 24, 16)}


class DenseLayer(nn.Module):
    """BN, ReLU, 1×1, BN, ReLU, 3×3: `growth` new channels, put behind those of the input."""

    growth: int
    norm: Callable[..., BatchNorm]
    dtype: DTypeLike
    platform: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels+{self.growth}"]:
        y = self.norm(name="norm1")(x, relu=True)
        y = Conv1x1(4 * self.growth, 1, self.dtype, self.platform, name="conv1")(y)
        y = self.norm(name="norm2")(y, relu=True)
        y = nn.Conv(
            self.growth,
            (3, 3),
            padding=((1, 1), (1, 1)),
            use_bias=False,
            kernel_init=_kernel_init,
            dtype=self.dtype,
            name="conv2",
        )(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """BN, ReLU, 1×1 to half the channels, 2×2 average pooling."""

    norm: Callable[..., BatchNorm]
    dtype: DTypeLike
    platform: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height//2 width//2 channels//2"]:
        y = self.norm(name="norm")(x, relu=True)
        y = Conv1x1(x.shape[-1] // 2, 1, self.dtype, self.platform, name="conv")(y)
        return nn.avg_pool(y, (2, 2), strides=(2, 2), padding="VALID")


class DenseNet(Backbone):
    """A DenseNet; each layer adds width / 2 channels."""

    rounds_up: ClassVar[bool] = False

    @property
    def channels(self) -> int:
        channels = self.width
        for n_layers in ARCHITECTURES[self.architecture][:-1]:
            channels = (channels + n_layers * (self.width // 2)) // 2
        return channels + ARCHITECTURES[self.architecture][-1] * (self.width // 2)

    @nn.compact
    def __call__(
        self, images: Images, train: bool, probe: Probe | None = None, domain: int = 0
    ) -> Features:
        """See `Backbone`; the feature map is that after the last batch norm and ReLU."""
        block_sizes = ARCHITECTURES[self.architecture]
        dense_layer = nn.remat(DenseLayer) if self.remat and train else DenseLayer
        x = nn.Conv(
            self.width,
            (7, 7),
            strides=2,
            padding=((3, 3), (3, 3)),
            use_bias=False,
            kernel_init=_kernel_init,
            dtype=self.dtype,
            name="conv0",
        )(images)
        x = self.norm(1, train, domain)(name="norm0")(x, relu=True)
        x = max_pool_3x3(x, self.platform)
        for block, n_layers in enumerate(block_sizes, start=1):
            for layer in range(1, n_layers + 1):
                x = dense_layer(
                    growth=self.width // 2,
                    norm=self.norm(block, train, domain),
                    dtype=self.dtype,
                    platform=self.platform,
                    name=f"denseblock{block}_denselayer{layer}",
                )(x)
            if block < len(block_sizes):
                x = Transition(
                    self.norm(block, train, domain),
                    self.dtype,
                    self.platform,
                    name=f"transition{block}",
                )(x)
        x = self.norm(len(block_sizes), train, domain)(name="norm5")(x, relu=True)
        x = probed(x, probe)
        return x, jnp.mean(x, axis=(1, 2), dtype=jnp.float32)

    @classmethod
    def stage_count(cls, architecture: str) -> int:
        return len(ARCHITECTURES[architecture])

    @classmethod
    def stage_of(cls, architecture: str, module: str) -> int:
        """See `Backbone`; the first stage has the stem, each the transition behind it."""
        if module == "norm5":
            return cls.stage_count(architecture)
        block = re.match(r"(?:denseblock|transition)(\d)", module)
        return int(block[1]) if block else 1

    @staticmethod
    def torch_name(path: Sequence[str]) -> str:
        """torchvision's name."""
        *modules, leaf = path
        return f"features.{'.'.join(modules).replace('_', '.')}.{LEAVES[leaf]}"

    @staticmethod
    def canonical_name(name: str) -> str:
        """See `Backbone`; torchvision's first weights have other names of layers."""
        return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)
