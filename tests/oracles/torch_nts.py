"""NTS-Net and the authors' DRENet in PyTorch, written from their description, image by image.

Parameter names are those of the published checkpoints. Nothing here is fast on purpose: anchors,
suppression, crops and the ranking loss are plain loops, so that they are easily seen to be right.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from oracles.torch_resnet import ResNet
from torch import nn


@dataclasses.dataclass(frozen=True)
class Level:
    """One grid of anchors: its stride and size in pixels, scales and height/width ratios."""

    stride_px: int
    size_px: int
    scales: tuple[float, ...] = (1.0,)
    ratios: tuple[float, ...] = (1.0,)


@dataclasses.dataclass(frozen=True)
class Group:
    """Levels whose anchors compete with each other.

    Attributes:
      levels: of the proposal network, in order.
      nms_iou: what overlaps a pick by more is dropped.
      drops_equal: whether what overlaps a pick by just `nms_iou` is dropped, too.
      proposals: how many are picked.
      concatenated: how many of them, best first, go into the prediction.
    """

    levels: tuple[Level, ...]
    nms_iou: float
    drops_equal: bool
    proposals: int
    concatenated: int


_RATIOS = (0.667, 1.0, 1.5)
_SCALES = (2 ** (1 / 3), 2 ** (2 / 3))

# Yang et al. 2018: M = 6 proposals, K = 4 of them concatenated.
NTS_GROUPS = (
    Group(
        levels=(
            Level(32, 48, _SCALES, _RATIOS),
            Level(64, 96, _SCALES, _RATIOS),
            Level(128, 192, (1.0, *_SCALES), _RATIOS),
        ),
        nms_iou=0.25,
        drops_equal=True,
        proposals=6,
        concatenated=4,
    ),
)

# The published code of DRENet: the large boxes are picked apart from the small ones.
AUTHORS_GROUPS = (
    Group((Level(32, 48), Level(64, 96)), 0.1, False, 3, 3),
    Group((Level(128, 192),), 0.1, False, 3, 3),
)


@dataclasses.dataclass
class Result:
    """P proposals of B images, those of the first group first, each group's best first.

    Attributes:
      logits: [B, classes].
      raw_logits: [B, classes].
      part_logits: [B, P, classes].
      scores: [B, P].
      boxes: [B, P, 4] y0, x0, y1, x1 in pixels of the image, half open.
    """

    logits: torch.Tensor
    raw_logits: torch.Tensor
    part_logits: torch.Tensor
    scores: torch.Tensor
    boxes: np.ndarray


class ProposalNet(nn.Module):
    """A score for each anchor; the anchors of a cell are the channels of `tidy1`, `tidy2`, ..."""

    def __init__(self, channels_in: int, levels: Sequence[Level], features: int):
        super().__init__()
        self.levels = tuple(levels)
        for i, level in enumerate(levels):
            self.add_module(
                f"down{i + 1}",
                nn.Conv2d(channels_in, features, 3, 1 if i == 0 else 2, padding=1),
            )
            anchors = len(level.scales) * len(level.ratios)
            self.add_module(f"tidy{i + 1}", nn.Conv2d(features, anchors, 1))
            channels_in = features

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[B, C, h, w] -> for each level [B, anchors a cell × rows × columns]."""
        scores = []
        for i in range(len(self.levels)):
            x = torch.relu(self.get_submodule(f"down{i + 1}")(x))
            scores.append(self.get_submodule(f"tidy{i + 1}")(x).flatten(1))
        return scores


