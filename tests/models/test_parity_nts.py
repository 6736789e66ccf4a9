"""NTS-Net and the authors' DRENet against an independent PyTorch implementation."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")

from oracles import torch_gradcam, torch_nts  # noqa: E402
from oracles.torch_random import randomise  # noqa: E402

from drenet_jax import parallel  # noqa: E402
from drenet_jax.models import proposals  # noqa: E402
from drenet_jax.models.build import build_model  # noqa: E402
from drenet_jax.models.grad_cam import grad_cam  # noqa: E402
from drenet_jax.models.model_outputs import Outputs, normalise  # noqa: E402
from drenet_jax.models.pretrained import whole_model_to_flax  # noqa: E402
from drenet_jax.training.losses import all_losses  # noqa: E402

pytestmark = pytest.mark.usefixtures("optimized")

# name of the config -> groups of anchors, whether there is a context image
REFERENCES = {
    "nts_net": (torch_nts.NTS_GROUPS, False),
    "drenet_authors": (torch_nts.AUTHORS_GROUPS, True),
}
LOSSES = ("raw", "concat", "parts", "rank")
SIZE_PX = 448
CLASSES = 3
LABEL = np.array([2, 0])
BATCH = len(LABEL)
TOLERANCE = 1e-3


class Pair(NamedTuple):
    """A model twice, with the same random weights."""

    config: ml_collections.ConfigDict
    reference: torch_nts.NTSNet
    model: nn.Module
    variables: dict


def _pair(name: str, *, small: bool) -> Pair:
    config = importlib.import_module(f"drenet_jax.configs.{name}").get_config()
    # PyTorch and JAX draw other numbers.
    config.model.dropout = 0.0
    sizes = {}
    if small:
        # All anchors and all passes, through fewer and narrower layers.
        sizes = {"architecture": "resnet18", "width": 8, "head_features": 16, "crop_px": 64}
        config.model.backbone = sizes["architecture"]
        config.model.width = sizes["width"]
        config.model.head_features = sizes["head_features"]
        config.model.crop_size_px = sizes["crop_px"]
    groups, context = REFERENCES[name]
    reference = torch_nts.NTSNet(groups, context, CLASSES, dropout=0.0, **sizes)
    randomise(reference, _to_torch(_images(1)), seed=11)
    _let_all_anchors_compete(reference, _to_torch(_images(1)))
    variables = whole_model_to_flax(_arrays(reference), config)
    return Pair(config, reference, build_model(config, CLASSES), variables)


@torch.no_grad()
def _let_all_anchors_compete(reference: torch_nts.NTSNet, images: torch.Tensor) -> None:
    """Makes the best score of each kind of anchor 0, or random weights would pick one kind only."""
    feature_map, _ = reference.pretrained_model.features(images)
    for i, scores in enumerate(reference.proposal_net(feature_map), start=1):
        bias = reference.proposal_net.get_submodule(f"tidy{i}").bias
        bias -= scores.reshape(len(images), len(bias), -1).amax((0, 2))


def _arrays(reference: torch_nts.NTSNet) -> dict[str, np.ndarray]:
    # Copies: a training pass of PyTorch changes its own in place.
    return {name: tensor.numpy().copy() for name, tensor in reference.state_dict().items()}


# The authors' network has what NTS-Net has, and a context image.
_NAMES = [pytest.param("nts_net", marks=pytest.mark.slow), "drenet_authors"]


@pytest.fixture(scope="module", params=_NAMES)
def small_pair(request) -> Pair:
    return _pair(request.param, small=True)


@pytest.fixture(scope="module", params=_NAMES)
def full_pair(request) -> Pair:
    return _pair(request.param, small=False)


@pytest.fixture
def double(monkeypatch):
    """float64 throughout; the positions of a crop's samples have the type of the anchors."""
    anchor_boxes = proposals.anchor_boxes
    monkeypatch.setattr(
        proposals, "anchor_boxes", lambda *args: anchor_boxes(*args).astype(np.float64)
    )
    proposals.group_anchors.cache_clear()
    with jax.enable_x64(True):
        yield
    proposals.group_anchors.cache_clear()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return _images(2)


