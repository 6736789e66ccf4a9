"""The interface of a backbone.

A new network is one file with a subclass of `Backbone`, and an entry in `registry.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from drenet_jax.models.norm import BatchNorm

# An image's feature map, and its mean over the plane (or what a VGG's hidden layers make of it).
Features = tuple[Float[Array, "batch rows columns channels"], Float[Array, "batch features"]]
Images = Float[Array, "batch height width 3"]
# Flax's leaf -> PyTorch's.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

# Pixels of the image from one cell of a feature map to the next.
STRIDE_PX = 32

# Added to the feature map; see `model_outputs.FeatureMaps`.
Probe = Float[Array, "batch 1 1 channels"]


class Backbone(nn.Module):
    """A convolutional network of stride 32, without a class head.

    Beside `__call__` and `channels`, a network says what its stages are, for frozen ones, and what
    PyTorch calls its arrays, for published weights.

    Class attributes:
      published_width: `width` of published weights.
      rounds_up: whether the feature map of n pixels has ceil(n / 32) cells a side; else floor.
      can_remat: whether `remat` is of use.
      has_hidden_layers: whether it has an attribute `dropout` and a `__call__` with
        `dropout_keys`, and so drops features by itself (VGG).
      class_heads: what publishers call the modules that give the classes.

    Attributes:
      architecture: a key of `registry.BACKBONES`.
      width: channels of the first stage or of the stem; see `published_width`.
      dtype: of the computation; parameters, batch statistics and `pooled` are float32.
      axis_name: the pmap axis over which batch statistics are averaged while training.
      remat: whether the backward pass computes each block anew rather than keep what is inside.
      platform: see `layers.resolve_platform`.
      frozen_stages: the first so many stages use and keep their running statistics while training.
      domains: of the batch norms; see `BatchNorm`.
    """

    published_width: ClassVar[int] = 64
    rounds_up: ClassVar[bool] = True
    can_remat: ClassVar[bool] = True
    has_hidden_layers: ClassVar[bool] = False
    class_heads: ClassVar[tuple[str, ...]] = ("fc", "classifier", "head")

    architecture: str
    width: int
    dtype: DTypeLike
    axis_name: str | None = None
    remat: bool = False
    platform: str | None = None
    frozen_stages: int = 0
    domains: int | None = None

    @property
    def channels(self) -> int:
        """Of the feature map."""
        raise NotImplementedError

    def __call__(
        self, images: Images, train: bool, probe: Probe | None = None, domain: int = 0
    ) -> Features:
        """The features of normalised images.

        While training, batch statistics are those of this pass over all devices (`axis_name`), and
        the running ones take a step towards them; otherwise the running ones are used.

        Args:
          images: normalised; height and width at least 32.
          train: whether batch statistics are those of the batch.
          probe: added to the feature map; see `model_outputs.FeatureMaps`.
          domain: of the images; see `BatchNorm`.

        Returns:
          feature_map: [B, h, w, C], h and w a 32nd of the image's; see `rounds_up`.
          pooled: [B, features] float32: its mean over the plane, or what hidden layers make of it.
        """
        raise NotImplementedError

    @classmethod
    def stage_count(cls, architecture: str) -> int:
        """How many stages there are; if the last one is frozen, all of the backbone is."""
        raise NotImplementedError

    @classmethod
    def stage_of(cls, architecture: str, module: str) -> int:
        """The stage, from 1, of a module right below the backbone, by its name."""
        raise NotImplementedError

    @staticmethod
    def torch_name(path: Sequence[str]) -> str:
        """PyTorch's name of a leaf of the variables, by its path below the collection."""
        raise NotImplementedError

    @staticmethod
    def canonical_name(name: str) -> str:
        """The name as in `torch_name` of an array that some publishers call otherwise."""
        return name

    def norm(self, stage: int, train: bool, domain: int) -> Callable[..., BatchNorm]:
        """Makes the batch norms of a stage, the first being 1."""
        return functools.partial(
            BatchNorm,
            use_running_average=not train or stage <= self.frozen_stages,
            dtype=self.dtype,
            axis_name=self.axis_name,
            platform=self.platform,
            domains=self.domains,
            domain=domain,
        )
