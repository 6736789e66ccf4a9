"""Converts published PyTorch weights to a checkpoint for `--config.init.weights`.

--input is a .safetensors file, or a .pth, .pt or .ckpt file, for which PyTorch must be installed
(`pip install 'drenet_jax[convert]'`). A backbone (ImageNet weights of torchvision or timm,
RadImageNet's ResNet50) loses its class head. NTS-Net and the authors' DRENet keep theirs, so that
`predict` takes the folder too; --labels names their classes.

Examples:

  python -m drenet_jax.convert_weights --input=resnet50.safetensors --arch=resnet50 \\
      --out=weights/imagenet
  python -m drenet_jax.convert_weights --input=model.ckpt --arch=drenet_authors \\
      --labels=COVID-19,healthy --out=weights/authors
  python -m drenet_jax.convert_weights --input=birds.ckpt --arch=nts_net --skip_head \\
      --out=weights/birds
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from drenet_jax import cli
from drenet_jax.ct.settings import CtSettings
from drenet_jax.errors import InputError
from drenet_jax.output_files import new_folder
from drenet_jax.storage import stand_ins
from drenet_jax.version import __version__

# `registry.BACKBONES` and `pretrained.WHOLE_MODELS`, here too so that --help need not wait for JAX.
ARCHITECTURES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "vgg16",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
    "nts_net",
    "drenet_authors",
)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The outcome of a conversion."""

    n_arrays: int  # converted
    left_out: tuple[str, ...]  # names of the class heads' arrays
    can_predict: bool


def define_flags() -> None:
    flags.DEFINE_string("input", None, "The file of weights.")
    flags.DEFINE_enum("arch", None, ARCHITECTURES, "The architecture of the weights.")
    flags.DEFINE_string("out", None, "The folder to make. It must not exist yet.")
    flags.DEFINE_list(
        "labels", [], "Names of the classes of nts_net or drenet_authors, in their order."
    )
    flags.DEFINE_bool(
        "skip_head", False, "Leave out the class heads. Those of backbones are always left out."
    )


def main() -> None:
    values = flags.FLAGS
    out = Path(values.out)
    with new_folder(out) as folder:
        done = convert(
            Path(values.input),
            values.arch,
            folder,
            labels=values.labels,
            skip_head=values.skip_head,
        )
    shown = stand_ins.shown(out)
    print(
        f"{values.arch}: {done.n_arrays} arrays of {stand_ins.shown(values.input)} are in {shown}"
    )
    if done.left_out:
        print(f"left out, as class heads: {', '.join(done.left_out)}")
    if done.left_out and values.labels:
        print("left out, as there are no class heads: the labels; train takes those of its data")
    print("train from these weights:")
    print(
        f"  python -m drenet_jax.train {_config_flags(values.arch)} --config.init.weights={shown} "
        "--config.data.dir=DATA --workdir=RUN"
    )
    if done.can_predict:
        print("or predict with them:")
        print(f"  python -m drenet_jax.predict --workdir={shown} --input=PERSON --out=RESULT")


def convert(
    source: Path,
    architecture: str,
    folder: Path,
    *,
    labels: Sequence[str] = (),
    skip_head: bool = False,
    config=None,
) -> Conversion:
    """Reads PyTorch weights and writes them as a checkpoint of drenet_jax.

    Args:
      source: see `state_dicts.read_state_dict`.
      architecture: one of `ARCHITECTURES`.
      folder: an existing folder, which becomes one for `config.init.weights`, and one for `predict`
        if the model is whole and keeps its class heads.
      labels: names of a whole model's classes, in order; empty for a backbone, and not kept with
        `skip_head`.
      skip_head: leave out the class heads of a whole model.
      config: of a whole model; None: `configs/<architecture>.py`.

    Raises:
      InputError: the file cannot be read, does not fit the architecture, or the labels do not fit.
    """
    # Imported here: --help and mistyped flags need not wait for JAX.
    import jax

    from drenet_jax.models import pretrained, state_dicts
    from drenet_jax.models.backbones.registry import BACKBONES
    from drenet_jax.models.checkpoint_metadata import BackboneMeta, Meta
    from drenet_jax.models.checkpoints import save_converted

    whole = architecture in pretrained.WHOLE_MODELS
    keeps_heads = whole and not skip_head
    _check_labels(labels, architecture, whole, keeps_heads)
    state_dict = state_dicts.read_state_dict(source)
    heads = pretrained.class_head_names(state_dict, architecture)
    if whole:
        config = _config(architecture) if config is None else config
        weights = pretrained.whole_model_to_flax(
            state_dict,
            config,
            classes=len(labels) if keeps_heads else None,
            skip_head=skip_head,
            source=str(source),
        )
        backbone, width = config.model.backbone, config.model.width
    else:
        flax = pretrained.to_flax(state_dict, architecture, source=str(source))
        # VGG has no batch statistics.
        weights = {
            collection: {"backbone": tree} if tree else {} for collection, tree in flax.items()
        }
        backbone, width = architecture, BACKBONES[architecture].published_width
    if keeps_heads:
        settings = CtSettings.from_dict(_config("prepare").to_dict())
        meta: Meta | BackboneMeta = Meta(
            config=config.copy_and_resolve_references(),
            labels=tuple(labels),
            ct=dataclasses.replace(settings, image_size_px=config.model.image_size_px),
            fill_seed=0,
            data_fingerprint="",
            version=__version__,
        )
    else:
        meta = BackboneMeta(
            architecture=backbone,
            width=width,
            parts=tuple(weights["params"]),
            source=source.name,
            version=__version__,
        )
    save_converted(folder, weights, meta)
    return Conversion(
        n_arrays=len(jax.tree.leaves(weights)),
        left_out=() if keeps_heads else heads,
        can_predict=keeps_heads,
    )


def _check_labels(labels: Sequence[str], architecture: str, whole: bool, keeps_heads: bool) -> None:
    flag = f"--labels={','.join(labels)}"
    if labels and not whole:
        raise InputError(
            f"{flag}: a {architecture} comes without classes; leave --labels out, training takes "
            "those of its data."
        )
    if len(set(labels)) < len(labels) or not all(labels):
        raise InputError(f"{flag} names a class twice or not at all; name each once.")
    if keeps_heads and not labels:
        raise InputError(
            f"--labels must name the classes of a {architecture}, in their order, as in "
            "--labels=COVID-19,healthy; or leave its class heads out with --skip_head."
        )


def _config(name: str):
    return importlib.import_module(f"drenet_jax.configs.{name}").get_config()


def _config_flags(architecture: str) -> str:
    """The flags with which `train` builds a model that takes these weights."""
    if architecture.startswith("resnet"):
        backbone = "" if architecture == "resnet50" else f" --config.model.backbone={architecture}"
        return f"--config=configs/drenet.py{backbone}"
    if architecture.startswith("efficientnet_lite"):
        return f"--config=configs/drenet_lite.py --config.model.backbone={architecture}"
    return f"--config=configs/{architecture}.py"


if __name__ == "__main__":
    cli.run(
        main,
        define_flags,
        __doc__,
        required=("input", "arch", "out"),
        places={"input": stand_ins.copied, "out": stand_ins.output},
    )
