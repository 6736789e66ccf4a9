"""VGG16 without batch norm (Simonyan and Zisserman 2015): a rival in the paper's tables."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from drenet_jax.models.backbones.backbone import LEAVES, Backbone, Features, Images, Probe
from drenet_jax.models.dropout import dropout
from drenet_jax.models.model_outputs import probed

# As torchvision draws them.
_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_dense_init = nn.initializers.normal(0.01)

# name -> 3×3 convolutions in each block
ARCHITECTURES: dict[str, tuple[int, ...]] = {"vgg16": (2, 2, 3, 3, 3)}

# The hidden layers see a plane of so many cells in each direction, whatever the image's size.
POOLED_CELLS = 7


class VGG(Backbone):
    """A VGG without the last layer, which gives the classes, and without batch norm.

    Layers have the numbers that they have in torchvision, where ReLU, pooling and dropout count.
    The first hidden layer takes its inputs in the order row, column, channel (torchvision: channel,
    row, column).

    Attributes, beside those of `Backbone`, of which those of batch norms are of no use:
      width: channels of the first block; a hidden layer has 64 times as many.
      dropout: share of each hidden layer's features dropped while training (torchvision: 0.5).
    """

    rounds_up: ClassVar[bool] = False
    can_remat: ClassVar[bool] = False
    has_hidden_layers: ClassVar[bool] = True
    class_heads: ClassVar[tuple[str, ...]] = ("classifier.6", "head")

    dropout: float = 0.0

    @property
    def channels(self) -> int:
        """Of the feature map."""
        return self.width * min(2 ** (len(ARCHITECTURES[self.architecture]) - 1), 8)

    @nn.compact
    def __call__(
        self,
        images: Images,
        train: bool,
        probe: Probe | None = None,
        domain: int = 0,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Features:
        """The features of normalised images.

        Args:
          images: normalised; height and width at least 32.
          train: whether features are dropped.
          probe: added to the feature map; see `model_outputs.FeatureMaps`.
          domain: of no use, without batch norm.
          dropout_keys: a PRNG key for each image, while training with dropout.

        Returns:
          feature_map: [B, H/32, W/32, C], after the last max-pooling; C = 8 × width.
          pooled: [B, 64 × width] float32, what the second hidden layer gives.
        """
        x = images.astype(self.dtype)
        number = 0
        for block, n_convolutions in enumerate(ARCHITECTURES[self.architecture]):
            for _ in range(n_convolutions):
                x = nn.Conv(
                    self.width * min(2**block, 8),
                    (3, 3),
                    padding=((1, 1), (1, 1)),
                    kernel_init=_conv_init,
                    dtype=self.dtype,
                    name=f"features_{number}",
                )(x)
                x = nn.relu(x)
                number += 2
            x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="VALID")
            number += 1
        feature_map = x = probed(x, probe)
        x = adaptive_average_pool(x, POOLED_CELLS)
        x = x.reshape(x.shape[0], -1)
        for stream, name in enumerate(("classifier_0", "classifier_3")):
            x = nn.Dense(64 * self.width, kernel_init=_dense_init, dtype=self.dtype, name=name)(x)
            x = nn.relu(x)
            if train and self.dropout:
                assert dropout_keys is not None
                x = dropout(x, dropout_keys, stream, self.dropout)
        return feature_map, x.astype(jnp.float32)

    @classmethod
    def stage_count(cls, architecture: str) -> int:
        return len(ARCHITECTURES[architecture]) + 1

    @classmethod
    def stage_of(cls, architecture: str, module: str) -> int:
        """See `Backbone`; the last stage is the two hidden layers."""
        kind, _, number = module.partition("_")
        if kind == "classifier":
            return cls.stage_count(architecture)
        # ReLUs count, and so does the pooling at the end of a block.
        ends = [2 * n + 1 for n in ARCHITECTURES[architecture]]
        return next(stage for stage in range(1, len(ends) + 1) if int(number) < sum(ends[:stage]))

    @staticmethod
    def torch_name(path: Sequence[str]) -> str:
        """torchvision's name."""
        *modules, leaf = path
        return f"{'.'.join(modules).replace('_', '.')}.{LEAVES[leaf]}"

    @staticmethod
    def canonical_name(name: str) -> str:
        """See `Backbone`; timm writes the hidden layers as convolutions."""
        name = re.sub(r"^pre_logits\.fc1\.", "classifier.0.", name)
        return re.sub(r"^pre_logits\.fc2\.", "classifier.3.", name)


def adaptive_average_pool(
    x: Float[Array, "batch height width channels"], cells: int
) -> Float[Array, "batch {cells} {cells} channels"]:
    """Means over `cells` × `cells` parts of a plane, cut as PyTorch's AdaptiveAvgPool2d cuts it.

    Part i of n rows goes from floor(i n / cells) to ceil((i + 1) n / cells); parts overlap where
    `cells` does not divide n, and repeat rows where n is smaller.

    The result is of the type of `x`.
    """
    rows, columns = (jnp.asarray(part_means(n, cells), x.dtype) for n in x.shape[1:3])
    # Products with ones must not round what they copy, as they would in TensorFloat-32.
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


@functools.cache
def part_means(n: int, cells: int) -> Float[np.ndarray, "{cells} {n}"]:
    """Row i averages over part i."""
    means = np.zeros((cells, n), np.float32)
    for i in range(cells):
        start, stop = i * n // cells, math.ceil((i + 1) * n / cells)
        means[i, start:stop] = 1 / (stop - start)
    return means