class NTSNet(nn.Module):
    """NTS-Net, and with `AUTHORS_GROUPS` and a context image the authors' DRENet.

    Args:
      groups: of anchors, in the order in which the proposal network makes their levels.
      context: whether the best box of the last group, cut at the image's edge and resized to the
        image's size, is one more image of the prediction.
      classes: how many.
      architecture: of the ResNet.
      width: of the ResNet.
      image_px: height and width of an image.
      crop_px: height and width to which a proposal is resized.
      border_px: zeros around the image out of which crops are cut.
      head_features: channels inside the proposal network.
      dropout: share of pooled features dropped while training.
    """

    def __init__(
        self,
        groups: Sequence[Group] = NTS_GROUPS,
        context: bool = False,
        classes: int = 2,
        architecture: str = "resnet50",
        width: int = 64,
        image_px: int = 448,
        crop_px: int = 224,
        border_px: int = 224,
        head_features: int = 128,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.groups = tuple(groups)
        self.context = context
        self.image_px, self.crop_px, self.border_px = image_px, crop_px, border_px
        self.dropout = nn.Dropout(dropout)
        self.pretrained_model = ResNet(architecture, width, classes)
        levels = [level for group in groups for level in group.levels]
        n = self.pretrained_model.n_features
        self.proposal_net = ProposalNet(n, levels, head_features)
        images_in_prediction = sum(group.concatenated for group in groups) + 1 + context
        self.concat_net = nn.Linear(n * images_in_prediction, classes)
        self.partcls_net = nn.Linear(n, classes)

    def _features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        feature_map, pooled = self.pretrained_model.features(images)
        return feature_map, self.dropout(pooled)

    def forward(self, images: torch.Tensor) -> Result:
        """Scores normalised images [B, 3, image_px, image_px]."""
        batch = len(images)
        feature_map, whole = self._features(images)
        raw_logits = self.pretrained_model.fc(whole)

        level_scores = iter(self.proposal_net(feature_map.detach()))
        scores, padded_boxes = [], []
        for group in self.groups:
            group_scores = torch.cat([next(level_scores) for _ in group.levels], dim=1)
            anchors = padded_anchors(group.levels, self.image_px, self.border_px)
            picks = np.stack(
                [
                    suppress(one, anchors, group)
                    for one in group_scores.detach().float().cpu().numpy()
                ]
            )
            scores.append(group_scores.gather(1, torch.from_numpy(picks).to(group_scores.device)))
            padded_boxes.append(anchors[picks])

        # One pass for the proposals of all groups: batch statistics are those of all of them.
        crops = self._crops(images, np.concatenate(padded_boxes, axis=1))
        parts = self._features(crops)[1].reshape(batch, -1, whole.shape[1])
        part_logits = self.partcls_net(parts)

        concatenated, first = [], 0
        for group in self.groups:
            concatenated.append(parts[:, first : first + group.concatenated].flatten(1))
            first += group.proposals
        concatenated.append(whole)
        if self.context:
            best = padded_boxes[-1][:, 0] - self.border_px
            concatenated.append(self._features(self._zoom(images, best))[1])
        return Result(
            logits=self.concat_net(torch.cat(concatenated, dim=1)),
            raw_logits=raw_logits,
            part_logits=part_logits,
            scores=torch.cat(scores, dim=1),
            boxes=np.concatenate(padded_boxes, axis=1) - self.border_px,
        )

    def _crops(self, images: torch.Tensor, padded_boxes: np.ndarray) -> torch.Tensor:
        padded = F.pad(images, (self.border_px,) * 4)
        return torch.cat(
            [
                _resize(image[:, y0:y1, x0:x1], self.crop_px)
                for image, boxes in zip(padded, padded_boxes, strict=True)
                for y0, x0, y1, x1 in boxes
            ]
        )

    def _zoom(self, images: torch.Tensor, boxes: np.ndarray) -> torch.Tensor:
        return torch.cat(
            [
                _resize(image[:, max(y0, 0) : y1, max(x0, 0) : x1], self.image_px)
                for image, (y0, x0, y1, x1) in zip(images, boxes, strict=True)
            ]
        )


def _resize(image: torch.Tensor, size_px: int) -> torch.Tensor:
    return F.interpolate(image[None], size=(size_px,) * 2, mode="bilinear", align_corners=True)


def padded_anchors(levels: Sequence[Level], image_px: int, border_px: int) -> np.ndarray:
    """[A, 4] int64: y0, x0, y1, x1 in the padded image, by level, scale, ratio, row, column."""
    anchors = []
    for level in levels:
        cells = math.ceil(image_px / level.stride_px)
        for scale in level.scales:
            for ratio in level.ratios:
                height = level.size_px * scale * math.sqrt(ratio)
                width = level.size_px * scale / math.sqrt(ratio)
                for row in range(cells):
                    y = level.stride_px / 2 + row * level.stride_px + border_px
                    for column in range(cells):
                        x = level.stride_px / 2 + column * level.stride_px + border_px
                        edges = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
                        anchors.append([int(edge) for edge in edges])
    return np.array(anchors)


def suppress(scores: np.ndarray, boxes: np.ndarray, group: Group) -> np.ndarray:
    """Indices of a group's proposals, best first: [A], [A, 4] -> [proposals]."""
    picks: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        overlaps = [_overlap(boxes[i], boxes[pick]) for pick in picks]
        limit = group.nms_iou
        if all(iou < limit or (iou == limit and not group.drops_equal) for iou in overlaps):
            picks.append(int(i))
        if len(picks) == group.proposals:
            return np.array(picks)
    raise AssertionError(f"only {len(picks)} boxes fit")


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    height = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    width = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a = (a[2] - a[0]) * (a[3] - a[1])
    area_b = (b[2] - b[0]) * (b[3] - b[1])
    return float(height * width / (area_a + area_b - height * width))


def losses(result: Result, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """The four losses of DESIGN 3.6, each a mean over the images, and their sum `loss`."""
    batch, n_proposals, _ = result.part_logits.shape
    part_loss = F.cross_entropy(
        result.part_logits.flatten(0, 1), label.repeat_interleave(n_proposals), reduction="none"
    ).reshape(batch, n_proposals)
    rank = torch.zeros((), device=part_loss.device)
    for t, s in zip(part_loss.detach(), result.scores, strict=True):
        for i in range(n_proposals):
            for j in range(n_proposals):
                if t[j] > t[i]:
                    rank = rank + torch.relu(1 - s[i] + s[j]) / batch
    out = {
        "raw": F.cross_entropy(result.raw_logits, label),
        "concat": F.cross_entropy(result.logits, label),
        "parts": part_loss.mean(),
        "rank": rank,
    }
    return {"loss": sum(out.values()), **out}
