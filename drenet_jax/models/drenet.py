"""DRENet (paper 2.2.2) and its family: whole image, top-K details and their relation together."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from drenet_jax.models import proposals
from drenet_jax.models.backbones.resnet import ResNet
from drenet_jax.models.crops import box_attention, crop_slices
from drenet_jax.models.dropout import dropout
from drenet_jax.models.model_outputs import FeatureMaps, Outputs, normalise

# What the image of the third pass shows: the boxes weighted by their confidences (paper), which get
# no gradient from it when they are detached; the best box of the last group at full size (the
# authors' code); or there is none (NTS-Net).
CONTEXTS = ("weighted", "weighted_detached", "zoom", "none")

# Whose batches the running statistics of the backbone's batch norms follow: those of all passes
# together (the authors' code), or of each pass its own. While training a pass is normalised by its
# own batch either way (but for frozen stages); mixed statistics then suit none of the passes.
BATCH_STATISTICS = ("shared", "per_pass")
# Where each pass finds its statistics; its parameters are those of the first.
PASSES = ("backbone", "backbone_crops", "backbone_context")


class DRENet(nn.Module):
    """Details Relation Extraction network.

    One ResNet sees the whole image, each of the top-K crops, and a context image made of the boxes;
    an MLP scores the concatenated features. Gradients reach the proposal head through the ranking
    loss and through the confidences of a weighted context image, never through the feature map.

    Attributes:
      classes: how many.
      backbone: `resnet18`, `resnet34` or `resnet50`.
      width: channels of the backbone's first stage.
      image_size_px: height and width of an input image.
      crop_size_px: height and width to which a proposal is resized.
      levels: of the proposal head.
      groups: of the levels; each has proposals of its own.
      head_features: channels inside the proposal head.
      nms_iou: proposals of a group overlap less than this.
      context: one of `CONTEXTS`.
      batch_statistics: one of `BATCH_STATISTICS`.
      hidden: sizes of the MLP's hidden layers; none: a linear classifier.
      dropout: share of pooled features dropped while training.
      dtype: of the convolutions.
      axis_name: the pmap axis of batch statistics.
      remat: of the backbone; see `ResNet`.
      platform: see `layers.resolve_platform`.
      frozen_stages: of the backbone; see `ResNet`.
    """

    classes: int
    backbone: str
    width: int
    image_size_px: int
    crop_size_px: int
    levels: tuple[proposals.Level, ...]
    groups: tuple[proposals.Group, ...]
    head_features: int
    nms_iou: float
    context: str
    batch_statistics: str
    hidden: tuple[int, ...]
    dropout: float
    dtype: jnp.dtype
    axis_name: str | None
    remat: bool = False
    platform: str | None = None
    frozen_stages: int = 0

    def no_probes(self, batch: int) -> FeatureMaps:
        """The `probes` of a prediction that change nothing."""
        channels = _backbone(self, parent=None).channels
        crops = sum(group.top_k for group in self.groups)
        return FeatureMaps(
            image=jnp.zeros((batch, 1, 1, channels)),
            crops=jnp.zeros((batch, crops, 1, 1, channels)),
        )

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        dropout_keys: jax.Array | None = None,
        probes: FeatureMaps | None = None,
    ) -> Outputs:
        """Scores a batch of slices.

        Args:
          images: [B, S, S] grey in 0..1, S = image_size_px.
          train: batch statistics of the batch, M proposals, dropout; else K proposals.
          dropout_keys: [B] PRNG keys, one for each image, while training: a slice's dropout then
            depends on its own key alone, whatever the number of devices.
          probes: added to the feature maps of the image and of the proposals.

        Returns:
          logits of all that was seen; proposals group by group.
        """
        assert images.shape[1:] == (self.image_size_px,) * 2, images.shape
        batch = images.shape[0]
        backbone = _backbone(self, name="backbone")

        def features(
            pixels: jax.Array, stream: int, probe: jax.Array | None = None
        ) -> tuple[jax.Array, jax.Array]:
            if stream == 0 or self.batch_statistics == "shared":
                feature_map, pooled = backbone(pixels, train, probe)
            else:
                feature_map, pooled = self._with_own_statistics(stream, pixels, train, probe)
            pooled = pooled.reshape(batch, -1)  # all features of an image are dropped by its key
            if train and self.dropout:
                pooled = dropout(pooled, dropout_keys, stream, self.dropout)
            return feature_map, pooled

        pixels = normalise(images).astype(self.dtype)
        feature_map, whole = features(pixels, 0, probes and probes.image)

        all_scores = proposals.ProposalHead(
            self.levels, self.head_features, self.dtype, name="proposal_head"
        )(jax.lax.stop_gradient(feature_map))
        counts = [group.train_proposals if train else group.top_k for group in self.groups]
        scores, boxes = proposals.select_proposals(
            all_scores, self.levels, self.groups, self.image_size_px, self.nms_iou, counts
        )
        top = _top_of_groups(counts, [group.top_k for group in self.groups])

        crops = self._crops(images, boxes, self.crop_size_px)
        crop_maps, parts = features(
            crops.reshape(-1, *crops.shape[2:]),
            1,
            probes and probes.crops.reshape(-1, *probes.crops.shape[2:]),
        )
        crop_maps = crop_maps.reshape(batch, -1, *crop_maps.shape[1:])
        parts = parts.reshape(batch, len(boxes[0]), -1)

        seen = [parts[:, top].reshape(batch, -1), whole]
        if self.context != "none":
            context = self._context(images, pixels, boxes, scores, top, counts)
            seen.append(features(context, 2)[1])
        x = jnp.concatenate(seen, axis=1)
        for i, size in enumerate(self.hidden):
            x = nn.relu(nn.Dense(size, name=f"mlp{i + 1}")(x))
        return Outputs(
            logits=nn.Dense(self.classes, name="concat_head")(x),
            raw_logits=nn.Dense(self.classes, name="raw_head")(whole),
            part_logits=nn.Dense(self.classes, name="part_head")(parts),
            scores=scores,
            boxes=boxes,
            feature_maps=FeatureMaps(feature_map, crop_maps),
        )

    def _with_own_statistics(
        self, stream: int, pixels: jax.Array, train: bool, probe: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """What the backbone gives with the running statistics of this pass."""
        train = train and not self.is_initializing()
        own = self.variable(
            "batch_stats", PASSES[stream], lambda: self.variables["batch_stats"]["backbone"]
        )
        result, updated = _backbone(self, parent=None).apply(
            {"params": self.variables["params"]["backbone"], "batch_stats": own.value},
            pixels,
            train,
            probe,
            mutable=["batch_stats"] if train else [],
        )
        if train:
            own.value = updated["batch_stats"]
        return result

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
        return pixels * attention[..., None].astype(self.dtype)

    def _crops(self, images: jax.Array, boxes: jax.Array, size_px: int) -> jax.Array:
        return crop_slices(images, boxes, (size_px,) * 2, self.dtype, self.platform)


def _backbone(model: DRENet, **place) -> ResNet:
    # `place` is where Flax puts it: its name among the parameters, or nowhere.
    return ResNet(
        model.backbone,
        model.width,
        model.dtype,
        model.axis_name,
        model.remat,
        model.platform,
        model.frozen_stages,
        **place,
    )


def _top_of_groups(counts: list[int], top_k: list[int]) -> list[int]:
    """Places of each group's best K among the proposals of all groups."""
    places, first = [], 0
    for count, k in zip(counts, top_k, strict=True):
        places += range(first, first + k)
        first += count
    return places
