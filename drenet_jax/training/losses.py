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
    target: Int[Array, " batch"] | Float[Array, "batch classes"],
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
      target: the label of each image, or the share of each class (`soft_targets`).
      class_weights: each cross-entropy of an image is multiplied by that of its label; that of
        shares is −Σ weight · share · log p, as PyTorch's. The mean is over the images still, so
        that a batch of a heavy class weighs more than one of a light class. Ranks compare proposals
        of one image and have no weights.
      rank_factor: `rank` is multiplied by it; None: proposals that are not learned have no `rank`.
    """
    weights = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def mean(logits: Float[Array, "batch parts classes"]) -> Float[Array, ""]:
        if weights is None or target.ndim == 1:
            per_image = _cross_entropy(logits, target).mean(axis=1)
            return jnp.mean(per_image if weights is None else per_image * weights[target])
        return jnp.mean(_cross_entropy(logits, target * weights))

    concat = mean(outputs.logits[:, None])
    if not outputs.scores.shape[1]:
        return {"loss": concat, "concat": concat}
    part_loss = part_losses(outputs, target)
    losses = {
        "raw": mean(outputs.raw_logits[:, None]),
        "concat": concat,
        "parts": mean(outputs.part_logits),
    }
    if rank_factor is not None:
        losses["rank"] = rank_factor * ranking_loss(outputs.scores, part_loss).mean()
    return {"loss": sum(losses.values(), start=jnp.zeros(())), **losses}


def part_losses(
    outputs: Outputs, target: Int[Array, " batch"] | Float[Array, "batch classes"]
) -> Float[Array, "batch proposals"]:
    """The cross-entropy of each proposal alone; `target` as in `all_losses`."""
    return _cross_entropy(outputs.part_logits, target)


def soft_targets(
    label: Int[Array, " batch"], classes: int, smoothing: float
) -> Float[Array, "batch classes"]:
    """The share of each class: 1 − `smoothing` for the label, the rest for all alike.

    As PyTorch's `CrossEntropyLoss(label_smoothing=smoothing)` (Szegedy et al., CVPR 2016).
    """
    return (1 - smoothing) * jax.nn.one_hot(label, classes) + smoothing / classes


def _cross_entropy(
    logits: Float[Array, "batch parts classes"],
    target: Int[Array, " batch"] | Float[Array, "batch classes"],
) -> Float[Array, "batch parts"]:
    target = jnp.expand_dims(target, 1)
    if target.ndim == 2:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.broadcast_to(target, logits.shape[:2])
        )
    return optax.softmax_cross_entropy(logits, target)


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
