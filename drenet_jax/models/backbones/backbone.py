"""What a ResNet and a DenseNet have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from drenet_jax.models.norm import BatchNorm

# An image's feature map, and its mean over the plane (or what a VGG's hidden layers make of it).
Features = tuple[Float[Array, "batch rows columns channels"], Float[Array, "batch features"]]
Images = Float[Array, "batch height width 3"]
# Added to the feature map; see `model_outputs.FeatureMaps`.
Probe = Float[Array, "batch 1 1 channels"]


class Backbone(nn.Module):
    """A convolutional network with batch norm, without a class head.

    Attributes:
      architecture: a key of the module's `ARCHITECTURES`.
      width: channels of the first stage (ResNet) or of the stem (DenseNet); torchvision: 64.
      dtype: of the computation; parameters, batch statistics and `pooled` are float32.
      axis_name: the pmap axis over which batch statistics are averaged while training.
      remat: whether the backward pass computes each block anew rather than keep what is inside.
      platform: see `layers.resolve_platform`.
      frozen_stages: the first so many stages use and keep their running statistics while training.
      domains: of the batch norms; see `BatchNorm`.
    """

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
          feature_map: [B, h, w, C], h and w a 32nd of the image's (ResNet: rounded up).
          pooled: [B, C] float32, its mean over the plane.
        """
        raise NotImplementedError

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
