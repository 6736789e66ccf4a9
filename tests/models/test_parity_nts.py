"""NTS-Net and the authors' DRENet against an independent PyTorch implementation."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")

from oracles import torch_nts  # noqa: E402
from oracles.torch_random import randomise, switch_channels  # noqa: E402

from drenet_jax import parallel  # noqa: E402
from drenet_jax.models.build import build_model  # noqa: E402
from drenet_jax.models.outputs import Outputs, normalise  # noqa: E402
from drenet_jax.models.pretrained import whole_model_to_flax  # noqa: E402
from drenet_jax.models.proposals import anchor_boxes  # noqa: E402
from drenet_jax.training.losses import all_losses  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# name of the config -> groups of anchors, whether there is a context image
REFERENCES = {
    "nts_net": (torch_nts.NTS_GROUPS, False),
    "drenet_authors": (torch_nts.AUTHORS_GROUPS, True),
}
LOSSES = ("raw", "concat", "parts", "rank")
SIZE_PX = 448
CLASSES = 3
BATCH = 2
TOLERANCE = 1e-3


class Pair(NamedTuple):
    """A model twice, with the same random weights."""

    config: object
    reference: torch_nts.NTSNet
    model: nn.Module
    variables: dict


def _pair(name: str, *, small: bool) -> Pair:
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    # Each draws its own; see test_vgg.py and test_drenet.py for what it does.
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
    variables = whole_model_to_flax(_arrays(reference), config)
    return Pair(config, reference, build_model(config, CLASSES), variables)


def _arrays(reference: torch_nts.NTSNet) -> dict[str, np.ndarray]:
    # Copies: a training pass of PyTorch changes its own in place.
    return {name: tensor.numpy().copy() for name, tensor in reference.state_dict().items()}


@pytest.fixture(scope="module", params=list(REFERENCES))
def small_pair(request) -> Pair:
    return _pair(request.param, small=True)


@pytest.fixture(scope="module", params=list(REFERENCES))
def full_pair(request) -> Pair:
    return _pair(request.param, small=False)


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
    _assert_close(outputs.scores, expected.scores[:, :n].detach(), "scores")
    _assert_close(outputs.raw_logits, expected.raw_logits.detach(), "raw logits")
    _assert_close(outputs.part_logits, expected.part_logits[:, :n].detach(), "part logits")
    _assert_close(outputs.logits, expected.logits.detach(), "logits")


def _check_evaluation(pair: Pair, images: np.ndarray) -> None:
    pair.reference.eval()
    with torch.no_grad():
        expected = pair.reference(_to_torch(images))
    # The images differ in what is looked at and in what is said of them.
    assert (expected.boxes[0] != expected.boxes[1]).any()
    outputs = jax.jit(lambda *args: pair.model.apply(*args, train=False))(pair.variables, images)
    _assert_same_outputs(outputs, expected)


def _check_training(pair: Pair, images: np.ndarray) -> None:
    label = np.array([2, 0])

    def weighted(params, batch_stats, images, weights):
        variables = {"params": params, "batch_stats": batch_stats}
        # Batch statistics are averaged over a mapped axis, here of one device.
        outputs, _ = jax.vmap(
            lambda x: pair.model.apply(variables, x, train=True, mutable=["batch_stats"]),
            axis_name=parallel.AXIS,
        )(images[None])
        outputs = jax.tree.map(lambda x: x[0], outputs)
        losses = all_losses(outputs, jnp.asarray(label))
        return sum(weights[name] * losses[name] for name in LOSSES), (losses, outputs)

    # Compiled once: which of the losses it is comes as an argument.
    gradient = jax.jit(jax.grad(weighted, has_aux=True))

    switched = switch_channels(copy.deepcopy(pair.reference))
    for reference, compare in ((switched, _assert_same_gradient), (pair.reference, _assert_alike)):
        reference.train()
        expected = reference(_to_torch(images))
        expected_losses = torch_nts.losses(expected, torch.from_numpy(label))
        variables = whole_model_to_flax(_arrays(reference), pair.config)
        for name in LOSSES:
            weights = {other: float(other == name) for other in LOSSES}
            got, (losses, outputs) = gradient(
                variables["params"], variables["batch_stats"], images, weights
            )
            if name == LOSSES[0]:
                _assert_same_outputs(outputs, expected)
                for key, value in expected_losses.items():
                    _assert_close(losses[key], value.detach(), key)
            by_ours = _torch_gradient(reference, pair.config, expected_losses[name])
            assert jax.tree.structure(got) == jax.tree.structure(by_ours)
            compare(got, by_ours, name)


def _torch_gradient(reference: torch_nts.NTSNet, config, loss: torch.Tensor) -> dict:
    """The gradient by each of our parameters: it is converted as the parameters are."""
    parameters = dict(reference.named_parameters())
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, materialize_grads=True
    )
    gradients = {name: one.numpy() for name, one in zip(parameters, gradients, strict=True)}
    return whole_model_to_flax({**_arrays(reference), **gradients}, config)["params"]


def _assert_same_gradient(got: dict, expected: dict, loss: str) -> None:
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        _assert_close(ours, theirs, f"gradient of {loss} by {jax.tree_util.keystr(path)}")


def _assert_alike(got: dict, expected: dict, loss: str) -> None:
    """As near as PyTorch's float32 is to its float64 where ReLUs switch; see `switch_channels`."""
    ours, theirs = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (got, expected)
    )
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < 0.1, f"gradient of {loss}: {error:.2g}"


def test_anchors_are_those_of_the_published_codes(small_pair):
    """In another order: PyTorch's is scale, ratio, row, column in a level, ours ends with them."""
    groups = small_pair.reference.groups
    levels = [level for group in groups for level in group.levels]
    for ours, level in zip(small_pair.model.levels, levels, strict=True):
        padded = torch_nts.padded_anchors([level], SIZE_PX, small_pair.reference.border_px)
        cells = ours.cells(SIZE_PX)
        expected = (padded - small_pair.reference.border_px).reshape(-1, cells, cells, 4)
        np.testing.assert_array_equal(
            anchor_boxes([ours], SIZE_PX), np.moveaxis(expected, 0, 2).reshape(-1, 4)
        )
    ours = [(g.levels, g.train_proposals, g.top_k) for g in small_pair.model.groups]
    assert ours == [(len(g.levels), g.proposals, g.concatenated) for g in groups]


def test_boxes_and_logits_are_pytorchs(small_pair, images):
    _check_evaluation(small_pair, images)


def test_losses_and_gradients_are_pytorchs(small_pair, images):
    _check_training(small_pair, images)


@pytest.mark.slow
def test_boxes_and_logits_are_pytorchs_in_full_size(full_pair, images):
    _check_evaluation(full_pair, images)


@pytest.mark.slow
def test_losses_and_gradients_are_pytorchs_in_full_size(full_pair, images):
    _check_training(full_pair, images)
