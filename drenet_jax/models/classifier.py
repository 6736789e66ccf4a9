"""Baselines of the paper's tables: a network on the whole image only."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from drenet_jax.models.backbones import densenet, resnet, vgg
from drenet_jax.models.dropout import dropout
from drenet_jax.models.model_outputs import FeatureMaps, Outputs, normalise

ARCHITECTURES = (*resnet.ARCHITECTURES, *densenet.ARCHITECTURES, *vgg.ARCHITECTURES)


class Classifier(nn.Module):
    """A ResNet, DenseNet or VGG with a linear class head.

    Attributes:
      classes: how many.
      architecture: one of `ARCHITECTURES`.
      width: channels of the first stage.
      image_size_px: height and width of an input image.
      dropout: share of features dropped while training: of the pooled ones before the head, or of
        each hidden layer of a VGG.
      dtype: of the convolutions.
      axis_name: the pmap axis of batch statistics.
      remat: of a ResNet or DenseNet; see there.
      platform: see `layers.resolve_platform`.
      frozen_stages: of the backbone; see `ResNet`.
    """

    classes: int
    architecture: str
    width: int
    image_size_px: int
    dropout: float
    dtype: jnp.dtype
    axis_name: str | None
    remat: bool = False
    platform: str | None = None
    frozen_stages: int = 0

    def no_probes(self, batch: int) -> FeatureMaps:
        """The `probes` of a prediction that change nothing."""
        return FeatureMaps(jnp.zeros((batch, 1, 1, _backbone(self, parent=None).channels)), None)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        dropout_keys: jax.Array | None = None,
        probes: FeatureMaps | None = None,
    ) -> Outputs:
        """Scores a batch of slices; see `DRENet.__call__`. There are no proposals."""
        assert images.shape[1:] == (self.image_size_px,) * 2, images.shape
        pixels = normalise(images).astype(self.dtype)
        probe = probes and probes.image
        backbone = _backbone(self, name="backbone")
        if self.architecture in vgg.ARCHITECTURES:
            feature_map, pooled = backbone(pixels, train, dropout_keys, probe)
        else:
            feature_map, pooled = backbone(pixels, train, probe)
            if train and self.dropout:
                pooled = dropout(pooled, dropout_keys, 0, self.dropout)
        logits = nn.Dense(self.classes, name="head")(pooled)
        batch = len(images)
        return Outputs(
            logits=logits,
            raw_logits=logits,
            part_logits=jnp.zeros((batch, 0, self.classes)),
            scores=jnp.zeros((batch, 0)),
            boxes=jnp.zeros((batch, 0, 4)),
            feature_maps=FeatureMaps(feature_map, None),
        )


def _backbone(model: Classifier, **place) -> nn.Module:
    # `place` is where Flax puts it: its name among the parameters, or nowhere.
    if model.architecture in vgg.ARCHITECTURES:
        return vgg.VGG(model.architecture, model.width, model.dropout, model.dtype, **place)
    network = resnet.ResNet if model.architecture in resnet.ARCHITECTURES else densenet.DenseNet
    return network(
        model.architecture,
        model.width,
        model.dtype,
        model.axis_name,
        model.remat,
        model.platform,
        model.frozen_stages,
        **place,
    )
