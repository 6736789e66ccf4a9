"""Weights of others: what is read, what is refused and why, and where the arrays go."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch, which writes the files, is not installed")
safetensors_torch = pytest.importorskip(
    "safetensors.torch", reason="safetensors, which writes the files, is not installed"
)

from oracles import torch_nts  # noqa: E402
from oracles.torch_densenet import DenseNet  # noqa: E402
from oracles.torch_resnet import ResNet  # noqa: E402

from drenet_jax.errors import InputError  # noqa: E402
from drenet_jax.models.build import build_model, variable_shapes  # noqa: E402
from drenet_jax.models.checkpoint_metadata import BackboneMeta, Meta  # noqa: E402
from drenet_jax.models.checkpoints import Checkpoints, save_converted  # noqa: E402
from drenet_jax.models.pretrained import (  # noqa: E402
    class_head_names,
    to_flax,
    whole_model_to_flax,
)
from drenet_jax.models.state_dicts import read_state_dict  # noqa: E402
from drenet_jax.models.warm_start import start_from  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.0, -2.0])}


def _arrays(network) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def _drawn(model, seed: int) -> dict:
    """Variables of a model, without the time that compiling their initialisers takes."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda one: random.normal(size=one.shape).astype(np.float32), variable_shapes(model)
    )


def _assert_small(found):
    assert found.keys() == SMALL.keys()
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, SMALL[name].numpy())


def _assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def resnet18():
    return _arrays(ResNet("resnet18"))


