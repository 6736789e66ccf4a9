"""The four losses against PyTorch and plain loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drenet_jax.errors import InputError
from drenet_jax.models.model_outputs import FeatureMaps, Outputs
from drenet_jax.training.losses import (
    all_losses,
    ranking_loss,
    read_class_weights,
    soft_targets,
)


@pytest.fixture
def outputs():
    rng = np.random.default_rng(0)
    return Outputs(
        logits=jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        raw_logits=jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        part_logits=jnp.asarray(rng.normal(size=(5, 4, 3)), jnp.float32),
        scores=jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
        boxes=jnp.zeros((5, 4, 4)),
        feature_maps=FeatureMaps(jnp.zeros((5, 2, 2, 8)), jnp.zeros((5, 4, 1, 1, 8))),
    )


LABEL = np.array([0, 2, 1, 1, 0])


def test_cross_entropies_equal_pytorch(outputs):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    losses = all_losses(outputs, jnp.asarray(LABEL))
    label = torch.from_numpy(LABEL)

    def expected(logits, label):
        return torch.nn.functional.cross_entropy(torch.from_numpy(np.array(logits)), label).item()

    assert losses["raw"] == pytest.approx(expected(outputs.raw_logits, label), rel=1e-5)
    assert losses["concat"] == pytest.approx(expected(outputs.logits, label), rel=1e-5)
    parts = expected(outputs.part_logits.reshape(20, 3), label.repeat_interleave(4))
    assert losses["parts"] == pytest.approx(parts, rel=1e-5)
    names = ("raw", "concat", "parts", "rank")
    assert losses["loss"] == pytest.approx(sum(float(losses[name]) for name in names), rel=1e-6)


def test_the_factor_on_the_ranking_changes_nothing_else(outputs):
    whole, none = (
        all_losses(outputs, jnp.asarray(LABEL), rank_factor=factor) for factor in (1.0, 0.0)
    )
    assert whole["rank"] > 0
    assert none["rank"] == 0
    assert none["loss"] == pytest.approx(float(whole["loss"] - whole["rank"]), rel=1e-6)
    for name in ("raw", "concat", "parts"):
        assert none[name] == whole[name]


def test_ranking_equals_a_loop_over_pairs(outputs):
    rng = np.random.default_rng(1)
    scores, part_loss = rng.normal(size=(2, 6, 5)).astype(np.float32)
    part_loss[0] = 1.0  # equal losses rank nothing
    expected = [
        sum(max(0.0, 1 - s[i] + s[j]) for i in range(5) for j in range(5) if t[j] > t[i])
        for s, t in zip(scores, part_loss, strict=True)
    ]
    np.testing.assert_allclose(
        ranking_loss(jnp.asarray(scores), jnp.asarray(part_loss)), expected, rtol=1e-5
    )


def test_ranking_raises_the_score_of_the_better_proposal_and_leaves_its_loss_alone():
    scores, part_loss = jnp.array([[0.0, 0.0]]), jnp.array([[0.2, 0.9]])
    by_score, by_loss = jax.grad(lambda s, t: ranking_loss(s, t).sum(), (0, 1))(scores, part_loss)
    assert by_score[0, 0] < 0 < by_score[0, 1]
    np.testing.assert_array_equal(by_loss, 0)


def test_class_weights_multiply_the_cross_entropies_of_a_slice_by_that_of_its_label(outputs):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    weights = np.array([1.0, 3.0, 0.5], np.float32)
    losses = all_losses(outputs, jnp.asarray(LABEL), weights)
    label = torch.from_numpy(LABEL)

    def expected(logits, label):
        # The sum over what weighs, over the number of slices and not over the sum of the weights.
        return torch.nn.functional.cross_entropy(
            torch.from_numpy(np.array(logits)),
            label,
            weight=torch.from_numpy(weights),
            reduction="sum",
        ).item() / len(label)

    assert losses["raw"] == pytest.approx(expected(outputs.raw_logits, label), rel=1e-5)
    assert losses["concat"] == pytest.approx(expected(outputs.logits, label), rel=1e-5)
    parts = expected(outputs.part_logits.reshape(20, 3), label.repeat_interleave(4))
    assert losses["parts"] == pytest.approx(parts, rel=1e-5)
    assert losses["rank"] == all_losses(outputs, jnp.asarray(LABEL))["rank"]


@pytest.mark.parametrize("weights", [None, np.array([1.0, 3.0, 0.5], np.float32)])
def test_label_smoothing_equals_pytorchs_in_all_cross_entropies(weights, outputs):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    losses = all_losses(outputs, soft_targets(jnp.asarray(LABEL), 3, 0.1), weights)
    loss = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.from_numpy(weights),
        label_smoothing=0.1,
        reduction="none",
    )
    label = torch.from_numpy(LABEL)

    def expected(logits, label):
        return loss(torch.from_numpy(np.array(logits)), label).mean().item()

    assert losses["raw"] == pytest.approx(expected(outputs.raw_logits, label), rel=1e-5)
    assert losses["concat"] == pytest.approx(expected(outputs.logits, label), rel=1e-5)
    parts = expected(outputs.part_logits.reshape(20, 3), label.repeat_interleave(4))
    assert losses["parts"] == pytest.approx(parts, rel=1e-5)
    # Ranks compare the smoothed cross-entropies of the parts, without class weights.
    unweighted = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")
    part_logits = torch.from_numpy(np.array(outputs.part_logits.reshape(20, 3)))
    part_loss = unweighted(part_logits, label.repeat_interleave(4)).reshape(5, 4).numpy()
    rank = ranking_loss(outputs.scores, jnp.asarray(part_loss)).mean()
    assert losses["rank"] == pytest.approx(float(rank), rel=1e-5)


def test_mixed_labels_equal_pytorchs_cross_entropy_of_shares(outputs):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    weights = np.array([1.0, 3.0, 0.5], np.float32)
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 5).astype(np.float32)
    losses = all_losses(outputs, jnp.asarray(shares), weights)
    loss = torch.nn.CrossEntropyLoss(torch.from_numpy(weights), reduction="none")
    expected = loss(torch.from_numpy(np.array(outputs.logits)), torch.from_numpy(shares)).mean()
    assert losses["concat"] == pytest.approx(expected.item(), rel=1e-5)
    hard = all_losses(outputs, jnp.eye(3)[LABEL], weights)
    for name, value in all_losses(outputs, jnp.asarray(LABEL), weights).items():
        assert hard[name] == pytest.approx(float(value), rel=1e-6), name


def test_balanced_weights_are_inverse_to_the_counts_and_one_on_average_over_the_slices():
    counts = np.array([10, 40, 50])
    weights = read_class_weights("balanced", ("a", "b", "c"), lambda: counts)
    np.testing.assert_allclose(weights * counts, 100 / 3, rtol=1e-6)
    assert (weights * counts).sum() / 100 == pytest.approx(1)


def test_class_weights_are_none_or_a_number_for_each_label():
    assert read_class_weights("none", ("a", "b"), lambda: None) is None
    np.testing.assert_array_equal(read_class_weights("1, 2.5", ("a", "b"), lambda: None), [1, 2.5])


@pytest.mark.parametrize("text", ["", "even", "1", "1,2,3", "1,0", "1,-2", "1,nan", "1,x"])
def test_class_weights_that_cannot_be_are_refused(text):
    with pytest.raises(InputError, match=f"class_weights={text} must be none, balanced, or"):
        read_class_weights(text, ("a", "b"), lambda: None)


def test_balanced_weights_of_a_class_without_slices_are_refused():
    with pytest.raises(InputError, match="no training slice has the label b"):
        read_class_weights("balanced", ("a", "b"), lambda: np.array([3, 0]))
