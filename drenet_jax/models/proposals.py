"""Where to look: anchors, the two-scale proposal head and hard non-maximum suppression."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int32, Key

# Which anchors become proposals: those with the head's highest scores (paper), or, to measure what
# the head adds, random ones or the same ones in every image.
SELECTIONS = ("learned", "random", "grid")


@dataclasses.dataclass(frozen=True)
class Level:
    """One scale of the proposal head.

    Attributes:
      stride_px: the distance between neighbouring anchors, in pixels of the image.
      size_px: the side of a square anchor at scale 1.
      scales: factors on the side.
      aspect_ratios: height over width.
    """

    stride_px: int
    size_px: int
    scales: tuple[float, ...]
    aspect_ratios: tuple[float, ...]

    @property
    def anchors_per_cell(self) -> int:
        return len(self.scales) * len(self.aspect_ratios)

    def cells(self, image_size_px: int) -> int:
        """Cells along one side of the level's grid."""
        return math.ceil(image_size_px / self.stride_px)


@dataclasses.dataclass(frozen=True)
class Group:
    """Levels whose anchors compete with each other.

    Attributes:
      levels: how many levels it takes, after those of the groups before it.
      train_proposals: M, how many are picked while training.
      top_k: K, how many go into the prediction; at most M.
    """

    levels: int
    train_proposals: int
    top_k: int


def anchor_boxes(levels: Sequence[Level], image_size_px: int) -> Float32[np.ndarray, "anchors 4"]:
    """All anchors, in the order of the proposal head's scores: level, row, column, scale, ratio.

    Returns:
      y0, x0, y1, x1 in whole pixels, half open; they may reach over the border.
    """
    boxes = []
    for level in levels:
        n = level.cells(image_size_px)
        centres = level.stride_px / 2 + level.stride_px * np.arange(n)
        y, x = np.meshgrid(centres, centres, indexing="ij")
        sides = [
            (level.size_px * scale * ratio**0.5, level.size_px * scale / ratio**0.5)
            for scale in level.scales
            for ratio in level.aspect_ratios
        ]
        height, width = np.array(sides).T
        y, x = y[..., None], x[..., None]
        box = np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], axis=-1)
        boxes.append(box.reshape(-1, 4))
    # Whole pixels, as the published codes cut them; suppression works on these too.
    return np.floor(np.concatenate(boxes)).astype(np.float32)


def pairwise_iou(
    boxes: Float[np.ndarray, "anchors 4"],
) -> Float32[np.ndarray, "anchors anchors"]:
    """Intersection over union of all pairs."""
    y0, x0, y1, x1 = boxes.astype(np.float64).T
    area = (y1 - y0) * (x1 - x0)
    height = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0)
    width = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0)
    intersection = np.maximum(height, 0) * np.maximum(width, 0)
    return (intersection / (area[:, None] + area[None, :] - intersection)).astype(np.float32)


def select_top(
    scores: Float[Array, "batch anchors"],
    iou: Float[np.ndarray, "anchors anchors"],
    threshold: float,
    count: int,
) -> Int32[Array, "batch {count}"]:
    """Greedy hard non-maximum suppression.

    Takes the highest score, drops every anchor whose overlap with it is not below `threshold`, and
    so on. Of equal scores the lower index wins. Static shapes; no gradient.

    Args:
      scores: of the anchors.
      iou: the overlaps of the anchors, which never change.
      threshold: anchors with an overlap of this or more are dropped.
      count: how many to take. The anchors must not run out (see `can_select`).

    Returns:
      Indices of anchors, best first.
    """
    keeps = jnp.asarray(iou < threshold)

    def one_image(score: jax.Array) -> jax.Array:
        picks = []
        for _ in range(count):
            best = jnp.argmax(score)
            picks.append(best)
            score = jnp.where(keeps[best], score, -jnp.inf)
        return jnp.stack(picks).astype(jnp.int32)

    return jax.vmap(one_image)(jax.lax.stop_gradient(scores).astype(jnp.float32))


def can_select(iou: Float[np.ndarray, "anchors anchors"], threshold: float, count: int) -> bool:
    """Whether `select_top` finds `count` anchors whatever the scores are.

    Each pick drops at most as many anchors as the fullest row of `iou` holds overlaps, so the
    anchors cannot run out while the picks before the last leave one.
    """
    dropped = int((iou >= threshold).sum(axis=1).max())
    return dropped * (count - 1) < len(iou)


@functools.cache
def group_anchors(
    levels: tuple[Level, ...], groups: tuple[Group, ...], image_size_px: int
) -> tuple[tuple[int, np.ndarray, np.ndarray], ...]:
    """Of each group: its first anchor's index, its anchors [A, 4] and their overlaps [A, A]."""
    of_groups, first, rest = [], 0, list(levels)
    for group in groups:
        boxes = anchor_boxes(rest[: group.levels], image_size_px)
        of_groups.append((first, boxes, pairwise_iou(boxes)))
        first += len(boxes)
        del rest[: group.levels]
    assert not rest, (levels, groups)
    return tuple(of_groups)


