"""Grad-CAM: where in a picture the evidence for a class lies, for every model of the family.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017, equations 1 and 2; the paper draws it in Fig. 5.
"""

from __future__ import annotations

import typing
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from drenet_jax.models.build import Model
from drenet_jax.models.model_outputs import FeatureMaps, Outputs, Slices


@typing.no_type_check  # JAX rebuilds it with leaves of other shapes, and with no arrays
@flax.struct.dataclass
class HeatMaps:
    """Grad-CAM of the backbone's last block, at least 0 and not scaled, float32.

    Attributes:
      image: over the whole input.
      crops: over each proposal; there are 0 for a model without any.
    """

    image: Float[Array, "batch classes height width"]
    crops: Float[Array, "batch classes proposals crop_height crop_width"]


def grad_cam(model: Model, variables: dict[str, Any], images: Slices) -> tuple[Outputs, HeatMaps]:
    """Scores slices and says for each class where the evidence lies.

    A class's map is ReLU(sum over channels of a_k A_k): A is the last block's feature map (VGG:
    after its pooling), and a_k the mean over the plane of the gradient of the class's logit by A_k.
    The logit is that of the whole model: a DRENet's crops have maps of their own, by what each adds
    to the same logit.

    The gradients go back to the last block only, so that the maps of all classes cost little beside
    the forward pass.

    Args:
      model: any of the family.
      variables: `params` and `batch_stats`.
      images: grey in 0..1.
    """

    def scored(probes: FeatureMaps) -> tuple[jax.Array, Outputs]:
        # Flax returns a pair only where collections are mutable.
        outputs = cast(Outputs, model.apply(variables, images, train=False, probes=probes))
        return outputs.logits, outputs

    logits, pull_back, outputs = jax.vjp(scored, model.no_probes(images), has_aux=True)

    def gradients(of_class: jax.Array) -> FeatureMaps:
        return pull_back(jnp.broadcast_to(of_class, logits.shape).astype(logits.dtype))[0]

    by_class = jax.vmap(gradients)(jnp.eye(logits.shape[1]))
    maps = outputs.feature_maps
    batch, classes = logits.shape
    if maps.crops is None or by_class.crops is None:
        crops = jnp.zeros((batch, classes, 0, 0, 0))
    else:
        crops = jnp.moveaxis(_weighted(maps.crops, by_class.crops), 0, 1)
    return outputs, HeatMaps(jnp.moveaxis(_weighted(maps.image, by_class.image), 0, 1), crops)


def _weighted(feature_map: jax.Array, gradients: jax.Array) -> jax.Array:
    """[..., h, w, C] and the sums [classes, ..., 1, 1, C] -> [classes, ..., h, w]."""
    height, width = feature_map.shape[-3:-1]
    weights = gradients[..., 0, 0, :] / (height * width)
    return jax.nn.relu(
        jnp.einsum(
            "...hwc,k...c->k...hw",
            feature_map.astype(jnp.float32),
            weights,
            # In TensorFloat-32 maps of nearly nothing would be noise.
            precision=jax.lax.Precision.HIGHEST,
        )
    )
