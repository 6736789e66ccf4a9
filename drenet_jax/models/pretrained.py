"""Weights that people have: PyTorch's arrays by PyTorch's names, turned into ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from drenet_jax.errors import InputError
from drenet_jax.models import classifier
from drenet_jax.models.backbones import vgg
from drenet_jax.models.backbones.backbone import LEAVES
from drenet_jax.models.backbones.registry import BACKBONES
from drenet_jax.models.build import build_model, variable_shapes
from drenet_jax.models.checkpoint_integrity import check_shapes
from drenet_jax.models.norm import fit_domains, single_domain_shapes
from drenet_jax.models.state_dicts import is_counter

WHOLE_MODELS = ("nts_net", "drenet_authors")

# What may be left out of a whole model: it has as many rows as the classes of its training.
CLASS_HEADS = ("raw_head", "part_head", "concat_head")

# Our part -> the module of NTS-Net and of the authors' code. The class head of the whole image is
# what their ResNet ends with.
_WHOLE_MODEL_PARTS = {
    "backbone": "pretrained_model",
    "proposal_head": "proposal_net",
    "raw_head": "pretrained_model.fc",
    "part_head": "partcls_net",
    "concat_head": "concat_net",
}


def to_flax(
    state_dict: Mapping[str, np.ndarray], architecture: str, *, source: str = "the state dict"
) -> dict[str, Any]:
    """Turns PyTorch's weights of a backbone into ours.

    Names are those of torchvision (the old ones of DenseNet's layers too), of timm, or those of a
    Sequential of a ResNet's children (RadImageNet), also behind `backbone.`. Class heads are left
    out (`class_head_names`).

    Args:
      state_dict: arrays in PyTorch's layout, by name.
      architecture: one of `BACKBONES`.
      source: what to call `state_dict` in messages.

    Returns:
      `{"params", "batch_stats"}` of a backbone of the published width, as NumPy arrays;
      `batch_stats` is empty for VGG.

    Raises:
      InputError: arrays are missing, not expected or have another shape; all are listed by name.
    """
    heads = class_head_names(state_dict, architecture)
    arrays = {
        # timm's hidden layers of a VGG are convolutions that cover the whole plane.
        name: array.reshape(len(array), -1) if "pre_logits." in name and array.ndim == 4 else array
        for name, array in state_dict.items()
        if name not in heads
    }
    variables = _fill(
        _backbone_shapes(architecture),
        arrays,
        torch_name=BACKBONES[architecture].torch_name,
        rename=lambda name: _canonical_name(name, architecture),
        source=source,
        fix=lambda: _other_architecture(state_dict, architecture),
    )
    if architecture in vgg.ARCHITECTURES:
        hidden = variables["params"]["classifier_0"]
        hidden["kernel"] = _channel_last(hidden["kernel"], vgg.POOLED_CELLS)
    return variables


def whole_model_to_flax(
    state_dict: Mapping[str, np.ndarray],
    config: ml_collections.ConfigDict,
    *,
    classes: int | None = None,
    skip_head: bool = False,
    source: str = "the state dict",
) -> dict[str, Any]:
    """Turns a checkpoint of NTS-Net or of the authors' DRENet into variables of our DRENet.

    Args:
      state_dict: arrays in PyTorch's layout: `pretrained_model.*`, `proposal_net.*`,
        `partcls_net.*` and `concat_net.*`.
      config: as in `configs/nts_net.py` or `configs/drenet_authors.py`; its classifier is linear.
      classes: how many there should be; None: as many as the class heads have.
      skip_head: leave out the class heads (`CLASS_HEADS`), whatever their size.
      source: what to call `state_dict` in messages.

    Returns:
      `{"params", "batch_stats"}`, as NumPy arrays.

    Raises:
      InputError: arrays are missing, not expected or have another shape; all are listed by name.
    """
    n_classes = _classes(state_dict)
    model = build_model(config, n_classes if classes is None or skip_head else classes)
    shapes = variable_shapes(model)
    statistics = shapes["batch_stats"]
    shapes = {**shapes, "batch_stats": single_domain_shapes(statistics)}
    arrays = state_dict
    if skip_head:
        shapes = {
            collection: {part: tree[part] for part in tree if part not in CLASS_HEADS}
            for collection, tree in shapes.items()
        }
        heads = class_head_names(state_dict, "nts_net")
        arrays = {name: array for name, array in state_dict.items() if name not in heads}
    fix = "check that --arch names the model that the file holds"
    if not skip_head and n_classes != model.classes:
        fix = (
            f"its class heads are for {n_classes} classes and not {model.classes}: name those, or "
            "leave the heads out with --skip_head"
        )
    variables = _fill(
        shapes,
        arrays,
        torch_name=lambda path: _whole_model_name(config.model.backbone, path),
        rename=lambda name: name,
        source=source,
        fix=lambda: fix,
    )
    # The only statistics are where those of every pass start from.
    return {**variables, "batch_stats": fit_domains(variables["batch_stats"], statistics)}


def class_head_names(state_dict: Mapping[str, np.ndarray], architecture: str) -> tuple[str, ...]:
    """Names in `state_dict` of the arrays that give the classes.

    Args:
      state_dict: arrays by PyTorch's names.
      architecture: one of `BACKBONES` or `WHOLE_MODELS`.
    """
    if architecture in WHOLE_MODELS:
        modules = tuple(_WHOLE_MODEL_PARTS[head] for head in CLASS_HEADS)
    else:
        modules = BACKBONES[architecture].class_heads
    prefixes = tuple(f"{module}." for module in modules)
    return tuple(
        name for name in state_dict if _canonical_name(name, architecture).startswith(prefixes)
    )


def _backbone_shapes(architecture: str) -> dict[str, Any]:
    """Shapes of a published backbone's variables."""
    published = BACKBONES[architecture]
    backbone = published(architecture, published.published_width, jnp.float32)
    network = classifier.Classifier(classes=1, backbone=backbone, image_size_px=64, dropout=0.0)
    return {
        collection: tree.get("backbone", {})
        for collection, tree in variable_shapes(network).items()
    }


def _other_architecture(state_dict: Mapping[str, np.ndarray], architecture: str) -> str:
    """What to do if the arrays do not fit `architecture`."""
    if any(name.startswith("pretrained_model.") for name in state_dict):
        return f"its names are those of a whole model: give --arch={' or '.join(WHOLE_MODELS)}"
    for other in BACKBONES:
        if other == architecture:
            continue
        heads = class_head_names(state_dict, other)
        names = {
            _canonical_name(name, other)
            for name in state_dict
            if name not in heads and not is_counter(name)
        }
        leaves, _ = jax.tree_util.tree_flatten_with_path(_backbone_shapes(other))
        if names == {
            BACKBONES[other].torch_name([key.key for key in path[1:]]) for path, _ in leaves
        }:
            return f"its names are those of {other}: give --arch={other}"
    return f"give weights of {architecture}, or another --arch"


def _classes(state_dict: Mapping[str, np.ndarray]) -> int:
    """The number of classes of a whole model; 1 if its heads are missing (reported later)."""
    biases = (state_dict.get(f"{_WHOLE_MODEL_PARTS[head]}.bias") for head in reversed(CLASS_HEADS))
    return next((len(bias) for bias in biases if bias is not None and bias.ndim), 1)


def _canonical_name(name: str, architecture: str) -> str:
    """The name of which `torch_name` knows for an array that some call `name`."""
    if architecture in WHOLE_MODELS:
        return name
    return BACKBONES[architecture].canonical_name(name.removeprefix("backbone."))


def _whole_model_name(architecture: str, path: Sequence[str]) -> str:
    """NTS-Net's name of a leaf of DRENet's variables."""
    part, *rest = path
    if part == "backbone":
        name = BACKBONES[architecture].torch_name(rest)
    else:
        *modules, leaf = rest
        name = ".".join([*modules, LEAVES[leaf]])
    return f"{_WHOLE_MODEL_PARTS[part]}.{name}"


def _fill(
    shapes: dict[str, Any],
    state_dict: Mapping[str, np.ndarray],
    *,
    torch_name: Callable[[Sequence[str]], str],
    rename: Callable[[str], str],
    source: str,
    fix: Callable[[], str],
) -> dict[str, Any]:
    """The tree of `shapes` with the arrays of `state_dict`.

    Args:
      shapes: `{"params", "batch_stats"}` of what is to be filled.
      state_dict: arrays in PyTorch's layout; all must be of use.
      torch_name: from the path of a leaf below its collection to the array's name.
      rename: from a name in `state_dict` to the one that `torch_name` gives.
      source: what to call `state_dict` in messages.
      fix: returns the advice for an error message.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    names = [torch_name([key.key for key in path[1:]]) for path, _ in leaves]
    wanted = {
        name: jax.ShapeDtypeStruct(_torch_shape(leaf.shape), leaf.dtype)
        for name, (_, leaf) in zip(names, leaves, strict=True)
    }
    arrays: dict[str, np.ndarray] = {}
    for name, array in state_dict.items():
        if is_counter(name):
            continue
        # Unexpected arrays are reported by their original name.
        known = rename(name) if rename(name) in wanted else name
        if known in arrays:
            raise InputError(f"{source} holds {known} twice, once as {name}; {fix()}.")
        arrays[known] = array
    # The advice is made only where it is needed: it may compare names with those of every backbone.
    if {name: array.shape for name, array in arrays.items()} != {
        name: leaf.shape for name, leaf in wanted.items()
    }:
        check_shapes(arrays, wanted, source, fix())
    return jax.tree.unflatten(
        structure,
        [np.asarray(_from_torch(arrays[name]), np.float32) for name in names],
    )


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in PyTorch of a leaf of ours."""
    if len(shape) == 4:
        height, width, channels_in, channels_out = shape
        return channels_out, channels_in, height, width
    return shape[::-1]


def _from_torch(array: np.ndarray) -> np.ndarray:
    """An array in our layout: convolutions [O, I, H, W] -> [H, W, I, O], matrices [O, I] -> [I, O].

    A view where that is possible.
    """
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T


def _channel_last(kernel: np.ndarray, cells: int) -> np.ndarray:
    """The inputs of a VGG's first hidden layer, from the order channel, row, column to row, column,
    channel: [cells² C, O] -> the same."""
    _, n_out = kernel.shape
    by_axis = kernel.reshape(-1, cells, cells, n_out)
    return by_axis.transpose(1, 2, 0, 3).reshape(-1, n_out)