def _images(seed: int) -> np.ndarray:
    """[B, S, S] in 0..1: patches under noise, so that some places are liked better than others."""
    random = np.random.default_rng(seed)
    patches = np.kron(random.random((BATCH, 14, 14)), np.ones((1, 32, 32)))
    return (0.7 * patches + 0.3 * random.random((BATCH, SIZE_PX, SIZE_PX))).astype(np.float32)


def _to_torch(images: np.ndarray) -> torch.Tensor:
    pixels = np.asarray(normalise(jnp.asarray(images))).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _assert_close(got, expected, what: str) -> None:
    """No difference above the tolerance of the largest value expected."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, what
    error, largest = np.abs(got - expected).max(), np.abs(expected).max()
    assert error <= TOLERANCE * largest, f"{what}: {error:.2g} of {largest:.2g}"


def _assert_same_outputs(outputs: Outputs, expected: torch_nts.Result) -> None:
    """All that both have; a prediction of ours has only the proposals that go into it."""
    n = outputs.boxes.shape[1]
    np.testing.assert_array_equal(outputs.boxes, expected.boxes[:, :n])
    _assert_close(outputs.scores, expected.scores[:, :n], "scores")
    _assert_close(outputs.raw_logits, expected.raw_logits, "raw logits")
    _assert_close(outputs.part_logits, expected.part_logits[:, :n], "part logits")
    _assert_close(outputs.logits, expected.logits, "logits")


def _forward(model: nn.Module, variables: dict, images: jax.Array) -> tuple[dict, Outputs]:
    """A training pass: losses and outputs."""
    # Batch statistics are averaged over a mapped axis, here of one device.
    outputs, _ = jax.vmap(
        lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]),
        axis_name=parallel.AXIS,
    )(images[None])
    outputs = jax.tree.map(lambda x: x[0], outputs)
    return all_losses(outputs, jnp.asarray(LABEL)), outputs


def _check_gradients(pair: Pair, images: np.ndarray) -> None:
    """In float64: a gradient jumps where the input of a ReLU passes 0.

    Among millions of inputs some are so near 0 that rounding decides. In float32 PyTorch's own
    gradient differs from its gradient in float64 by 1 to 10 percent for that reason.
    """
    expected, expected_losses, expected_gradients = _torch_gradients(pair, images)
    model = pair.model.clone(backbone=pair.model.backbone.clone(dtype=jnp.float64))
    variables = jax.tree.map(lambda x: x.astype(np.float64), pair.variables)

    def weighted(params, images, weights):
        losses, outputs = _forward(model, {**variables, "params": params}, images)
        return sum(weights[name] * losses[name] for name in LOSSES), (losses, outputs)

    # Compiled once: which of the losses it is comes as an argument.
    gradient = jax.jit(jax.grad(weighted, has_aux=True))
    for name in LOSSES:
        weights = {other: float(other == name) for other in LOSSES}
        got, (losses, outputs) = gradient(variables["params"], images, weights)
        assert losses["raw"].dtype == np.float64
        _assert_same_outputs(outputs, expected)
        _assert_close(losses[name], expected_losses[name], name)
        for (path, ours), theirs in zip(
            jax.tree_util.tree_leaves_with_path(got),
            jax.tree.leaves(expected_gradients[name]),
            strict=True,
        ):
            _assert_close(ours, theirs, f"gradient of {name} by {jax.tree_util.keystr(path)}")


def _torch_gradients(
    pair: Pair, images: np.ndarray
) -> tuple[torch_nts.Result, dict[str, np.ndarray], dict[str, dict]]:
    """Of a training pass in float64: the outputs, the losses, and the gradient of each loss.

    A gradient by PyTorch's parameters is converted to one by ours as the parameters are.
    """
    reference = copy.deepcopy(pair.reference).double().train()
    result = reference(_to_torch(images).double())
    losses = torch_nts.losses(result, torch.from_numpy(LABEL))
    parameters = dict(reference.named_parameters())
    gradients = {}
    for name in LOSSES:
        found = torch.autograd.grad(
            losses[name], list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        arrays = {key: one.numpy() for key, one in zip(parameters, found, strict=True)}
        converted = whole_model_to_flax({**_arrays(reference), **arrays}, pair.config)
        gradients[name] = converted["params"]
    # The graph takes gigabytes in full size: it must not stay while ours is computed.
    detached = {
        field.name: getattr(result, field.name).detach()
        for field in dataclasses.fields(result)
        if field.name != "boxes"
    }
    return (
        torch_nts.Result(**detached, boxes=result.boxes),
        {name: loss.detach().numpy() for name, loss in losses.items()},
        gradients,
    )


def test_anchors_are_those_of_the_published_codes(small_pair):
    """In another order: PyTorch's is scale, ratio, row, column in a level, ours ends with them."""
    groups = small_pair.reference.groups
    levels = [level for group in groups for level in group.levels]
    for ours, level in zip(small_pair.model.levels, levels, strict=True):
        padded = torch_nts.padded_anchors([level], SIZE_PX, small_pair.reference.border_px)
        cells = ours.cells(SIZE_PX)
        expected = (padded - small_pair.reference.border_px).reshape(-1, cells, cells, 4)
        np.testing.assert_array_equal(
            proposals.anchor_boxes([ours], SIZE_PX), np.moveaxis(expected, 0, 2).reshape(-1, 4)
        )
    ours = [(g.levels, g.train_proposals, g.top_k) for g in small_pair.model.groups]
    assert ours == [(len(g.levels), g.proposals, g.concatenated) for g in groups]


