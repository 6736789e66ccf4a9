"""What every model takes and gives."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# ImageNet's mean and standard deviation of RGB in 0..1, which pretrained weights expect.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


@flax.struct.dataclass
class FeatureMaps:
    """What the backbone's last block gives of B images and of their P proposals.

    A model takes one as its `probes` too, of [B, 1, 1, C] and [B, P, 1, 1, C], and adds it to its
    own: the gradient by it is the sum over the plane of that by the feature maps, whichever layers
    follow (Grad-CAM).

    Attributes:
      image: [B, h, w, C].
      crops: [B, P, h', w', C]; None from a model of the whole image only.
    """

    image: jax.Array
    crops: jax.Array | None


@flax.struct.dataclass
class Outputs:
    """What a model says of a batch of B slices.

    P proposals: while training M of each group, else K of each; none from a model of the
    whole image only.

    Attributes:
      logits: [B, classes], the prediction.
      raw_logits: [B, classes] from the whole image alone.
      part_logits: [B, P, classes] from each proposal alone.
      scores: [B, P] the proposal head's scores, best first in each group.
      boxes: [B, P, 4] y0, x0, y1, x1 in pixels of the model's input, half open.
      feature_maps: of the image and of the proposals.
    All are float32, but for the feature maps, which are of the convolutions' type.
    """

    logits: jax.Array
    raw_logits: jax.Array
    part_logits: jax.Array
    scores: jax.Array
    boxes: jax.Array
    feature_maps: FeatureMaps


def probed(feature_map: jax.Array, probe: jax.Array | None) -> jax.Array:
    """The feature map with the probe added, if there is one."""
    if probe is None:
        return feature_map
    # In float32, so that its gradient is summed in float32.
    return (feature_map.astype(jnp.float32) + probe).astype(feature_map.dtype)


def normalise(images: jax.Array, inside: jax.Array | float = 1.0) -> jax.Array:
    """Grey images in RGB with ImageNet's mean and deviation.

    Args:
      images: [..., H, W] in 0..1.
      inside: [..., H, W], the share of a pixel that is image; the rest of it is 0 afterwards.

    Returns:
      [..., H, W, 3] float32.
    """
    mean = IMAGENET_MEAN * jnp.asarray(inside, jnp.float32)[..., None]
    return (images[..., None].astype(jnp.float32) - mean) / IMAGENET_STD
