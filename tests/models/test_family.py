"""The shipped configurations: which anchors they have, and that each can be trained and used."""

from __future__ import annotations

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import drenet_jax
from drenet_jax import parallel
from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.evaluation.person_report import person_report
from drenet_jax.models.build import build_model, init_variables, variable_shapes
from drenet_jax.models.proposals import group_anchors, select_proposals
from drenet_jax.training.loop import train_and_evaluate
from drenet_jax.training.losses import all_losses

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# config -> anchors of each group
FAMILY = {
    "drenet": [14 * 14 + 7 * 7],
    "drenet_authors": [14 * 14 + 7 * 7, 4 * 4],
    "nts_net": [6 * 14 * 14 + 6 * 7 * 7 + 9 * 4 * 4],
    "demo": [5 * 5 + 3 * 3],
    "drenet_lite": [7 * 7 + 4 * 4],
}
RIVALS = ("resnet50", "densenet121", "vgg16", "efficientnet_lite0")
# torchvision's published counts for 1000 classes, less its class head, with one of 3 classes.
RIVAL_PARAMETERS = {
    "resnet50": 25_557_032 - 2048 * 1000 - 1000 + 2048 * 3 + 3,
    "densenet121": 7_978_856 - 1024 * 1000 - 1000 + 1024 * 3 + 3,
    "vgg16": 138_357_544 - 4096 * 1000 - 1000 + 4096 * 3 + 3,
    "efficientnet_lite0": 4_652_008 - 1280 * 1000 - 1000 + 1280 * 3 + 3,
}


def _config(name):
    return importlib.import_module(f"drenet_jax.configs.{name}").get_config()


def test_no_shipped_config_is_missing_here():
    # Settings of no model, presets, the paper's model on accelerators (tests/test_configs.py) and
    # EfficientNet-Lite0 as docs/study.md trains it (tests/test_studies.py).
    others = {"audit", "augmentation", "node", "prepare", "serve"}
    others |= {"drenet_gpu", "drenet_tpu", "covid_ct"}
    assert {path.stem for path in CONFIGS.glob("*.py")} == {"__init__", *FAMILY, *RIVALS, *others}


@pytest.mark.parametrize("name", FAMILY)
def test_anchors_and_proposals_are_those_of_the_design(name):
    model = build_model(_config(name), 3)
    groups = group_anchors(model.levels, model.groups, model.image_size_px)
    assert [len(boxes) for _, boxes, _ in groups] == FAMILY[name]
    n_train = sum(group.train_proposals for group in model.groups)
    n_top = sum(group.top_k for group in model.groups)
    expected = {"drenet": (6, 3), "drenet_authors": (6, 6), "nts_net": (6, 4), "demo": (6, 3)}
    expected["drenet_lite"] = (6, 3)
    assert (n_train, n_top) == expected[name]


@pytest.mark.parametrize("name", FAMILY)
def test_there_are_always_enough_proposals_and_none_overlap(name):
    model = build_model(_config(name), 3)
    anchors = group_anchors(model.levels, model.groups, model.image_size_px)
    counts = [group.train_proposals for group in model.groups]
    rng = np.random.default_rng(0)
    n = sum(FAMILY[name])
    scores = np.concatenate([rng.normal(size=(300, n)), rng.integers(0, 2, (100, n))])
    _, boxes = jax.jit(
        lambda scores: select_proposals(
            scores, model.levels, model.groups, model.image_size_px, model.nms_iou, counts
        )
    )(scores.astype(np.float32))
    first = 0
    for count, (_, own, iou) in zip(counts, anchors, strict=True):
        place = {tuple(box): i for i, box in enumerate(own.tolist())}
        for row in np.asarray(boxes[:, first : first + count]).tolist():
            picks = [place[tuple(box)] for box in row]
            overlaps = iou[np.ix_(picks, picks)] - np.eye(count)
            assert overlaps.max() < model.nms_iou
        first += count


