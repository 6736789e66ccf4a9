"""Baselines of the paper's tables: a network on the whole image only."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Key

from drenet_jax.models.backbones.backbone import Backbone
from drenet_jax.models.dropout import dropout
from drenet_jax.models.model_outputs import FeatureMaps, Outputs, Slices, normalise


class Classifier(nn.Module):
    """A backbone with a linear class head.

    Attributes:
      classes: how many.
      backbone: gives the features.
      image_size_px: height and width of an input image.
      dropout: share of pooled features dropped while training; 0 for a backbone with hidden layers,
        which drops its own.
    """

    classes: int
    backbone: Backbone
    image_size_px: int
    dropout: float

    def no_probes(self, images: Slices) -> FeatureMaps:
        """The `probes` of a prediction of images that change nothing."""
        return FeatureMaps(jnp.zeros((images.shape[0], 1, 1, self.backbone.channels)), None)

    @nn.compact
    def __call__(
        self,
        images: Slices,
        *,
        train: bool,
        dropout_keys: Key[Array, " batch"] | None = None,
        probes: FeatureMaps | None = None,
    ) -> Outputs:
        """Scores a batch of slices; see `DRENet.__call__`. There are no proposals."""
        assert images.shape[1:] == (self.image_size_px,) * 2, images.shape
        pixels = normalise(images).astype(self.backbone.dtype)
        probe = None if probes is None else probes.image
        keys: dict[str, Any] = (
            {"dropout_keys": dropout_keys} if self.backbone.has_hidden_layers else {}
        )
        feature_map, pooled = self.backbone(pixels, train, probe, **keys)
        if train and self.dropout:
            assert dropout_keys is not None
            pooled = dropout(pooled, dropout_keys, 0, self.dropout)
        logits = nn.Dense(self.classes, name="head")(pooled)
        batch = images.shape[0]
        return Outputs(
            logits=logits,
            raw_logits=logits,
            part_logits=jnp.zeros((batch, 0, self.classes)),
            scores=jnp.zeros((batch, 0)),
            boxes=jnp.zeros((batch, 0, 4)),
            feature_maps=FeatureMaps(feature_map, None),
        )
