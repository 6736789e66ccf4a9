"""The losses of DRENet (docs/method.md; after NTS-Net, Yang et al. 2018), in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from drenet_jax.errors import InputError
from drenet_jax.models.model_outputs import Outputs


def all_losses(
    outputs: Outputs,
    label: Int[Array, " batch"],
    class_weights: Float[np.ndarray, " classes"] | None = None,
    *,
    rank_factor: float | None = 1.0,
) -> dict[str, Float[Array, ""]]:
    """The losses of a batch, each averaged over its images; their sum is under `loss`.

    `raw`, `concat` and `parts` are cross-entropies of the whole image, of all features together and
    of each proposal alone. `rank` asks that a proposal which predicts better has a higher score. A
    model without proposals has `concat` only.

    Args:
      outputs: of a training pass, with M proposals.
      label: of each image.
      class_weights: each cross-entropy of an image is multiplied by that of its label. The mean is
        over the images still, so that a batch of a heavy class weighs more than one of a light
        class. Ranks compare proposals of one image and have no weights.
      rank_factor: `rank` is multiplied by it; None: proposals that are not learned have no `rank`.
    """
    weight = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)[label]

    def mean(per_image: Float[Array, " batch"]) -> Float[Array, ""]:
        return jnp.mean(per_image if weight is None else per_image * weight)

    concat = mean(optax.softmax_cross_entropy_with_integer_labels(outputs.logits, label))
    if not outputs.scores.shape[1]:
        return {"loss": concat, "concat": concat}
    part_loss = part_losses(outputs, label)
    losses = {
        "raw": mean(optax.softmax_cross_entropy_with_integer_labels(outputs.raw_logits, label)),
        "concat": concat,
        "parts": mean(part_loss.mean(axis=1)),
    }
    if rank_factor is not None:
        losses["rank"] = rank_factor * ranking_loss(outputs.scores, part_loss).mean()
    return {"loss": sum(losses.values(), start=jnp.zeros(())), **losses}


def part_losses(outputs: Outputs, label: Int[Array, " batch"]) -> Float[Array, "batch proposals"]:
    """The cross-entropy of each proposal alone."""
    return optax.softmax_cross_entropy_with_integer_labels(
        outputs.part_logits, jnp.broadcast_to(label[:, None], outputs.part_logits.shape[:2])
    )


def read_class_weights(
    text: str, labels: Sequence[str], counts: Callable[[], np.ndarray]
) -> Float[np.ndarray, " classes"] | None:
    """The weights that `train.class_weights` describes; None: all are equal.

    Args:
      text: "none"; "balanced": inversely proportional to the number of training slices, such that
        the mean over the training slices is 1; or a number for each label, by commas.
      labels: names of the classes, in order.
      counts: gives the number of training slices of each class; called for "balanced" only.

    Raises:
      InputError: `text` is none of these, or a class has no training slice.
    """
    flag = f"--config.train.class_weights={text}"
    if text == "none":
        return None
    if text == "balanced":
        n = counts()
        missing = [label for label, count in zip(labels, n, strict=True) if not count]
        if missing:
            raise InputError(
                f"{flag}, but no training slice has the label {', '.join(missing)}; prepare some, "
                "or name the weights."
            )
        return (n.sum() / (len(n) * n)).astype(np.float32)
    try:
        weights = np.array([float(number) for number in text.strip("()").split(",")], np.float32)
    except ValueError:
        weights = np.zeros(0, np.float32)
    if len(weights) != len(labels) or not np.all((weights > 0) & np.isfinite(weights)):
        raise InputError(
            f"{flag} must be none, balanced, or a number above 0 for each of the labels "
            f"{', '.join(labels)}, as in {','.join(['1'] * len(labels))}."
        )
    return weights


def ranking_loss(
    scores: Float[Array, "batch proposals"], part_loss: Float[Array, "batch proposals"]
) -> Float[Array, " batch"]:
    """Sum over pairs (i, j) with t_j > t_i of max(0, 1 − s_i + s_j).

    Args:
      scores: s, the proposal head's.
      part_loss: t, the cross-entropy of each proposal. It gets no gradient.
    """
    part_loss = jax.lax.stop_gradient(part_loss)
    predicts_better = part_loss[:, None, :] > part_loss[:, :, None]
    hinge = jax.nn.relu(1 - scores[:, :, None] + scores[:, None, :])
    return jnp.sum(jnp.where(predicts_better, hinge, 0), axis=(1, 2))
