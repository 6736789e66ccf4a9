"""ResNet 18, 34 and 50 (He et al. 2016; v1.5: the stride sits in the 3×3), torchvision's numerics.

Padding is written out everywhere: SAME pads a strided convolution by (0, 1) where PyTorch, and so
every ImageNet weight in use, pads by (1, 1).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from drenet_jax.models.layers import Conv1x1, StemConv, conv3x3, max_pool_3x3
from drenet_jax.models.model_outputs import probed
from drenet_jax.models.norm import batch_norm


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (ResNet 18 and 34)."""

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: jnp.dtype
    platform: str | None = None

    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = conv3x3(self.features, self.stride, self.dtype, "conv1")(x)
        y = self.norm(name="bn1")(y, relu=True)
        y = conv3x3(self.features, 1, self.dtype, "conv2")(y)
        x = _shortcut(self, x, self.features)
        return self.norm(name="bn2")(y, x, relu=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolutions and a shortcut (ResNet 50)."""

    features: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: jnp.dtype
    platform: str | None = None

    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.features * self.expansion
        y = Conv1x1(self.features, 1, self.dtype, self.platform, name="conv1")(x)
        y = self.norm(name="bn1")(y, relu=True)
        y = conv3x3(self.features, self.stride, self.dtype, "conv2")(y)
        y = self.norm(name="bn2")(y, relu=True)
        y = Conv1x1(out, 1, self.dtype, self.platform, name="conv3")(y)
        x = _shortcut(self, x, out)
        return self.norm(name="bn3")(y, x, relu=True)


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, features: int) -> jax.Array:
    """What a block adds to its result: x, or where the shapes differ a 1×1 convolution of it."""
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = Conv1x1(features, block.stride, block.dtype, block.platform, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x)


# name -> (block, blocks in each of the four stages)
ARCHITECTURES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


@functools.partial(jax.jit, static_argnums=0)
def _predict(block: nn.Module, variables: dict[str, Any], x: jax.Array) -> jax.Array:
    """A block with its running statistics.

    Blocks of one shape, in all passes, are traced once: half of what `predict` takes to start is
    tracing. XLA gets the same operations.
    """
    return block.apply(variables, x)


class ResNet(nn.Module):
    """The convolutional part of a ResNet, without a class head.

    Attributes:
      architecture: a key of `ARCHITECTURES`.
      width: channels of the first stage (torchvision: 64).
      dtype: of the computation; parameters, batch statistics and `pooled` are float32.
      axis_name: the pmap axis over which batch statistics are averaged while training.
      remat: whether the backward pass computes each block anew rather than keep what is inside.
      platform: see `layers.resolve_platform`.
      frozen_stages: the first so many stages use and keep their running statistics while training.
    """

    architecture: str
    width: int
    dtype: jnp.dtype
    axis_name: str | None
    remat: bool = False
    platform: str | None = None
    frozen_stages: int = 0

    @property
    def channels(self) -> int:
        """Of the feature map."""
        block, stage_sizes = ARCHITECTURES[self.architecture]
        return self.width * 2 ** (len(stage_sizes) - 1) * block.expansion

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, probe: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The features of normalised images.

        While training, batch statistics are those of this pass over all devices (`axis_name`), and
        the running ones take a step towards them; otherwise the running ones are used.

        Args:
          images: [B, H, W, 3], normalised.
          train: whether batch statistics are those of the batch.
          probe: added to the feature map; see `outputs.FeatureMaps`.

        Returns:
          feature_map: [B, ceil(H/32), ceil(W/32), C] with C = 8 × width × expansion.
          pooled: [B, C] float32, its mean over the plane.
        """
        block, stage_sizes = ARCHITECTURES[self.architecture]
        block = nn.remat(block) if self.remat and train else block

        def norm_of(stage: int) -> Callable[..., nn.Module]:
            uses_batch = train and stage > self.frozen_stages
            return batch_norm(uses_batch, self.dtype, self.axis_name, self.platform)

        x = StemConv(self.width, self.dtype, self.platform, name="conv1")(images)
        x = norm_of(1)(name="bn1")(x, relu=True)
        x = max_pool_3x3(x, self.platform)
        # Whoever captures what is between finds it in modules of their own only.
        is_captured = self.is_mutable_collection("intermediates")
        has_own_blocks = train or self.is_initializing() or is_captured
        for stage, n_blocks in enumerate(stage_sizes):
            for i in range(n_blocks):
                name = f"layer{stage + 1}_{i}"
                make = functools.partial(
                    block,
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    norm=norm_of(stage + 1),
                    dtype=self.dtype,
                    platform=self.platform,
                )
                if has_own_blocks:
                    x = make(name=name)(x)
                else:
                    mine = {kind: tree[name] for kind, tree in self.variables.items()}
                    x = _predict(make(parent=None), mine, x)
        x = probed(x, probe)
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return x, pooled