def test_picks_are_those_of_a_plain_loop(small_pair):
    """Also where overlaps are just the limit, as those of many of NTS-Net's anchors are."""
    random = np.random.default_rng(0)
    model, border_px = small_pair.model, small_pair.reference.border_px
    scores, expected = [], []
    for group, (_, ours, iou) in zip(
        small_pair.reference.groups,
        proposals.group_anchors(model.levels, model.groups, SIZE_PX),
        strict=True,
    ):
        theirs = torch_nts.padded_anchors(group.levels, SIZE_PX, border_px)
        place = {tuple(box): i for i, box in enumerate((theirs - border_px).tolist())}
        order = [place[tuple(box)] for box in ours.astype(int).tolist()]
        assert sorted(order) == list(range(len(theirs)))

        drawn = random.normal(size=(200, len(ours))).astype(np.float32)
        at_limit = np.argwhere(np.isclose(iou, group.nms_iou, rtol=0, atol=1e-6))
        if len(at_limit):
            # The two best of each of these images overlap by just the limit.
            for row, pair in zip(drawn[::2], random.permutation(at_limit), strict=False):
                row[pair] += 10
        by_theirs = np.empty_like(drawn)
        by_theirs[:, order] = drawn
        picks = [torch_nts.suppress(row, theirs, group) for row in by_theirs]
        scores.append(drawn)
        expected.append(theirs[np.stack(picks)] - border_px)

    _, boxes = proposals.select_proposals(
        jnp.asarray(np.concatenate(scores, axis=1)),
        model.levels,
        model.groups,
        SIZE_PX,
        model.nms_iou,
        [group.train_proposals for group in model.groups],
    )
    np.testing.assert_array_equal(boxes, np.concatenate(expected, axis=1))