def test_no_overlap_of_the_authors_anchors_is_just_their_limit():
    # They keep what is at most 0.1, we keep what is below: the same, as long as nothing is 0.1.
    model = build_model(_config("drenet_authors"), 3)
    for _, _, iou in group_anchors(model.levels, model.groups, model.image_size_px):
        assert np.abs(iou - 0.1).min() > 1e-4


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_have_torchvisions_parameters(name):
    shapes = variable_shapes(build_model(_config(name), 3))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == RIVAL_PARAMETERS[name]


def _small(name):
    """The same kind of model on 256 pixels with few channels."""
    config = _config(name)
    config.model.width = 4
    config.model.image_size_px = 256
    config.init.weights = ""
    if name in FAMILY:
        config.model.backbone = "resnet18"
        config.model.crop_size_px = 32
        config.model.head_features = 8
        if len(config.model.train_proposals) == 2:
            config.model.train_proposals = config.model.top_k = (3, 1)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drenet_authors", "nts_net"])
def test_without_a_weighted_image_the_proposal_head_learns_from_ranking_only(name):
    config = _small(name)
    config.model.dropout = 0.0
    model = build_model(config, 3)
    variables = init_variables(model, 0)
    images = jax.random.uniform(jax.random.key(1), (2, 256, 256))

    def loss(params, which):
        def forward(images):
            outputs, _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return all_losses(outputs, jnp.array([0, 2]))[which]

        return jax.vmap(forward, axis_name=parallel.AXIS)(images[None])[0]

    both = jax.jit(lambda params: [jax.grad(loss)(params, which) for which in ("rank", "concat")])
    by_rank, by_concat = both(variables["params"])
    assert np.any(by_rank["proposal_head"]["down1"]["kernel"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_concat["proposal_head"]))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
        "vgg16",
    ],
)
def test_a_rival_is_trained_evaluated_and_asked_in_the_same_harness(
    name, tiny_config, prepared, phantoms, tmp_path
):
    config = _config(name)
    config.update(
        {group: tiny_config[group] for group in ("data", "train", "optimizer", "evaluation")}
    )
    config.data.dir = str(prepared)
    config.data.batch_size = 8
    config.model.width = 4
    config.model.image_size_px = 96
    config.train.steps = 1
    figures = train_and_evaluate(config, tmp_path / "run")
    assert np.isfinite(figures["cross_entropy"])
    (tmp_path / "test").mkdir()
    metrics = evaluate_split(tmp_path / "run", "test", tmp_path / "test")
    assert metrics["person"]["auc"]["value"] is not None
    person = read_cohort(phantoms / "cohort.csv").persons[0]
    found = drenet_jax.load(tmp_path / "run").predict(person.paths[0])
    assert found.result["model"]["name"] == name
    assert all(one["boxes"] == [] for one in found.result["slices"])
    assert "No lesion box" in person_report(found.result, found.pictures)


def test_bfloat16_stays_near_float32(tiny_config):
    images = jax.random.uniform(jax.random.key(1), (16, 96, 96))
    label = jnp.arange(16) % 3
    logits = {}
    for dtype in ("float32", "bfloat16"):
        tiny_config.model.dtype = dtype
        model = build_model(tiny_config, 3)
        variables = init_variables(model, 0)
        outputs = jax.jit(lambda v, x, m=model: m.apply(v, x, train=False))(variables, images)
        assert outputs.feature_maps.image.dtype == dtype
        for leaf in jax.tree.leaves((variables, outputs.replace(feature_maps=None))):
            assert leaf.dtype == jnp.float32
        assert all_losses(outputs, label)["loss"].dtype == jnp.float32
        logits[dtype] = outputs
    half, full = logits["bfloat16"], logits["float32"]
    # Of scores that are nearly equal another may win: that is another choice, not another figure.
    same = np.all(half.boxes == full.boxes, axis=(1, 2))
    assert same.sum() >= 8
    for name in ("logits", "raw_logits", "part_logits"):
        ours, theirs = getattr(half, name)[same], getattr(full, name)[same]
        # bfloat16 has 8 bits: the error grows with the size of what is added up.
        np.testing.assert_allclose(ours, theirs, atol=2e-2 * np.abs(theirs).max(), err_msg=name)
