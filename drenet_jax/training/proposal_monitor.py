"""Whether the proposals learn: metrics of each step, and warnings where they cannot or do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int

from drenet_jax.models.build import Model
from drenet_jax.models.drenet import DRENet
from drenet_jax.models.model_outputs import Outputs
from drenet_jax.models.proposals import anchor_boxes
from drenet_jax.training.losses import part_losses, ranking_loss

# At least so many anchors for each proposal: with fewer, suppression decides more than the scores.
# The paper has 41, NTS-Net 269.
_ANCHORS_PER_PROPOSAL = 10

# Nothing is learnt from this ratio on, if scores and part losses agree no better than this.
_TRIVIAL_RATIO = 0.98
_CHANCE_AGREEMENT = 0.52


def proposal_metrics(
    outputs: Outputs, target: Int[Array, " batch"] | Float[Array, "batch classes"]
) -> dict[str, Float[Array, ""]]:
    """How well the scores of a training pass rank its proposals.

    Over all pairs of proposals of one image whose part losses differ, as the ranking loss has them
    (those of several groups are ranked together):

    - `rank_ratio`: the ranking loss, without its factor, over what it is when all scores are
      equal; 1 if nothing is learnt, 0 if all pairs are ranked with the margin.
    - `rank_agreement`: the share of pairs in which the proposal with the lower part loss has the
      higher score; a pair of equal scores counts half. (1 + Somers' D) / 2: 0.5 by chance.

    A batch without such pairs has 1 and 0.5, and images of fewer than two proposals none of these.

    Args:
      outputs: of a training pass, with M proposals.
      target: as in `losses.all_losses`.
    """
    if outputs.scores.shape[1] < 2:
        return {}
    scores = jax.lax.stop_gradient(outputs.scores)
    part_loss = jax.lax.stop_gradient(part_losses(outputs, target))
    predicts_better = part_loss[:, None, :] > part_loss[:, :, None]
    higher = (jnp.sign(scores[:, :, None] - scores[:, None, :]) + 1) / 2
    pairs = jnp.sum(predicts_better)
    ratio = jnp.sum(ranking_loss(scores, part_loss)) / pairs
    agreement = jnp.sum(jnp.where(predicts_better, higher, 0)) / pairs
    return {
        "rank_ratio": jnp.where(pairs > 0, ratio, 1.0),
        "rank_agreement": jnp.where(pairs > 0, agreement, 0.5),
    }


def areas_of_boxes(
    boxes: Float[np.ndarray, "slices proposals 4"], lung_masks: Bool[np.ndarray, "slices size size"]
) -> Float64[np.ndarray, " 2"]:
    """The area of all boxes that lies on lungs, and the whole area of all boxes.

    Args:
      boxes: y0, x0, y1, x1 in whole pixels, half open. What reaches over the border of the slice
        is no lung.
      lung_masks: of the slices.
    """
    size = lung_masks.shape[-1]
    edges = boxes.astype(np.int64)
    y0, x0, y1, x1 = np.moveaxis(edges, -1, 0)
    area = ((y1 - y0) * (x1 - x0)).sum()
    # Lung pixels above and to the left of each corner.
    sums = np.pad(
        lung_masks.cumsum(axis=1, dtype=np.int32).cumsum(axis=2), ((0, 0), (1, 0), (1, 0))
    )
    of_slice = np.arange(len(boxes))[:, None]
    y0, x0, y1, x1 = np.clip(np.moveaxis(edges, -1, 0), 0, size)
    on_lungs = (
        sums[of_slice, y1, x1]
        - sums[of_slice, y0, x1]
        - sums[of_slice, y1, x0]
        + sums[of_slice, y0, x0]
    ).sum()
    return np.array([on_lungs, area], np.float64)


def geometry_warnings(model: Model) -> list[str]:
    """A sentence for each property of a model's boxes with which they can hardly be of use."""
    if not isinstance(model, DRENet):
        return []
    warnings = []
    smallest = [level.size_px * min(level.scales) for level in model.levels]
    shrunk = [side_px for side_px in smallest if side_px > model.crop_size_px]
    if shrunk:
        warnings.append(
            f"boxes of {', '.join(f'{side_px:g}' for side_px in shrunk)} pixels are shrunk to "
            f"--config.model.crop_size_px={model.crop_size_px}, so that crops show less than the "
            "slice does; raise it, or lower --config.model.anchor_sizes_px."
        )
    anchors = len(anchor_boxes(model.levels, model.image_size_px))
    proposals = sum(group.train_proposals for group in model.groups)
    least = _ANCHORS_PER_PROPOSAL * proposals
    if model.selection == "learned" and anchors < least:
        warnings.append(
            f"{anchors} anchors are few for {proposals} --config.model.train_proposals: with fewer "
            f"than {least}, overlap decides much and their scores little; raise "
            "--config.model.image_size_px, or give more --config.model.anchor_scales."
        )
    return warnings


def learning_warning(
    lines: Sequence[dict[str, Any]], config: ml_collections.ConfigDict
) -> str | None:
    """A sentence when the scores have learnt nothing for `train.rank_patience_epochs`; once a run.

    Args:
      lines: of `metrics.jsonl` so far, with `epoch`, `train` and `warnings`, the last one last.
      config: of the run. Without a ranking loss (`train.rank_factor=0`) there is no warning.
    """
    patience = config.train.rank_patience_epochs
    epoch = lines[-1]["epoch"]
    if not patience or not config.train.rank_factor or epoch < patience:
        return None
    start = "the proposals have learnt nothing"
    if any(text.startswith(start) for line in lines for text in line.get("warnings", ())):
        return None
    last = [line["train"] for line in lines if line["epoch"] > epoch - patience]
    if not all("rank_ratio" in train for train in last):
        return None
    ratio, agreement = (
        float(np.mean([train[name] for train in last])) for name in ("rank_ratio", "rank_agreement")
    )
    if ratio < _TRIVIAL_RATIO or agreement > _CHANCE_AGREEMENT:
        return None
    return (
        f"{start} in the last --config.train.rank_patience_epochs={patience} epochs (rank_ratio "
        f"{ratio:.3f}, 1 for equal scores; rank_agreement {agreement:.2f}, 0.5 by chance); compare "
        'with --config.model.proposals=random, and see "Do the proposals learn?" in '
        "docs/training.md."
    )
