"""`convert_weights`: from a file of PyTorch weights to a run, and to a prediction."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
safetensors_torch = pytest.importorskip(
    "safetensors.torch", reason="safetensors, which writes the files, is not installed"
)

from oracles import torch_nts  # noqa: E402
from oracles.torch_random import randomise  # noqa: E402
from oracles.torch_resnet import ResNet  # noqa: E402

import drenet_jax  # noqa: E402
from drenet_jax import convert_weights  # noqa: E402
from drenet_jax.errors import InputError  # noqa: E402
from drenet_jax.models import drenet, pretrained  # noqa: E402
from drenet_jax.models.backbones import registry  # noqa: E402
from drenet_jax.models.backbones import resnet as flax_resnet  # noqa: E402
from drenet_jax.models.model_outputs import normalise  # noqa: E402
from drenet_jax.training import loop  # noqa: E402


@pytest.fixture(scope="module")
def resnet18() -> ResNet:
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return randomise(ResNet("resnet18"), images, seed=1)


@pytest.fixture(scope="module")
def imagenet(resnet18, tmp_path_factory) -> Path:
    """Random weights, as a file like torchvision's ImageNet weights."""
    path = tmp_path_factory.mktemp("imagenet") / "resnet18.safetensors"
    safetensors_torch.save_file(resnet18.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def converted(imagenet, command) -> tuple[Path, str]:
    """The folder that the command makes of `imagenet`, and what it says."""
    out = imagenet.parent / "converted"
    done = command("convert_weights", f"--input={imagenet}", "--arch=resnet18", f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def _to_torch(images) -> torch.Tensor:
    """[B, S, S] in 0..1 -> [B, 3, S, S] normalised."""
    pixels = np.asarray(normalise(jnp.asarray(images))).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def test_the_flag_knows_all_architectures():
    assert (*registry.BACKBONES, *pretrained.WHOLE_MODELS) == convert_weights.ARCHITECTURES


def test_what_was_taken_and_left_out_and_the_next_command_are_reported(converted):
    out, output = converted
    assert "100 arrays" in output
    assert "left out, as class heads: fc.bias, fc.weight" in output
    assert "--config=configs/drenet.py --config.model.backbone=resnet18 " in output
    assert f"--config.init.weights={out}" in output
    assert "drenet_jax.predict" not in output


class _FirstStep(Exception):
    """Ends a run at its first step: the variables of one device, the images of all."""


@pytest.mark.slow
def test_training_starts_from_converted_weights(
    converted, resnet18, tiny_config, prepared, tmp_path, monkeypatch
):
    tiny_config.data.dir = str(prepared)
    tiny_config.model.width = 64
    tiny_config.init.weights = str(converted[0])
    tiny_config.train.steps = 1

    # The step itself is another test's business, and takes long to compile.
    def first_step(state, micro_batches):
        ((_, images, _),) = micro_batches
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        raise _FirstStep(jax.tree.map(lambda x: np.asarray(x[0]), variables), np.asarray(images))

    monkeypatch.setattr(loop, "make_train_step", lambda *args, **kwargs: first_step)
    with pytest.raises(_FirstStep) as caught:
        loop.train_and_evaluate(tiny_config, tmp_path / "run")

    variables, images = caught.value.args
    images = images.reshape(-1, 96, 96).astype(np.float32) / 255
    backbone = {name: tree["backbone"] for name, tree in variables.items()}
    n_passes = len(drenet.PASSES)
    network = flax_resnet.ResNet("resnet18", 64, jnp.float32, domains=n_passes)
    with torch.no_grad():
        feature_map, pooled = resnet18.features(_to_torch(images))
    assert images.std() > 0.05
    for domain in range(n_passes):
        apply = functools.partial(network.apply, train=False, domain=domain)
        outputs = jax.jit(apply)(backbone, normalise(images))
        for ours, theirs in zip(outputs, (feature_map.permute(0, 2, 3, 1), pooled), strict=True):
            error = np.abs(np.asarray(ours) - theirs.numpy()).max()
            assert error <= 1e-4 * theirs.abs().max()


def test_a_backbone_is_not_taken_for_a_model_that_predicts(converted, phantoms, tmp_path, command):
    with pytest.raises(InputError, match=r"holds only the backbone .*--config\.init\.weights"):
        drenet_jax.load(converted[0])
    flags = [f"--workdir={converted[0]}", f"--out={tmp_path / 'out'}"]
    done = command("predict", f"--input={phantoms / 'dicom'}", *flags)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not os.listdir(tmp_path)


def _small(name: str):
    """A config of a whole model with a narrow ResNet18; all anchors and all passes."""
    config = importlib.import_module(f"drenet_jax.configs.{name}").get_config()
    config.model.backbone = "resnet18"
    config.model.width = 8
    config.model.head_features = 16
    config.model.crop_size_px = 64
    return config


def _reference(name: str) -> torch_nts.NTSNet:
    groups = {"nts_net": torch_nts.NTS_GROUPS, "drenet_authors": torch_nts.AUTHORS_GROUPS}[name]
    sizes = {"architecture": "resnet18", "width": 8, "head_features": 16, "crop_px": 64}
    return torch_nts.NTSNet(groups, name == "drenet_authors", 2, **sizes)


@pytest.fixture(scope="module")
def authors(tmp_path_factory) -> tuple[torch_nts.NTSNet, Path]:
    """The authors' model, narrow, and its `model.ckpt`."""
    random = np.random.default_rng(0)
    reference = randomise(_reference("drenet_authors"), _to_torch(_slices(random) / 255), seed=3)
    path = tmp_path_factory.mktemp("authors") / "model.ckpt"
    state_dict = {f"module.{name}": tensor for name, tensor in reference.state_dict().items()}
    torch.save({"epoch": 9, "test_acc": np.float64(0.9), "net_state_dict": state_dict}, path)
    return reference, path


def _slices(random: np.random.Generator) -> np.ndarray:
    """[2, 448, 448] uint8: patches under noise."""
    patches = np.kron(random.random((2, 14, 14)), np.ones((1, 32, 32)))
    noisy = 0.7 * patches + 0.3 * random.random((2, 448, 448))
    return np.round(noisy * 255).astype(np.uint8)


def test_a_converted_whole_model_predicts_as_pytorch_does(authors, tmp_path):
    reference, path = authors
    done = convert_weights.convert(
        path, "drenet_authors", tmp_path, labels=["ill", "well"], config=_small("drenet_authors")
    )
    assert done.can_predict
    assert not done.left_out

    pipeline = drenet_jax.load(tmp_path)
    assert pipeline.predictor.meta.labels == ("ill", "well")
    assert pipeline.predictor.meta.ct.image_size_px == 448
    images = _slices(np.random.default_rng(1))
    predicted = pipeline.slices(images)
    with torch.no_grad():
        expected = reference.eval()(_to_torch(images.astype(np.float32) / 255))
    np.testing.assert_array_equal(predicted["boxes"], expected.boxes)
    for name in ("logits", "raw_logits", "scores"):
        theirs = getattr(expected, name).numpy()
        assert np.abs(predicted[name] - theirs).max() <= 1e-3 * np.abs(theirs).max(), name


def test_a_whole_model_without_its_heads_is_a_start_only(authors, tmp_path):
    _, path = authors
    done = convert_weights.convert(
        path,
        "drenet_authors",
        tmp_path,
        labels=["a", "b", "c"],
        skip_head=True,
        config=_small("drenet_authors"),
    )
    assert not done.can_predict
    assert "concat_net.weight" in done.left_out
    assert len(done.left_out) == 6
    with pytest.raises(InputError, match="holds only the backbone and the proposal_head"):
        drenet_jax.load(tmp_path)


def test_class_heads_for_other_classes_are_refused_unless_left_out(authors, tmp_path):
    _, path = authors
    with pytest.raises(InputError, match=r"concat_net\.bias has shape \(2,\) .* --skip_head"):
        convert_weights.convert(
            path,
            "drenet_authors",
            tmp_path,
            labels=["a", "b", "c"],
            config=_small("drenet_authors"),
        )
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "labels", "message"),
    [
        ("resnet18", ["a", "b"], "--labels=a,b: a resnet18 comes without classes"),
        ("nts_net", [], "--labels must name the classes of a nts_net"),
        ("nts_net", ["a", "a"], "--labels=a,a names a class twice"),
        ("nts_net", ["a", ""], "--labels=a, names a class twice or not at all"),
    ],
)
def test_labels_that_do_not_fit_are_refused(architecture, labels, message, imagenet, tmp_path):
    with pytest.raises(InputError, match=message):
        convert_weights.convert(imagenet, architecture, tmp_path, labels=labels)
    assert not os.listdir(tmp_path)


def _evil(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


def _cut(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    path.write_bytes(path.read_bytes()[:-1000])


def _incomplete(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)


@pytest.mark.parametrize(
    ("write", "flags", "message"),
    [
        (_evil, ["--arch=resnet18"], "weights.pth was refused"),
        (_cut, ["--arch=resnet18"], "weights.pth is damaged"),
        (_incomplete, ["--arch=resnet18"], "bn1.weight is missing"),
        (_incomplete, ["--arch=resnet19"], "resnet18|resnet34|resnet50"),
        (_incomplete, [], "--arch"),
    ],
)
def test_the_command_refuses_in_one_sentence_and_leaves_nothing(
    write, flags, message, tmp_path, command
):
    write(tmp_path / "weights.pth")
    done = command(
        "convert_weights",
        f"--input={tmp_path / 'weights.pth'}",
        f"--out={tmp_path / 'new' / 'out'}",
        *flags,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert os.listdir(tmp_path) == ["weights.pth"]


def test_help_shows_examples(command):
    done = command("convert_weights", "--help")
    assert done.returncode == 0
    assert "python -m drenet_jax.convert_weights" in done.stdout
