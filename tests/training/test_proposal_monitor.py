"""Whether the proposals learn: metrics against SciPy and loops, and when a run warns."""

from __future__ import annotations

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import somersd

from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.models.build import build_model
from drenet_jax.models.model_outputs import FeatureMaps, Outputs
from drenet_jax.training import loop
from drenet_jax.training.losses import part_losses
from drenet_jax.training.proposal_monitor import (
    areas_of_boxes,
    geometry_warnings,
    learning_warning,
    proposal_metrics,
)
from drenet_jax.training.validation import Validation

LABEL = np.array([0, 2, 1, 1])


def _outputs(scores, part_logits):
    batch, proposals = scores.shape
    return Outputs(
        logits=jnp.zeros((batch, 3)),
        raw_logits=jnp.zeros((batch, 3)),
        part_logits=jnp.asarray(part_logits, jnp.float32),
        scores=jnp.asarray(scores, jnp.float32),
        boxes=jnp.zeros((batch, proposals, 4)),
        feature_maps=FeatureMaps(jnp.zeros((batch, 1, 1, 1)), None),
    )


def _config(name):
    return importlib.import_module(f"drenet_jax.configs.{name}").get_config()


def test_metrics_equal_loops_over_pairs_and_somers_d():
    rng = np.random.default_rng(0)
    # Whole numbers, so that scores and part losses tie.
    scores = rng.integers(-2, 3, (4, 6)) / 2
    part_logits = rng.integers(0, 3, (4, 6, 3))
    outputs = _outputs(scores, part_logits)
    metrics = proposal_metrics(outputs, jnp.asarray(LABEL))
    losses = np.asarray(part_losses(outputs, jnp.asarray(LABEL)))
    hinges, agreements, weights = [], [], []
    for s, t in zip(scores, losses, strict=True):
        pairs = [(i, j) for i in range(6) for j in range(6) if t[j] > t[i]]
        hinges += [max(0.0, 1 - s[i] + s[j]) for i, j in pairs]
        agreements.append((1 + somersd(t, -s).statistic) / 2)
        weights.append(len(pairs))
    assert min(weights) < 15
    assert metrics["rank_ratio"] == pytest.approx(np.mean(hinges), rel=1e-6)
    assert metrics["rank_agreement"] == pytest.approx(
        np.average(agreements, weights=weights), rel=1e-6
    )


def test_equal_scores_have_a_ratio_of_exactly_one_and_an_agreement_of_one_half():
    part_logits = np.random.default_rng(0).normal(size=(4, 6, 3))
    metrics = proposal_metrics(_outputs(np.full((4, 6), 0.3), part_logits), jnp.asarray(LABEL))
    assert metrics == {"rank_ratio": 1.0, "rank_agreement": 0.5}


@pytest.mark.parametrize(("sign", "ratio", "agreement"), [(-2, 0.0, 1.0), (0, 1.0, 0.5)])
def test_a_perfect_order_with_the_margin_has_a_ratio_of_zero(sign, ratio, agreement):
    part_logits = np.zeros((4, 5, 3))
    part_logits[np.arange(4), :, LABEL] = -np.arange(5)
    metrics = proposal_metrics(
        _outputs(sign * np.tile(np.arange(5), (4, 1)), part_logits), jnp.asarray(LABEL)
    )
    assert metrics == {"rank_ratio": ratio, "rank_agreement": agreement}


def test_proposals_that_all_predict_alike_count_as_nothing_learnt():
    scores = np.random.default_rng(0).normal(size=(4, 6))
    metrics = proposal_metrics(_outputs(scores, np.zeros((4, 6, 3))), jnp.asarray(LABEL))
    assert metrics == {"rank_ratio": 1.0, "rank_agreement": 0.5}


@pytest.mark.parametrize("proposals", [0, 1])
def test_one_proposal_and_none_have_no_order(proposals):
    outputs = _outputs(np.zeros((4, proposals)), np.zeros((4, proposals, 3)))
    assert not proposal_metrics(outputs, jnp.asarray(LABEL))


def test_areas_on_lungs_equal_sums_over_the_pixels_of_the_boxes():
    rng = np.random.default_rng(0)
    masks = rng.random((5, 20, 20)) < 0.3
    start = rng.integers(-8, 20, (5, 3, 2))
    boxes = np.concatenate([start, start + rng.integers(1, 15, (5, 3, 2))], axis=-1)
    on_lungs = sum(
        mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)].sum()
        for mask, of_slice in zip(masks, boxes, strict=True)
        for y0, x0, y1, x1 in of_slice
    )
    areas = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1).sum()
    found = areas_of_boxes(boxes.astype(np.float32), masks)
    np.testing.assert_array_equal(found, [on_lungs, areas])
    no_boxes = areas_of_boxes(np.zeros((5, 0, 4), np.float32), masks)
    np.testing.assert_array_equal(no_boxes, [0, 0])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("drenet", []),
        ("drenet_gpu", []),
        ("drenet_tpu", []),
        ("drenet_authors", []),
        ("nts_net", []),
        ("resnet50", []),
        ("demo", ["train_proposals"]),
    ],
)
def test_which_configs_have_boxes_that_can_hardly_be_of_use(name, fields):
    warnings = geometry_warnings(build_model(_config(name), 3))
    assert len(warnings) == len(fields)
    assert all(
        f"--config.model.{field}" in text for field, text in zip(fields, warnings, strict=True)
    )


