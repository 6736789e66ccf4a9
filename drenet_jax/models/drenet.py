"""DRENet (paper 2.2.2): whole image, top-K details and their relation, scored together."""

from __future__ import annotations

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from drenet_jax.models import proposals
from drenet_jax.models.crops import box_attention, crop_and_resize
from drenet_jax.models.resnet import ResNet

# ImageNet's mean and standard deviation of RGB in 0..1, which pretrained weights expect.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


@flax.struct.dataclass
class Outputs:
    """What DRENet says of a batch of B slices; P proposals: M while training, else K.

    Attributes:
      logits: [B, classes] from all features together: the prediction.
      raw_logits: [B, classes] from the whole image alone.
      part_logits: [B, P, classes] from each proposal alone.
      scores: [B, P] the proposal head's scores, best first.
      boxes: [B, P, 4] y0, x0, y1, x1 in pixels of the model's input, half open.
    All are float32.
    """

    logits: jax.Array
    raw_logits: jax.Array
    part_logits: jax.Array
    scores: jax.Array
    boxes: jax.Array


class DRENet(nn.Module):
    """Details Relation Extraction network.

    One ResNet sees the whole image, each of the top-K crops, and the image weighted by the
    confidences of the K boxes; an MLP scores the concatenated features. Gradients reach the
    proposal head through the ranking loss and through the confidences of the weighted image, never
    through the feature map.

    Attributes:
      classes: how many.
      backbone: `resnet18`, `resnet34` or `resnet50`.
      width: channels of the backbone's first stage.
      image_size_px: height and width of an input image.
      crop_size_px: height and width to which a proposal is resized.
      levels: of the proposal head.
      head_features: channels inside the proposal head.
      nms_iou: proposals overlap less than this.
      train_proposals: M, proposals while training.
      top_k: K, proposals that go into the prediction.
      hidden: sizes of the MLP's hidden layers.
      dropout: share of pooled features dropped while training.
      dtype: of the convolutions.
      axis_name: the pmap axis of batch statistics.
    """

    classes: int
    backbone: str
    width: int
    image_size_px: int
    crop_size_px: int
    levels: tuple[proposals.Level, ...]
    head_features: int
    nms_iou: float
    train_proposals: int
    top_k: int
    hidden: tuple[int, ...]
    dropout: float
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, dropout_keys: jax.Array | None = None
    ) -> Outputs:
        """Scores a batch of slices.

        Args:
          images: [B, S, S] grey in 0..1, S = image_size_px.
          train: batch statistics of the batch, M proposals, dropout; else K proposals.
          dropout_keys: [B] PRNG keys, one for each image, while training: a slice's dropout then
            depends on its own key alone, whatever the number of devices.
        """
        assert images.shape[1:] == (self.image_size_px,) * 2, images.shape
        batch = images.shape[0]
        backbone = ResNet(self.backbone, self.width, self.dtype, self.axis_name, name="backbone")
        n_proposals = self.train_proposals if train else self.top_k

        def drop(features: jax.Array, stream: int) -> jax.Array:
            if not train or not self.dropout:
                return features
            return _dropout(features, dropout_keys, stream, self.dropout)

        pixels = normalise(images).astype(self.dtype)
        feature_map, pooled = backbone(pixels, train)
        pooled = drop(pooled, 0)

        anchors, iou = _anchors(self.levels, self.image_size_px)
        all_scores = proposals.ProposalHead(
            self.levels, self.head_features, self.dtype, name="proposal_head"
        )(jax.lax.stop_gradient(feature_map))
        picks = proposals.select_top(all_scores, iou, self.nms_iou, n_proposals)
        scores = jnp.take_along_axis(all_scores, picks, axis=1)
        boxes = jnp.asarray(anchors)[picks]

        crops = crop_and_resize(pixels, boxes, (self.crop_size_px,) * 2)
        _, parts = backbone(crops.reshape(batch * n_proposals, *crops.shape[2:]), train)
        parts = drop(parts.reshape(batch, n_proposals, -1), 1)

        top_boxes = boxes[:, : self.top_k]
        confidences = nn.sigmoid(scores[:, : self.top_k])
        attention = box_attention(top_boxes, confidences, self.image_size_px, self.image_size_px)
        _, relation = backbone(pixels * attention[..., None].astype(self.dtype), train)
        relation = drop(relation, 2)

        top_parts = parts[:, : self.top_k].reshape(batch, -1)
        x = jnp.concatenate([top_parts, pooled, relation], axis=1)
        for i, features in enumerate(self.hidden):
            x = nn.relu(nn.Dense(features, name=f"mlp{i + 1}")(x))
        return Outputs(
            logits=nn.Dense(self.classes, name="concat_head")(x),
            raw_logits=nn.Dense(self.classes, name="raw_head")(pooled),
            part_logits=nn.Dense(self.classes, name="part_head")(parts),
            scores=scores,
            boxes=boxes,
        )


def normalise(images: jax.Array) -> jax.Array:
    """Grey [B, H, W] in 0..1 -> [B, H, W, 3] float32 with ImageNet's mean and deviation."""
    return (images[..., None].astype(jnp.float32) - IMAGENET_MEAN) / IMAGENET_STD


def _dropout(features: jax.Array, keys: jax.Array, stream: int, rate: float) -> jax.Array:
    """Drops features of each image by the image's own key; `stream` tells the passes apart."""

    def one_image(x: jax.Array, key: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(jax.random.fold_in(key, stream), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), 0)

    return jax.vmap(one_image)(features, keys)


@functools.cache
def _anchors(levels: tuple[proposals.Level, ...], image_size_px: int):
    boxes = proposals.anchor_boxes(levels, image_size_px)
    return boxes, proposals.pairwise_iou(boxes)
