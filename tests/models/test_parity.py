"""The backbones against independent PyTorch implementations with the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")

from oracles import torch_gradcam  # noqa: E402
from oracles.torch_densenet import DenseNet as TorchDenseNet  # noqa: E402
from oracles.torch_random import randomise  # noqa: E402
from oracles.torch_resnet import ResNet as TorchResNet  # noqa: E402
from oracles.torch_vgg import VGG as TorchVGG  # noqa: E402

from drenet_jax.models.backbones.densenet import DenseNet  # noqa: E402
from drenet_jax.models.backbones.resnet import ResNet  # noqa: E402
from drenet_jax.models.backbones.vgg import VGG  # noqa: E402
from drenet_jax.models.classifier import Classifier  # noqa: E402
from drenet_jax.models.grad_cam import grad_cam  # noqa: E402
from drenet_jax.models.model_outputs import normalise  # noqa: E402
from drenet_jax.models.pretrained import to_flax  # noqa: E402

pytestmark = pytest.mark.usefixtures("optimized")

# torchvision's published counts, the head of 1000 classes included.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "densenet121": 7_978_856,
    "vgg16": 138_357_544,
}
HEADS = {"densenet121": "classifier", "vgg16": "classifier.6"}
HEAT_MAP_TOLERANCE = 1e-3


def _torch_network(architecture: str) -> torch.nn.Module:
    if architecture == "densenet121":
        return TorchDenseNet()
    if architecture == "vgg16":
        return TorchVGG()
    return TorchResNet(architecture)


def _flax_network(architecture: str) -> nn.Module:
    if architecture == "densenet121":
        return DenseNet(architecture, 64, jnp.float32, None)
    if architecture == "vgg16":
        return VGG(architecture, 64, jnp.float32, dropout=0.5)
    return ResNet(architecture, 64, jnp.float32, None)


class Pair(NamedTuple):
    """An architecture twice, with the same random weights."""

    architecture: str
    reference: torch.nn.Module
    network: nn.Module
    variables: Mapping

    def logits(self, pooled: jax.Array) -> np.ndarray:
        head = self.reference.get_submodule(HEADS.get(self.architecture, "fc"))
        return np.asarray(pooled) @ head.weight.detach().numpy().T + head.bias.detach().numpy()


def _pair(architecture: str) -> Pair:
    images = _to_torch(_images(0, 4, 128, 128))
    reference = randomise(_torch_network(architecture), images, seed=5)
    return Pair(
        architecture,
        reference,
        _flax_network(architecture),
        to_flax(_arrays(reference.state_dict()), architecture),
    )


# Of the whole module, in groups: VGG16's weights take half a gigabyte in each of the two.
@pytest.fixture(scope="module", params=list(PARAMETERS))
def pair(request) -> Pair:
    return _pair(request.param)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in ("resnet34", "densenet121") else [])
        for name in PARAMETERS
        if name != "vgg16"
    ],
)
def normalised_pair(request) -> Pair:
    """Those with batch norm."""
    return _pair(request.param)


def _arrays(state_dict: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    # Copies: a training pass of PyTorch changes its own in place.
    return {name: tensor.numpy().copy() for name, tensor in state_dict.items()}


def _images(seed: int, batch: int, height: int, width: int) -> np.ndarray:
    """Patches under noise: noise alone is the same to a network once it is averaged."""
    random = np.random.default_rng(seed)
    patches = np.kron(random.normal(size=(batch, 8, 8, 3)), np.ones((1, 64, 64, 1)))
    noise = random.normal(size=(batch, height, width, 3))
    return (patches[:, :height, :width] + 0.5 * noise).astype(np.float32)


def _to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _assert_close(got, expected, tolerance: float, what: str = "") -> None:
    """No difference above `tolerance` of the largest value expected."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, what
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{what}: {error:.2g}"


@pytest.mark.parametrize("architecture", PARAMETERS)
def test_parameters_are_as_many_as_torchvision_publishes(architecture):
    with torch.device("meta"):
        reference = _torch_network(architecture)
    assert sum(p.numel() for p in reference.parameters()) == PARAMETERS[architecture]

    network = _flax_network(architecture)
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    )
    head = reference.get_submodule(HEADS.get(architecture, "fc"))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count + sum(p.numel() for p in head.parameters()) == PARAMETERS[architecture]