def test_shrunk_boxes_are_reported_by_size_and_field(tiny_config):
    tiny_config.model.train_proposals = (1,)
    tiny_config.model.top_k = (1,)
    (warning,) = geometry_warnings(build_model(tiny_config, 3))
    assert warning.startswith("boxes of 40 pixels are shrunk to --config.model.crop_size_px=32")
    tiny_config.model.crop_size_px = 40
    assert not geometry_warnings(build_model(tiny_config, 3))


def test_few_anchors_do_not_matter_where_nothing_is_learned(tiny_config):
    tiny_config.model.crop_size_px = 40
    (warning,) = geometry_warnings(build_model(tiny_config, 3))
    assert warning.startswith("13 anchors are few for 2 --config.model.train_proposals")
    tiny_config.model.proposals = "grid"
    assert not geometry_warnings(build_model(tiny_config, 3))


def _lines(ratios, agreement=0.5):
    train = [{"rank_ratio": ratio, "rank_agreement": agreement} for ratio in ratios]
    return [{"epoch": i + 1.0, "train": line} for i, line in enumerate(train)]


def test_a_run_warns_once_when_the_last_epochs_have_taught_the_scores_nothing(tiny_config):
    tiny_config.train.rank_patience_epochs = 3
    assert not learning_warning(_lines([1.0, 1.0]), tiny_config)
    warning = learning_warning(_lines([0.5, 1.0, 0.99, 0.98]), tiny_config)
    assert "rank_patience_epochs=3 epochs (rank_ratio 0.990" in warning
    lines = _lines([1.0, 1.0, 1.0, 1.0])
    lines[2]["warnings"] = [warning]
    assert not learning_warning(lines, tiny_config)


@pytest.mark.parametrize(
    ("ratio", "agreement", "rank_factor", "patience"),
    [(0.97, 0.5, 1.0, 3), (1.0, 0.53, 1.0, 3), (1.0, 0.5, 0.0, 3), (1.0, 0.5, 1.0, 0)],
)
def test_a_run_that_learns_or_is_not_to_learn_does_not_warn(
    ratio, agreement, rank_factor, patience, tiny_config
):
    tiny_config.train.rank_patience_epochs = patience
    tiny_config.train.rank_factor = rank_factor
    assert not learning_warning(_lines([ratio] * 4, agreement), tiny_config)


def test_lines_without_the_metrics_do_not_warn(tiny_config):
    # Of a model without proposals, and of an earlier version.
    tiny_config.train.rank_patience_epochs = 1
    assert not learning_warning([{"epoch": 1.0, "train": {"loss": 1.0}}], tiny_config)


def test_train_prints_each_warning_once_and_logs_it(
    tiny_config, prepared, tmp_path, monkeypatch, capsys
):
    def make_step(*args, **kwargs):
        metrics = {"loss": 1.0, "gradient_norm": 1.0, "rank_ratio": 1.0, "rank_agreement": 0.5}
        on_devices = {
            name: jnp.full(jax.local_device_count(), value) for name, value in metrics.items()
        }
        return lambda state, batches: (state, on_devices)

    monkeypatch.setattr(loop, "make_train_step", make_step)
    monkeypatch.setattr(loop, "validate", lambda *args: Validation())
    tiny_config.data.dir = str(prepared)
    tiny_config.train.update(epochs=3, rank_patience_epochs=2)
    loop.train_and_evaluate(tiny_config, tmp_path)
    printed = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line.get("warnings", []) for line in lines]
    assert [len(warnings) for warnings in logged] == [2, 1, 0]
    assert printed == [f"warning: {text}" for warnings in logged for text in warnings]
    assert "the proposals have learnt nothing" in logged[1][0]


def test_the_log_has_the_metrics_of_the_proposals(trained):
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    train = line["train"]
    assert 0 < line["validation"]["boxes_on_lungs"] < 1
    assert 0 < train["rank_ratio"] < 2
    assert 0 <= train["rank_agreement"] <= 1
    # Two proposals are one pair.
    assert train["rank_ratio"] == pytest.approx(train["rank"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["random", "grid"])
def test_a_run_without_a_proposal_head_is_trained_stored_and_loaded(
    selection, tiny_config, prepared, tmp_path
):
    tiny_config.data.dir = str(prepared)
    tiny_config.model.proposals = selection
    tiny_config.train.update(steps=3, rank_patience_epochs=1)
    loop.train_and_evaluate(tiny_config, tmp_path)
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"rank", "rank_ratio", "rank_agreement"}.isdisjoint(line["train"])
    assert 0 < line["validation"]["boxes_on_lungs"] < 1
    predictor = Predictor.load(tmp_path)
    assert predictor.meta.config.model.proposals == selection
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96), np.uint8)
    together, alone = predictor.slices(images), predictor.slices(images[1:2])
    np.testing.assert_array_equal(together["boxes"][1], alone["boxes"][0])
    np.testing.assert_allclose(together["logits"][1], alone["logits"][0], atol=1e-5)
