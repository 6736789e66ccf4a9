"""What every model takes and gives."""

from __future__ import annotations

import typing

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

# ImageNet's mean and standard deviation of RGB in 0..1, which pretrained weights expect.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)

# Grey, in 0..1.
Slices = Num[Array | np.ndarray, "batch height width"]


@typing.no_type_check  # JAX rebuilds it with leaves of other shapes, and with no arrays
@flax.struct.dataclass
class FeatureMaps:
    """What the backbone's last block gives of B images and of their P proposals.

    A model takes one as its `probes` too, of [B, 1, 1, C] and [B, P, 1, 1, C], and adds it to its
    own: the gradient by it is the sum over the plane of that by the feature maps, whichever layers
    follow (Grad-CAM).

    Attributes:
      image: of the whole image.
      crops: of each proposal; None from a model of the whole image only.
    """

    image: Float[Array, "batch height width channels"]
    crops: Float[Array, "batch proposals crop_height crop_width channels"] | None


@typing.no_type_check  # JAX rebuilds it with leaves of other shapes, and with no arrays
@flax.struct.dataclass
class Outputs:
    """What a model says of a batch of B slices.

    P proposals: while training M of each group, else K of each; none from a model of the
    whole image only.

    Attributes:
      logits: the prediction.
      raw_logits: from the whole image alone.
      part_logits: from each proposal alone.
      scores: the proposal head's scores, best first in each group.
      boxes: y0, x0, y1, x1 in pixels of the model's input, half open.
      feature_maps: of the image and of the proposals.
    All are float32, but for the feature maps, which are of the convolutions' type.
    """

    logits: Float[Array, "batch classes"]
    raw_logits: Float[Array, "batch classes"]
    part_logits: Float[Array, "batch proposals classes"]
    scores: Float[Array, "batch proposals"]
    boxes: Float[Array, "batch proposals 4"]
    feature_maps: FeatureMaps


def probed(
    feature_map: Float[Array, "batch height width channels"],
    probe: Float[Array, "batch 1 1 channels"] | None,
) -> Float[Array, "batch height width channels"]:
    """The feature map with the probe added, if there is one."""
    if probe is None:
        return feature_map
    # In float32, so that its gradient is summed in float32.
    return (feature_map.astype(jnp.float32) + probe).astype(feature_map.dtype)


def normalise(
    images: Num[Array | np.ndarray, "*batch height width"],
    inside: Float[Array, "*batch height width"] | float = 1.0,
) -> Float[Array, "*batch height width 3"]:
    """Grey images in RGB with ImageNet's mean and deviation.

    Args:
      images: in 0..1.
      inside: the share of a pixel that is image; the rest of it is 0 afterwards.
    """
    mean = IMAGENET_MEAN * jnp.asarray(inside, jnp.float32)[..., None]
    return (jnp.asarray(images, jnp.float32)[..., None] - mean) / IMAGENET_STD
