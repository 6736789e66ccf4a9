"""ONNX files give what JAX gives."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from drenet_jax.errors import InputError
from drenet_jax.models.build import build_model, init_variables
from drenet_jax.models.slice_scorer import make_forward

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")

from drenet_jax.exporting.onnx_model import to_onnx  # noqa: E402
from tests.exporting.random_models import random_variables, smooth_slices  # noqa: E402

SIZE_PX = 96


def _both(model, variables, images) -> tuple[dict, dict]:
    """What JAX and ONNX Runtime give."""
    forward = jax.jit(make_forward(model, heat_maps=True))
    expected = {name: np.asarray(value) for name, value in forward(variables, images).items()}
    exported = to_onnx(model, variables, {}, heat_maps=True)
    session = runtime.InferenceSession(
        exported.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return expected, dict(zip(names, session.run(names, {"images": images}), strict=True))


def _assert_same(expected: dict, given: dict) -> None:
    for name, values in given.items():
        scale = max(1.0, float(np.abs(expected[name]).max()))
        assert values.shape == expected[name].shape, name
        np.testing.assert_allclose(values, expected[name], atol=1e-4 * scale, err_msg=name)


def _drenet(config, **changes):
    for name, value in changes.items():
        config.model[name] = value
    return build_model(config, 3)


def _check_backbone(tiny_config, backbone: str) -> None:
    tiny_config.model.backbone = backbone
    drenet = _drenet(tiny_config)
    tiny_config.model.name = backbone
    alone = build_model(tiny_config, 3)
    for model in (alone, drenet):
        expected, given = _both(model, random_variables(model), smooth_slices(3, SIZE_PX))
        _assert_same(expected, given)


def test_resnet18_alone_and_under_drenet(tiny_config):
    _check_backbone(tiny_config, "resnet18")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "densenet121", "vgg16", "efficientnet_lite0"])
def test_each_backbone_alone_and_under_drenet(tiny_config, backbone):
    if backbone == "efficientnet_lite0":
        tiny_config.model.width = 8
    _check_backbone(tiny_config, backbone)


def _check_variant(tiny_config, changes: dict) -> None:
    model = _drenet(tiny_config, **changes)
    images = smooth_slices(3, changes.get("image_size_px", SIZE_PX))
    expected, given = _both(model, random_variables(model), images)
    _assert_same(expected, given)


@pytest.mark.parametrize(
    "changes",
    [
        {"context": "zoom", "hidden": ()},
        {"context": "none", "proposals": "grid", "batch_statistics": "shared"},
    ],
    ids=str,
)
def test_variants_of_drenet(tiny_config, changes):
    _check_variant(tiny_config, changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"context": "weighted_detached"},
        {"hidden": (8, 6)},
        {"proposals": "grid"},
        {"anchor_groups": (0, 1), "train_proposals": (2, 2), "top_k": (2, 1)},
        {"anchor_scales": ((1.0, 1.3), (0.7,)), "anchor_aspect_ratios": ((0.5, 2.0), (1.0,))},
        {"image_size_px": 112, "crop_size_px": 40},
    ],
    ids=str,
)
def test_more_variants_of_drenet(tiny_config, changes):
    _check_variant(tiny_config, changes)


def test_the_batch_may_have_any_size(tiny_config):
    model = _drenet(tiny_config)
    variables = random_variables(model)
    session = runtime.InferenceSession(
        to_onnx(model, variables, {}, heat_maps=False).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    images = smooth_slices(5, SIZE_PX)

    together = session.run(["logits"], {"images": images})[0]

    alone = [session.run(["logits"], {"images": images[i : i + 1]})[0][0] for i in range(5)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_random_proposals_are_refused(tiny_config):
    model = _drenet(tiny_config, proposals="random")

    with pytest.raises(InputError, match=r"model\.proposals=random"):
        to_onnx(model, init_variables(model, 0), {}, heat_maps=False)