@pytest.fixture(scope="module")
def densenet121():
    return _arrays(DenseNet())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_arrays_of_any_float_type_become_float32(dtype, suffix, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    save = torch.save if suffix == "pth" else safetensors_torch.save_file
    save({name: tensor.to(dtype) for name, tensor in SMALL.items()}, path)
    _assert_small(read_state_dict(path))


@pytest.mark.parametrize("wrapper", [None, "net_state_dict", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt"])
def test_wrappers_prefixes_and_counters_are_taken_off(wrapper, prefix, suffix, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    state_dict = {prefix + name: torch.nn.Parameter(tensor) for name, tensor in SMALL.items()}
    state_dict[f"{prefix}bn.num_batches_tracked"] = torch.tensor(7)
    # Figures beside the weights, as NumPy gives them.
    figures = {"epoch": 3, "test_acc": np.float64(0.5), "best": np.bool_(True)}
    torch.save(state_dict if wrapper is None else {**figures, wrapper: state_dict}, path)
    _assert_small(read_state_dict(path))


def test_a_module_that_is_called_module_in_part_of_the_names_keeps_its_name(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"module.w": torch.ones(1), "w": torch.zeros(1)}, path)
    assert read_state_dict(path).keys() == {"module.w", "w"}


def test_files_of_old_pytorch_are_read(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(SMALL, path, _use_new_zipfile_serialization=False)
    _assert_small(read_state_dict(path))


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["new", "old", "pickle"])
def test_a_pickle_with_code_is_refused_and_does_not_run(how, tmp_path):
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    content = {**SMALL, "evil": _Evil(touched)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content["evil"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "new")
    with pytest.raises(
        InputError, match=r"weights\.pth was refused, since .* may run code"
    ) as caught:
        read_state_dict(path)
    assert "torch.save(network.state_dict(), ...)" in str(caught.value)
    assert not touched.exists()


def test_a_pickled_network_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "network.pth")
    with pytest.raises(InputError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(tmp_path / "network.pth")


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    torch.save(SMALL, folder / "new.pth")
    torch.save(SMALL, folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors_torch.save_file(SMALL, folder / "new.safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_truncated_file_is_refused_wherever_it_ends(whole_files, tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(whole_files)))
    content = whole_files[name]
    path = tmp_path_factory.getbasetemp() / f"cut_{name}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(InputError, match="damaged") as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors"])
def test_a_text_file_is_refused(name, tmp_path):
    (tmp_path / name).write_text("These are no weights.\n" * 30)
    with pytest.raises(InputError, match="damaged"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.ones(2)}, torch.ones(3)])
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="is no state dict"):
        read_state_dict(tmp_path / "weights.pth")


def test_a_file_without_arrays_is_refused(tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="holds no arrays"):
        read_state_dict(tmp_path / "weights.pth")


def test_quantised_weights_are_refused_by_their_type(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors_torch.save_file({"w": torch.ones(2, dtype=torch.int8)}, path)
    with pytest.raises(InputError, match="types I8"):
        read_state_dict(path)


def test_a_file_that_is_not_there_or_has_another_ending_is_reported(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_state_dict(tmp_path / "gone.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(InputError, match="is no file"):
        read_state_dict(tmp_path / "folder.pth")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(InputError, match=r"\.safetensors, \.pth, \.pt or \.ckpt"):
        read_state_dict(tmp_path / "weights.h5")


def test_without_pytorch_the_extra_is_named_and_safetensors_are_read(tmp_path):
    torch.save(SMALL, tmp_path / "weights.pth")
    safetensors_torch.save_file(SMALL, tmp_path / "weights.safetensors")
    code = (
        "import pathlib, sys\n"
        "sys.modules['torch'] = None  # an import of it fails\n"
        "from drenet_jax.errors import InputError\n"
        "from drenet_jax.models.state_dicts import read_state_dict\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "print(sorted(read_state_dict(folder / 'weights.safetensors')))\n"
        "try:\n"
        "    read_state_dict(folder / 'weights.pth')\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    read, hint = done.stdout.splitlines()
    assert read == "['b', 'w']"
    assert "pip install 'drenet_jax[convert]'" in hint


def test_all_that_does_not_fit_is_reported_by_name_in_one_message(resnet18):
    faulty = dict(resnet18)
    del faulty["layer2.0.downsample.0.weight"], faulty["bn1.running_var"]
    faulty["layer5.0.conv1.weight"] = np.zeros((2, 2), np.float32)
    faulty["conv1.weight"] = np.zeros((64, 1, 7, 7), np.float32)
    with pytest.raises(InputError) as caught:
        to_flax(faulty, "resnet18", source="mine.pth")
    said = str(caught.value)
    assert said.startswith("mine.pth does not fit")
    assert "layer2.0.downsample.0.weight is missing" in said
    assert "bn1.running_var is missing" in said
    assert "layer5.0.conv1.weight is not expected" in said
    assert "conv1.weight has shape (64, 1, 7, 7) instead of (64, 3, 7, 7)" in said
    assert said.count(";") == 4


def test_weights_of_another_architecture_are_recognised(resnet18):
    with pytest.raises(InputError, match="those of resnet18: give --arch=resnet18"):
        to_flax(resnet18, "resnet34")
    whole = {f"pretrained_model.{name}": array for name, array in resnet18.items()}
    with pytest.raises(InputError, match="whole model: give --arch=nts_net or drenet_authors"):
        to_flax(whole, "resnet18")


def test_an_array_that_is_there_by_two_names_is_reported(resnet18):
    twice = resnet18 | {"backbone.conv1.weight": resnet18["conv1.weight"]}
    with pytest.raises(InputError, match=r"conv1\.weight twice, once as backbone\.conv1\.weight"):
        to_flax(twice, "resnet18")


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_names_of_a_sequential_of_a_resnets_children_are_known(prefix, tmp_path):
    network = ResNet("resnet50")
    expected = to_flax(_arrays(network), "resnet50")
    children = torch.nn.Sequential(
        *(network.conv1, network.bn1, torch.nn.ReLU(), network.maxpool),
        *(network.layer1, network.layer2, network.layer3, network.layer4),
    )
    named = {prefix + name: array for name, array in _arrays(children).items()}
    assert f"{prefix}4.0.conv1.weight" in named
    _assert_same(to_flax(named, "resnet50"), expected)
    assert not class_head_names(named, "resnet50")


def test_old_names_of_densenets_layers_are_known(densenet121):
    old = {}
    for name, array in densenet121.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = array
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    _assert_same(to_flax(old, "densenet121"), to_flax(densenet121, "densenet121"))


def _vgg16(names: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Arrays without memory: VGG16's take half a gigabyte."""
    shapes = dict(names)
    sizes = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for number, channels_in, channels in zip(numbers, (3, *sizes), sizes, strict=False):
        shapes[f"features.{number}.weight"] = (channels, channels_in, 3, 3)
        shapes[f"features.{number}.bias"] = (channels,)
    return {
        name: np.broadcast_to(np.float32(i), shape)
        for i, (name, shape) in enumerate(sorted(shapes.items(), key=lambda one: one[0]))
    }


def test_timms_names_of_vggs_hidden_layers_are_known():
    timm = _vgg16(
        {
            "pre_logits.fc1.weight": (4096, 512, 7, 7),
            "pre_logits.fc1.bias": (4096,),
            "pre_logits.fc2.weight": (4096, 4096, 1, 1),
            "pre_logits.fc2.bias": (4096,),
            "head.fc.weight": (1000, 4096),
            "head.fc.bias": (1000,),
        }
    )
    variables = to_flax(timm, "vgg16")
    assert variables["batch_stats"] == {}
    params = variables["params"]
    for ours, theirs in (("classifier_0", "fc1"), ("classifier_3", "fc2")):
        assert params[ours]["kernel"][0, 0] == timm[f"pre_logits.{theirs}.weight"].flat[0]
        assert params[ours]["bias"][0] == timm[f"pre_logits.{theirs}.bias"][0]
    assert set(class_head_names(timm, "vgg16")) == {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize(
    ("architecture", "names", "heads"),
    [
        ("resnet50", ["fc.weight", "fc.bias", "conv1.weight"], 2),
        ("resnet50", ["backbone.9.weight", "backbone.0.weight"], 1),
        ("densenet121", ["classifier.weight", "features.norm5.weight"], 1),
        ("vgg16", ["classifier.6.weight", "classifier.6.bias", "classifier.3.bias"], 2),
        ("nts_net", ["concat_net.bias", "partcls_net.bias", "proposal_net.down1.bias"], 2),
        ("drenet_authors", ["pretrained_model.fc.bias", "pretrained_model.conv1.weight"], 1),
    ],
)
def test_class_heads_are_known_by_name(architecture, names, heads):
    state_dict = dict.fromkeys(names, np.zeros(1))
    assert class_head_names(state_dict, architecture) == tuple(names[:heads])


@pytest.fixture(scope="module")
def nts_config():
    """`configs/nts_net.py` with a narrow ResNet18."""
    config = importlib.import_module("drenet_jax.configs.nts_net").get_config()
    config.model.backbone = "resnet18"
    config.model.width = 4
    config.model.head_features = 8
    return config


@pytest.fixture(scope="module")
def nts_net():
    return _arrays(torch_nts.NTSNet(classes=5, architecture="resnet18", width=4, head_features=8))


def test_a_whole_model_fills_all_variables(nts_net, nts_config):
    variables = whole_model_to_flax(nts_net, nts_config, classes=5)
    shapes = variable_shapes(build_model(nts_config, 5))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda x: x.shape, shapes)
    np.testing.assert_array_equal(
        variables["params"]["concat_head"]["kernel"], nts_net["concat_net.weight"].T
    )


def test_class_heads_of_another_size_are_left_out_only_when_asked(nts_net, nts_config):
    with pytest.raises(InputError) as caught:
        whole_model_to_flax(nts_net, nts_config, classes=2)
    said = str(caught.value)
    for name in class_head_names(nts_net, "nts_net"):
        assert f"{name} has shape" in said
    assert "for 5 classes and not 2" in said
    assert "--skip_head" in said

    variables = whole_model_to_flax(nts_net, nts_config, classes=2, skip_head=True)
    assert variables["params"].keys() == {"backbone", "proposal_head"}


def test_a_whole_model_that_does_not_fit_is_reported_by_pytorchs_names(nts_net, nts_config):
    faulty = nts_net | {"proposal_net.down4.bias": np.zeros(3, np.float32)}
    del faulty["concat_net.bias"], faulty["partcls_net.bias"]
    faulty["proposal_net.tidy3.weight"] = np.zeros((6, 8, 1, 1), np.float32)
    with pytest.raises(InputError) as caught:
        whole_model_to_flax(faulty, nts_config)
    said = str(caught.value)
    assert "concat_net.bias is missing; partcls_net.bias is missing" in said
    assert "proposal_net.down4.bias is not expected" in said
    assert "proposal_net.tidy3.weight has shape (6, 8, 1, 1) instead of (9, 8, 1, 1)" in said


@pytest.fixture
def part(tmp_path, tiny_config):
    """A folder with the backbone of `tiny_config`'s model, and that backbone's variables."""
    config = tiny_config.copy_and_resolve_references()
    config.model.batch_statistics = "shared"  # a converted backbone has one set
    variables = _drawn(build_model(config, 2), 9)
    weights = {name: {"backbone": tree["backbone"]} for name, tree in variables.items()}
    save_converted(
        tmp_path / "part", weights, BackboneMeta("resnet18", 4, ("backbone",), "r.pth", "0.1.0")
    )
    return tmp_path / "part", weights


def test_a_backbone_goes_into_its_place_and_the_rest_stays_as_drawn(part, tiny_config):
    folder, weights = part
    model = build_model(tiny_config, 3)
    drawn = _drawn(model, 0)
    found = start_from(folder, model, drawn, ("a", "b", "c"))
    _assert_same(found["params"]["backbone"], weights["params"]["backbone"])
    of_image = jax.tree.map(lambda x: x[0], found["batch_stats"])
    _assert_same(of_image, weights["batch_stats"])
    rest, expected = (
        {name: tree for name, tree in one["params"].items() if name != "backbone"}
        for one in (found, drawn)
    )
    _assert_same(rest, expected)


def test_a_whole_model_with_one_set_of_statistics_is_the_start_of_every_pass(
    tiny_config, ct_settings, tmp_path
):
    labels, settings = ("a", "b"), dataclasses.replace(ct_settings, image_size_px=96)
    weights = {}
    for kind in ("shared", "per_pass"):
        tiny_config.model.batch_statistics = kind
        weights[kind] = _drawn(build_model(tiny_config, 2), 1)
        meta = Meta(tiny_config.copy_and_resolve_references(), labels, settings, 0, "", "0.1.0")
        save_converted(tmp_path / kind, weights[kind], meta)
    model = build_model(tiny_config, 2)
    found = start_from(tmp_path / "shared", model, _drawn(model, 2), labels)
    _assert_same(found["params"], weights["shared"]["params"])
    for i in range(3):
        _assert_same(
            jax.tree.map(lambda x, i=i: x[i], found["batch_stats"]),
            weights["shared"]["batch_stats"],
        )
    _assert_same(start_from(tmp_path / "per_pass", model, _drawn(model, 2), labels), weights[kind])

    tiny_config.model.batch_statistics = "shared"
    model = build_model(tiny_config, 2)
    assert all(
        len(leaf.shape) == 1 for leaf in jax.tree.leaves(variable_shapes(model)["batch_stats"])
    )
    with pytest.raises(InputError, match=r"per pass; set --config.model.batch_statistics=per_pass"):
        start_from(tmp_path / "per_pass", model, _drawn(model, 2), labels)


def test_statistics_of_every_pass_start_from_those_of_the_backbone(
    part, tiny_config, ct_settings, tmp_path
):
    tiny_config.model.batch_statistics = "per_pass"
    folder, weights = part
    model = build_model(tiny_config, 3)
    found = start_from(folder, model, _drawn(model, 0), ("a", "b", "c"))["batch_stats"]
    for i in range(3):
        _assert_same(
            jax.tree.map(lambda x, i=i: x[i], found["backbone"]), weights["batch_stats"]["backbone"]
        )
    # Of a model that has its own of each pass, each goes on with its own; another takes the first.
    theirs = _drawn(build_model(tiny_config, 2), 5)
    settings = dataclasses.replace(ct_settings, image_size_px=96)
    save_converted(tmp_path, theirs, Meta(tiny_config, ("a", "b"), settings, 0, "", "0.1.0"))
    for kind in ("per_pass", "shared"):
        tiny_config.model.batch_statistics = kind
        model = build_model(tiny_config, 3)
        drawn = _drawn(model, 0)
        found = start_from(tmp_path, model, drawn, ("a", "b", "c"), parts="backbone")
        assert jax.tree.structure(found) == jax.tree.structure(drawn)
        expected = theirs["batch_stats"]["backbone"]
        if kind == "shared":
            expected = jax.tree.map(lambda x: x[0], expected)
        _assert_same(found["batch_stats"]["backbone"], expected)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("backbone", "resnet34", "--config.model.backbone=resnet34 and --config.model.width=4"),
        ("width", 8, "--config.model.backbone=resnet18 and --config.model.width=8"),
    ],
)
def test_a_backbone_of_another_kind_is_reported_by_the_fields_of_the_config(
    field, value, said, part, tiny_config
):
    tiny_config.model[field] = value
    model = build_model(tiny_config, 2)
    with pytest.raises(InputError, match="is of a resnet18 of width 4, but ") as caught:
        start_from(part[0], model, variable_shapes(model), ("a", "b"))
    assert f"--config.init.weights={part[0]} " in str(caught.value)
    assert said in str(caught.value)


def test_a_rival_without_batch_norm_starts_from_a_backbone(tmp_path):
    config = ml_collections.ConfigDict()
    config.model = {
        "name": "vgg16",
        "width": 2,
        "image_size_px": 32,
        "dropout": 0.0,
        "dtype": "float32",
    }
    config.train = {"frozen_stages": 0}
    model = build_model(config, 2)
    first, second = _drawn(model, 1), _drawn(model, 2)
    weights = {"params": {"backbone": first["params"]["backbone"]}, "batch_stats": {}}
    save_converted(tmp_path, weights, BackboneMeta("vgg16", 2, ("backbone",), "v.pth", "0.1.0"))
    found = start_from(tmp_path, model, second, ("a", "b"))
    _assert_same(found["params"]["backbone"], first["params"]["backbone"])
    _assert_same(found["params"]["head"], second["params"]["head"])
    assert found["batch_stats"] == {}

    config.model.name = "resnet18"
    model = build_model(config, 2)
    with pytest.raises(InputError, match=r"of a vgg16 .* --config.model.name=resnet18 and"):
        start_from(tmp_path, model, variable_shapes(model), ("a", "b"))


def test_a_proposal_head_that_the_model_lacks_is_reported(part, tiny_config, tmp_path):
    weights = _drawn(build_model(tiny_config, 2), 9)
    weights["params"] = {name: weights["params"][name] for name in ("backbone", "proposal_head")}
    meta = BackboneMeta("resnet18", 4, ("backbone", "proposal_head"), "r.pth", "0.1.0")
    save_converted(tmp_path / "two", weights, meta)
    tiny_config.model.anchor_strides_px = (32,)
    for field in ("sizes_px", "scales", "aspect_ratios", "groups"):
        name = f"anchor_{field}"
        tiny_config.model[name] = tiny_config.model[name][:1]
    model = build_model(tiny_config, 2)
    with pytest.raises(InputError, match=r"proposal_head/down2/bias is not expected"):
        start_from(tmp_path / "two", model, variable_shapes(model), ("a", "b"))


def test_a_whole_model_is_taken_whole_if_its_labels_are_those_of_the_data(
    tiny_config, ct_settings, tmp_path
):
    model = build_model(tiny_config, 2)
    weights, drawn = _drawn(model, 1), _drawn(model, 2)
    settings = dataclasses.replace(ct_settings, image_size_px=96)
    save_converted(tmp_path, weights, Meta(tiny_config, ("a", "b"), settings, 0, "", "0.1.0"))
    _assert_same(start_from(tmp_path, model, drawn, ("a", "b")), weights)
    with pytest.raises(InputError, match=r"the labels a, b, the data have b, a; .*--labels=a,b"):
        start_from(tmp_path, model, drawn, ("b", "a"))


def test_parts_of_a_model_are_no_model(part):
    with (
        Checkpoints.of(part[0], flag="--workdir") as checkpoints,
        pytest.raises(InputError, match=r"holds only the backbone of a model .*resnet18 of r.pth"),
    ):
        checkpoints.meta(checkpoints.best_step)


def test_a_folder_without_weights_is_reported(tiny_config, tmp_path):
    model = build_model(tiny_config, 2)
    with pytest.raises(InputError, match=r"--config.init.weights=.* holds no checkpoint"):
        start_from(tmp_path, model, variable_shapes(model), ("a", "b"))
    assert not os.listdir(tmp_path)
