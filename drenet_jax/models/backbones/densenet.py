"""DenseNet-121 (Huang et al. 2017), torchvision's numerics: a rival in the paper's tables."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from drenet_jax.models.layers import Conv1x1, max_pool_3x3
from drenet_jax.models.model_outputs import probed
from drenet_jax.models.norm import batch_norm

# As torchvision draws them. Conv1x1 draws by what goes out; a batch norm follows and undoes it.
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

# name -> layers in each dense block
ARCHITECTURES: dict[str, tuple[int, ...]] = {"densenet121": (6, 12, 24, 16)}


class DenseLayer(nn.Module):
    """BN, ReLU, 1×1, BN, ReLU, 3×3: `growth` new channels, put behind those of the input."""

    growth: int
    norm: Callable[..., nn.Module]
    dtype: jnp.dtype
    platform: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
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

    norm: Callable[..., nn.Module]
    dtype: jnp.dtype
    platform: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(name="norm")(x, relu=True)
        y = Conv1x1(x.shape[-1] // 2, 1, self.dtype, self.platform, name="conv")(y)
        return nn.avg_pool(y, (2, 2), strides=(2, 2), padding="VALID")


class DenseNet(nn.Module):
    """The convolutional part of a DenseNet, without a class head.

    Attributes:
      architecture: a key of `ARCHITECTURES`.
      width: channels of the stem (torchvision: 64); each layer adds half as many.
      dtype: of the computation; parameters, batch statistics and `pooled` are float32.
      axis_name: the pmap axis over which batch statistics are averaged while training.
      remat: whether the backward pass computes each layer anew rather than keep what is inside.
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
        channels = self.width
        for n_layers in ARCHITECTURES[self.architecture][:-1]:
            channels = (channels + n_layers * (self.width // 2)) // 2
        return channels + ARCHITECTURES[self.architecture][-1] * (self.width // 2)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, probe: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """The features of normalised images; batch statistics as in `ResNet.__call__`.

        Args:
          images: [B, H, W, 3], normalised; H and W at least 32.
          train: whether batch statistics are those of the batch.
          probe: added to the feature map; see `outputs.FeatureMaps`.

        Returns:
          feature_map: [B, H/32, W/32, C], after the last batch norm and ReLU; C = 16 × width in
            DenseNet-121.
          pooled: [B, C] float32, its mean over the plane.
        """
        block_sizes = ARCHITECTURES[self.architecture]
        dense_layer = nn.remat(DenseLayer) if self.remat and train else DenseLayer

        def norm_of(stage: int) -> Callable[..., nn.Module]:
            uses_batch = train and stage > self.frozen_stages
            return batch_norm(uses_batch, self.dtype, self.axis_name, self.platform)

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
        x = norm_of(1)(name="norm0")(x, relu=True)
        x = max_pool_3x3(x, self.platform)
        for block, n_layers in enumerate(block_sizes, start=1):
            for layer in range(1, n_layers + 1):
                x = dense_layer(
                    growth=self.width // 2,
                    norm=norm_of(block),
                    dtype=self.dtype,
                    platform=self.platform,
                    name=f"denseblock{block}_denselayer{layer}",
                )(x)
            if block < len(block_sizes):
                x = Transition(
                    norm_of(block), self.dtype, self.platform, name=f"transition{block}"
                )(x)
        x = probed(norm_of(len(block_sizes))(name="norm5")(x, relu=True), probe)
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return x, pooled