@pytest.mark.parametrize("size_px", [224, pytest.param(448, marks=pytest.mark.slow)])
def test_logits_are_pytorchs(pair, size_px):
    images = _images(size_px, 2, size_px, size_px)
    with torch.no_grad():
        expected = pair.reference(_to_torch(images)).numpy()
    # What a slip in one layer would change: the two images differ.
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()

    _, pooled = jax.jit(lambda *args: pair.network.apply(*args, train=False))(
        pair.variables, images
    )
    _assert_close(pair.logits(pooled), expected, 1e-4)


def test_heat_maps_are_those_of_pytorchs_gradients(pair):
    """Grad-CAM of the first three of the 1000 classes, by autograd and the definition."""
    images = _images(7, 2, 128, 128)[..., 0]
    pixels = _to_torch(np.asarray(normalise(jnp.asarray(images))))
    head = pair.reference.get_submodule(HEADS.get(pair.architecture, "fc"))
    with torch_gradcam.last_block(pair.reference) as feature_maps:
        expected = torch_gradcam.heat_maps(pair.reference(pixels)[:, :3], feature_maps[0])

    model = Classifier(3, _flax_network(pair.architecture), 128, 0.0)
    weights = {
        "kernel": head.weight.detach().numpy().T[:, :3],
        "bias": head.bias.detach().numpy()[:3],
    }
    variables = {
        "params": {"backbone": pair.variables["params"], "head": weights},
        "batch_stats": {"backbone": pair.variables["batch_stats"]},
    }
    _, maps = jax.jit(lambda v, x: grad_cam(model, v, x))(variables, images)
    assert maps.crops.shape[:3] == (2, 3, 0)
    assert expected.max() > 0
    _assert_close(maps.image, expected, HEAT_MAP_TOLERANCE, "heat maps")


def test_resnet50_is_pytorchs_stage_by_stage_on_odd_sizes():
    pair = _pair("resnet50")
    images = _images(3, 1, 75, 93)
    with torch.no_grad():
        stages = pair.reference.stages(_to_torch(images))[1:]

    _, captured = jax.jit(
        lambda *args: pair.network.apply(*args, train=False, capture_intermediates=True)
    )(pair.variables, images)
    for name, expected in zip(
        ("layer1_2", "layer2_3", "layer3_5", "layer4_2"), stages, strict=True
    ):
        (got,) = captured["intermediates"][name]["__call__"]
        _assert_close(got, expected.permute(0, 2, 3, 1), 1e-4, name)


def test_training_passes_and_running_statistics_follow_the_definition(normalised_pair):
    """Running value ← 0.9 × running value + 0.1 × the batch's, at each step.

    Both take the batch's biased variance to normalise. Into the running one PyTorch puts the
    unbiased variance, n / (n − 1) times as large for n values a channel; Flax the biased one. It
    does not matter: n is the batch times the plane, 7 × 7 a crop at the least, so that a running
    variance is smaller by a thousandth or less, far below its own noise from batch to batch; and
    weights that were trained with PyTorch bring their own, which are used as they are.
    """
    pair = normalised_pair
    before = _arrays(pair.reference.state_dict())
    n_values = _count_values(pair.reference)
    apply = jax.jit(lambda *args: pair.network.apply(*args, train=True, mutable=["batch_stats"]))
    variables = pair.variables
    pair.reference.train()
    for step in range(3):
        images = _images(step, 4, 64, 64)
        with torch.no_grad():
            expected = pair.reference(_to_torch(images)).numpy()
        (_, pooled), updates = apply(variables, images)
        variables = {**variables, **updates}
        _assert_close(pair.logits(pooled), expected, 1e-4, f"step {step}")

    biased = _arrays(pair.reference.state_dict())
    for layer, n in n_values.items():
        name = f"{layer}.running_var"
        start = 0.9**3 * before[name]
        biased[name] = start + (biased[name] - start) * (n - 1) / n
    expected_stats = to_flax(biased, pair.architecture)["batch_stats"]
    jax.tree_util.tree_map_with_path(
        lambda path, got, expected: _assert_close(got, expected, 1e-4, jax.tree_util.keystr(path)),
        variables["batch_stats"],
        expected_stats,
    )


def _count_values(network: torch.nn.Module) -> dict[str, int]:
    """Name of each batch norm -> values a channel in a pass; filled in by the passes to come."""
    n_values: dict[str, int] = {}

    def remember(name: str):
        def hook(module, inputs, output):
            n_values[name] = output.numel() // output.shape[1]

        return hook

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(remember(name))
    return n_values
