"""DRENet (paper 2.2.2) and its family: whole image, top-K details and their relation together."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from drenet_jax.models import proposals
from drenet_jax.models.backbones.backbone import Backbone
from drenet_jax.models.crops import box_attention, crop_slices
from drenet_jax.models.dropout import dropout
from drenet_jax.models.model_outputs import FeatureMaps, Outputs, Slices, normalise

# What the image of the third pass shows: the boxes weighted by their confidences (paper), which get
# no gradient from it when they are detached; the best box of the last group at full size (the
# authors' code); or there is none (NTS-Net).
CONTEXTS = ("weighted", "weighted_detached", "zoom", "none")

# Running statistics of the backbone's batch norms: of all passes together (the authors' code), or
# per pass (domain-specific batch norm). While training a pass is normalised by its own batch either
# way (but for frozen stages); mixed statistics then suit none of the passes.
BATCH_STATISTICS = ("shared", "per_pass")
# The domains of the batch norms, in the order of their statistics.
PASSES = ("image", "crops", "context")
# Of a slice's key while training: dropout has a stream for each pass, random boxes the one after.
_BOX_STREAM = len(PASSES)


class DRENet(nn.Module):
    """Details Relation Extraction network.

    One backbone sees the whole image, each of the top-K crops, and a context image made of the
    boxes; an MLP scores the concatenated features. Gradients reach the proposal head through the
    ranking loss and through the confidences of a weighted context image, never through the feature
    map. Without a head (`selection` "random" or "grid") all boxes have the score 0, and their
    confidences are 1/2.

    Attributes:
      classes: how many.
      backbone: its domains are `PASSES`, or it has none.
      image_size_px: height and width of an input image.
      crop_size_px: height and width to which a proposal is resized.
      levels: of the proposal head.
      groups: of the levels; each has proposals of its own.
      head_features: channels inside the proposal head.
      nms_iou: proposals of a group overlap less than this.
      selection: one of `proposals.SELECTIONS`; only "learned" has a proposal head. "random" draws
        by a slice's own key while training, and by a hash of the image for a prediction.
      context: one of `CONTEXTS`.
      hidden: sizes of the MLP's hidden layers; none: a linear classifier.
      dropout: share of pooled features dropped while training.
    """

    classes: int
    backbone: Backbone
    image_size_px: int
    crop_size_px: int
    levels: tuple[proposals.Level, ...]
    groups: tuple[proposals.Group, ...]
    head_features: int
    nms_iou: float
    selection: str
    context: str
    hidden: tuple[int, ...]
    dropout: float

    def no_probes(self, images: Slices) -> FeatureMaps:
        """The `probes` of a prediction of images that change nothing."""
        # Not len(): the batch of an exported model has no size.
        batch, channels = images.shape[0], self.backbone.channels
        crops = sum(group.top_k for group in self.groups)
        return FeatureMaps(
            image=jnp.zeros((batch, 1, 1, channels)),
            crops=jnp.zeros((batch, crops, 1, 1, channels)),
        )

    @nn.compact
    def __call__(
        self,
        images: Slices,
        *,
        train: bool,
        dropout_keys: Key[Array, " batch"] | None = None,
        probes: FeatureMaps | None = None,
    ) -> Outputs:
        """Scores a batch of slices.

        Args:
          images: grey in 0..1.
          train: batch statistics of the batch, M proposals, dropout; else K proposals.
          dropout_keys: a PRNG key for each image, while training: a slice's dropout and its random
            boxes then depend on its own key alone, whatever the number of devices.
          probes: added to the feature maps of the image and of the proposals.

        Returns:
          logits of all that was seen; proposals group by group.
        """
        assert images.shape[1:] == (self.image_size_px,) * 2, images.shape
        images = jnp.asarray(images)
        batch = images.shape[0]

        def features(
            pixels: jax.Array, domain: int, probe: jax.Array | None = None
        ) -> tuple[jax.Array, jax.Array]:
            feature_map, pooled = self.backbone(pixels, train, probe, domain)
            pooled = pooled.reshape(batch, -1)  # all features of an image are dropped by its key
            if train and self.dropout:
                assert dropout_keys is not None
                pooled = dropout(pooled, dropout_keys, domain, self.dropout)
            return feature_map, pooled

        pixels = normalise(images).astype(self.backbone.dtype)
        feature_map, pooled_image = features(pixels, 0, None if probes is None else probes.image)

        counts = [group.train_proposals if train else group.top_k for group in self.groups]
        if self.selection == "learned":
            all_scores = proposals.ProposalHead(
                self.levels, self.head_features, self.backbone.dtype, name="proposal_head"
            )(jax.lax.stop_gradient(feature_map))
        else:
            all_scores = self._scores_without_head(images, counts, dropout_keys if train else None)
        scores, boxes = proposals.select_proposals(
            all_scores, self.levels, self.groups, self.image_size_px, self.nms_iou, counts
        )
        if self.selection != "learned":
            scores = jnp.zeros_like(scores)
        top = _top_of_groups(counts, [group.top_k for group in self.groups])

        crops = self._crops(images, boxes, self.crop_size_px)
        crop_probe = None
        if probes is not None and probes.crops is not None:
            crop_probe = probes.crops.reshape(-1, *probes.crops.shape[2:])
        crop_maps, parts = features(crops.reshape(-1, *crops.shape[2:]), 1, crop_probe)
        crop_maps = crop_maps.reshape(batch, -1, *crop_maps.shape[1:])
        parts = parts.reshape(batch, len(boxes[0]), -1)

        pooled = [parts[:, top].reshape(batch, -1), pooled_image]
        if self.context != "none":
            context = self._context(images, pixels, boxes, scores, top, counts)
            pooled.append(features(context, 2)[1])
        x = jnp.concatenate(pooled, axis=1)
        for i, size in enumerate(self.hidden):
            x = nn.relu(nn.Dense(size, name=f"mlp{i + 1}")(x))
        return Outputs(
            logits=nn.Dense(self.classes, name="concat_head")(x),
            raw_logits=nn.Dense(self.classes, name="raw_head")(pooled_image),
            part_logits=nn.Dense(self.classes, name="part_head")(parts),
            scores=scores,
            boxes=boxes,
            feature_maps=FeatureMaps(feature_map, crop_maps),
        )

    def _scores_without_head(
        self, images: jax.Array, counts: list[int], keys: jax.Array | None
    ) -> jax.Array:
        """[B, A]: scores whose order is random, or the grid's."""
        if self.selection == "grid":
            scores = proposals.grid_scores(
                self.levels, self.groups, self.image_size_px, self.nms_iou, counts
            )
            return jnp.broadcast_to(scores, (images.shape[0], len(scores)))
        if keys is None:
            keys = proposals.image_keys(images)
        else:
            keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, _BOX_STREAM)
        anchors = proposals.anchor_boxes(self.levels, self.image_size_px)
        return proposals.random_scores(keys, len(anchors))

    def _context(
        self,
        images: jax.Array,
        pixels: jax.Array,
        boxes: jax.Array,
        scores: jax.Array,
        top: list[int],
        counts: list[int],
    ) -> jax.Array:
        """[B, S, S, 3]: the image of the third pass."""
        size_px = self.image_size_px
        if self.context == "zoom":
            best_of_last = sum(counts[:-1])
            box = jnp.clip(boxes[:, best_of_last : best_of_last + 1], 0, size_px)
            return self._crops(images, box, size_px)[:, 0]
        confidences = nn.sigmoid(scores[:, top])
        if self.context == "weighted_detached":
            confidences = jax.lax.stop_gradient(confidences)
        attention = box_attention(boxes[:, top], confidences, size_px, size_px)
        return pixels * attention[..., None].astype(self.backbone.dtype)

    def _crops(self, images: jax.Array, boxes: jax.Array, size_px: int) -> jax.Array:
        return crop_slices(
            images, boxes, (size_px, size_px), self.backbone.dtype, self.backbone.platform
        )


def _top_of_groups(counts: list[int], top_k: list[int]) -> list[int]:
    """Places of each group's best K among the proposals of all groups."""
    first = itertools.accumulate(counts[:-1], initial=0)
    return [start + i for start, k in zip(first, top_k, strict=True) for i in range(k)]