def select_proposals(
    scores: Float[Array, "batch anchors"],
    levels: tuple[Level, ...],
    groups: tuple[Group, ...],
    image_size_px: int,
    threshold: float,
    counts: Sequence[int],
) -> tuple[Float[Array, "batch proposals"], Float[Array, "batch proposals 4"]]:
    """The best anchors of each group.

    Args:
      scores: of all anchors in the order of `anchor_boxes`.
      levels: of the proposal head.
      groups: of the levels.
      image_size_px: height and width of the image.
      threshold: see `select_top`.
      counts: how many to take of each group.

    Returns:
      scores and boxes, group by group, best first.
    """
    selected = []
    for (first, boxes, iou), count in zip(
        group_anchors(levels, groups, image_size_px), counts, strict=True
    ):
        group_scores = scores[:, first : first + len(boxes)]
        picks = select_top(group_scores, iou, threshold, count)
        selected.append(
            (jnp.take_along_axis(group_scores, picks, axis=1), jnp.asarray(boxes)[picks])
        )
    of_groups, boxes_of_groups = zip(*selected, strict=True)
    return jnp.concatenate(of_groups, axis=1), jnp.concatenate(boxes_of_groups, axis=1)


def random_scores(keys: Key[Array, " batch"], anchors: int) -> Float32[Array, "batch {anchors}"]:
    """Scores whose order is random: `select_proposals` then draws boxes by the suppression's rule.

    Args:
      keys: a PRNG key for each image.
      anchors: how many there are.
    """
    return jax.vmap(lambda key: jax.random.uniform(key, (anchors,)))(keys)


def image_keys(images: Float[Array, "batch height width"]) -> Key[Array, " batch"]:
    """A PRNG key of each image's content, whatever the batch and the device that it is in.

    Args:
      images: grey in 0..1; 256 levels are distinguished.
    """
    # Odd multipliers: no change of a single pixel is lost. Integer sums are exact in any order.
    multipliers = np.random.default_rng(0).integers(2**31, size=images.shape[1:], dtype=np.uint32)
    levels = jnp.round(images * 255).astype(jnp.uint32)
    digests = jnp.sum(levels * (2 * multipliers + 1), axis=(1, 2), dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), digests)


def grid_scores(
    levels: tuple[Level, ...],
    groups: tuple[Group, ...],
    image_size_px: int,
    threshold: float,
    counts: Sequence[int],
) -> Float32[np.ndarray, " anchors"]:
    """Scores with which `select_proposals` takes the boxes of `grid_anchors`; its arguments."""
    of_groups = group_anchors(levels, groups, image_size_px)
    scores = np.zeros(sum(len(boxes) for _, boxes, _ in of_groups), np.float32)
    for (first, boxes, iou), count in zip(of_groups, counts, strict=True):
        picks = grid_anchors(boxes, iou, image_size_px, threshold, count)
        scores[first + np.array(picks)] = np.arange(count, 0, -1)
    return scores


def grid_anchors(
    boxes: Float32[np.ndarray, "anchors 4"],
    iou: Float32[np.ndarray, "anchors anchors"],
    image_size_px: int,
    threshold: float,
    count: int,
) -> list[int]:
    """Anchors that cover an image evenly.

    One after the other, each the anchor that leaves the pixels nearest to the boxes (the least sum
    of squared distances, 0 inside a box) and whose overlap with the others is below the threshold.
    The first K of M anchors are those of a choice of K. Of equally good ones the lower index wins.
    """
    step = max(1, image_size_px // 64)  # of the pixels that are looked at
    at = np.arange(step // 2, image_size_px, step)

    def distances(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        outside = np.maximum(start[:, None] - at, at - (stop[:, None] - 1))
        return np.maximum(outside, 0) ** 2

    y0, x0, y1, x1 = boxes.astype(np.int64).T
    to_rows, to_columns = distances(y0, y1), distances(x0, x1)
    left = np.full((len(at), len(at)), np.iinfo(np.int64).max)
    allowed = np.ones(len(boxes), bool)
    picks: list[int] = []
    for _ in range(count):
        sums = [
            np.minimum(left, rows[:, None] + columns).sum() if is_allowed else np.inf
            for rows, columns, is_allowed in zip(to_rows, to_columns, allowed, strict=True)
        ]
        best = int(np.argmin(sums))
        picks.append(best)
        left = np.minimum(left, to_rows[best][:, None] + to_columns[best])
        allowed &= iou[best] < threshold
    return picks


class ProposalHead(nn.Module):
    """A score for each anchor from the feature map (the paper's modified FPN; NTS-Net's navigator).

    Attributes:
      levels: from the finest; the first has the feature map's stride, each next twice the last's.
      features: channels inside the head.
      dtype: of the convolutions; scores are float32.
    """

    levels: tuple[Level, ...]
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, feature_map: Float[Array, "batch rows columns channels"]
    ) -> Float32[Array, "batch anchors"]:
        """Scores in the order of `anchor_boxes`."""
        x = feature_map
        scores = []
        for i, level in enumerate(self.levels):
            x = nn.Conv(
                self.features,
                (3, 3),
                strides=1 if i == 0 else 2,
                padding=((1, 1), (1, 1)),
                dtype=self.dtype,
                name=f"down{i + 1}",
            )(x)
            x = nn.relu(x)
            score = nn.Conv(level.anchors_per_cell, (1, 1), dtype=self.dtype, name=f"tidy{i + 1}")(
                x
            )
            scores.append(score.reshape(score.shape[0], -1).astype(jnp.float32))
        return jnp.concatenate(scores, axis=1)