def test_boxes_and_logits_are_pytorchs(full_pair, images):
    full_pair.reference.eval()
    with torch.no_grad():
        expected = full_pair.reference(_to_torch(images))
    # What is looked at differs between the images, and some of it reaches over an edge.
    assert (expected.boxes[0] != expected.boxes[1]).any()
    assert (expected.boxes < 0).any() or (expected.boxes > SIZE_PX).any()
    outputs = jax.jit(lambda *args: full_pair.model.apply(*args, train=False))(
        full_pair.variables, images
    )
    _assert_same_outputs(outputs, expected)


@pytest.mark.slow
def test_losses_are_pytorchs(full_pair, images):
    reference = full_pair.reference.train()
    with torch.no_grad():
        expected = reference(_to_torch(images))
    variables = full_pair.variables
    losses, outputs = jax.jit(lambda *args: _forward(full_pair.model, *args))(variables, images)
    _assert_same_outputs(outputs, expected)
    for name, value in torch_nts.losses(expected, torch.from_numpy(LABEL)).items():
        _assert_close(losses[name], value, name)


def test_statistics_of_each_pass_are_those_that_pytorch_is_given_for_it(images):
    """PyTorch has one set of running statistics; here it gets another before each pass."""
    pair = _pair("drenet_authors", small=True)
    backbone = pair.reference.pretrained_model
    norms = [layer for layer in backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(5)
    of_pass, statistics = [], []
    for _ in range(3):
        for norm in norms:
            norm.running_mean.add_(torch.randn(norm.num_features, generator=generator), alpha=0.2)
            norm.running_var *= 0.7 + 0.7 * torch.rand(norm.num_features, generator=generator)
        of_pass.append([(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms])
        found = whole_model_to_flax(_arrays(pair.reference), pair.config)
        statistics.append(found["batch_stats"])
    passes, plain = iter(of_pass), backbone.features

    def features(pixels):
        for norm, (mean, var) in zip(norms, next(passes), strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
        return plain(pixels)

    backbone.features = features
    with torch.no_grad():
        expected = pair.reference(_to_torch(images))
    assert next(passes, None) is None
    model = pair.model.clone(backbone=pair.model.backbone.clone(domains=3))
    stacked = jax.tree.map(lambda *passes: np.stack(passes), *statistics)
    variables = dict(pair.variables, batch_stats=stacked)
    outputs = jax.jit(lambda *args: model.apply(*args, train=False))(variables, images)
    _assert_same_outputs(outputs, expected)
    variables["batch_stats"] = jax.tree.map(lambda x: np.stack([x[0]] * 3), stacked)
    shared = jax.jit(lambda *args: model.apply(*args, train=False))(variables, images)
    assert np.abs(shared.logits - outputs.logits).max() > 0.1


def test_gradients_are_pytorchs(small_pair, images, double):
    _check_gradients(small_pair, images)


def test_heat_maps_are_those_of_pytorchs_gradients(small_pair, images):
    """Of the image and of each proposal that goes into the prediction, for every class."""
    with torch_gradcam.last_block(small_pair.reference.pretrained_model) as feature_maps:
        logits = small_pair.reference(_to_torch(images)).logits
    outputs, maps = jax.jit(lambda v, x: grad_cam(small_pair.model, v, x))(
        small_pair.variables, images
    )
    _assert_close(maps.image, torch_gradcam.heat_maps(logits, feature_maps[0]), "image")
    n = outputs.boxes.shape[1]
    of_crops = feature_maps[1]
    expected = torch_gradcam.heat_maps(logits, of_crops)  # [images · proposals, classes, h, w]
    expected = expected.reshape(BATCH, -1, *expected.shape[1:])[:, :n]
    _assert_close(maps.crops, np.moveaxis(expected, 1, 2), "crops")
    assert maps.image.max() > 0
    assert (np.asarray(maps.crops).max(axis=(0, 1, 3, 4)) > 0).all()


@pytest.mark.slow
def test_gradients_are_pytorchs_in_full_size(full_pair, images, double):
    _check_gradients(full_pair, images)
