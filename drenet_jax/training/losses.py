"""The losses of DRENet (DESIGN 3.6; after NTS-Net, Yang et al. 2018), in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from drenet_jax.models.outputs import Outputs


def all_losses(outputs: Outputs, label: jax.Array) -> dict[str, jax.Array]:
    """The losses of a batch, each averaged over its B images; their sum is under `loss`.

    `raw`, `concat` and `parts` are cross-entropies of the whole image, of all features together and
    of each proposal alone. `rank` asks that a proposal which predicts better has a higher score. A
    model without proposals has `concat` only.

    Args:
      outputs: of a training pass, with M proposals.
      label: [B] integers.
    """
    concat = optax.softmax_cross_entropy_with_integer_labels(outputs.logits, label).mean()
    if not outputs.scores.shape[1]:
        return {"loss": concat, "concat": concat}
    part_loss = optax.softmax_cross_entropy_with_integer_labels(
        outputs.part_logits, jnp.broadcast_to(label[:, None], outputs.part_logits.shape[:2])
    )
    losses = {
        "raw": optax.softmax_cross_entropy_with_integer_labels(outputs.raw_logits, label).mean(),
        "concat": concat,
        "parts": part_loss.mean(),
        "rank": ranking_loss(outputs.scores, part_loss).mean(),
    }
    return {"loss": sum(losses.values()), **losses}


def ranking_loss(scores: jax.Array, part_loss: jax.Array) -> jax.Array:
    """Sum over pairs (i, j) with t_j > t_i of max(0, 1 − s_i + s_j).

    Args:
      scores: [B, M], s: the proposal head's scores.
      part_loss: [B, M], t: the cross-entropy of each proposal. It gets no gradient.

    Returns:
      [B].
    """
    part_loss = jax.lax.stop_gradient(part_loss)
    predicts_better = part_loss[:, None, :] > part_loss[:, :, None]
    hinge = jax.nn.relu(1 - scores[:, :, None] + scores[:, None, :])
    return jnp.sum(jnp.where(predicts_better, hinge, 0), axis=(1, 2))
