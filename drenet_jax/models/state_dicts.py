"""PyTorch's files of weights as NumPy arrays."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from drenet_jax.errors import InputError

_TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")
_WRAPPERS = ("net_state_dict", "state_dict", "model")

_SAFETENSORS_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}

_HOW_TO_SAVE = "give what torch.save(network.state_dict(), ...) wrote"


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of PyTorch weights by their names.

    A state dict inside a dictionary (`net_state_dict`, `state_dict`, `model`) is taken out of it,
    the prefix `module.` of DataParallel is removed, and counters of batches are dropped.

    Args:
      path: a `.safetensors` file, for which PyTorch is not needed, or a `.pth`, `.pt` or `.ckpt`
        file, of which arrays and plain values alone are loaded: a pickle can run code.

    Returns:
      float32 arrays, in PyTorch's layout.

    Raises:
      InputError: there is no such file, it is damaged, holds something else than arrays, or needs
        a package that is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *_TORCH_SUFFIXES):
        raise InputError(
            f"{path} is no file of weights that can be read; give one that ends in .safetensors, "
            f"{', '.join(_TORCH_SUFFIXES[:-1])} or {_TORCH_SUFFIXES[-1]}."
        )
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file; name a file of weights.")
    arrays = _read_safetensors(path) if suffix == ".safetensors" else _read_torch(path)
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    arrays = {name: array for name, array in arrays.items() if not is_counter(name)}
    if not arrays:
        raise InputError(f"{path} holds no arrays; {_HOW_TO_SAVE}.")
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError as error:
        raise InputError(
            f"{path} needs the package safetensors; install it by pip install safetensors."
        ) from error
    try:
        # Not safetensors.numpy, which does not know bfloat16. The order differs from call to call.
        entries = sorted(deserialize(path.read_bytes()), key=lambda entry: entry[0])
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or cut off ({error}); fetch it again.") from error
    unknown = sorted({entry["dtype"] for _, entry in entries} - _SAFETENSORS_TYPES.keys())
    if unknown:
        raise InputError(
            f"{path} holds arrays of the types {', '.join(unknown)}; give weights in float32, "
            "float16 or bfloat16."
        )
    return {
        name: np.frombuffer(entry["data"], _SAFETENSORS_TYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in entries
    }


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path} needs PyTorch to be read; install the extra `convert` by "
            "pip install 'drenet_jax[convert]', or give a .safetensors file."
        ) from error
    # A metric of the validation is often kept beside the weights. NumPy 2 renamed the module.
    scalar = np.float64().__reduce__()[0]
    numpy_scalars: list[Any] = [
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)),
    ]
    try:
        with torch.serialization.safe_globals(numpy_scalars), warnings.catch_warnings():
            # Of what is refused right after.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's unpickler fails on a damaged file in whatever way the bytes have it.
        raise InputError(f"{path} {_why_unread(error)}.") from error
    state_dict = _unwrapped(content)
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in state_dict.items()
    ):
        raise InputError(f"{path} is no state dict (names with their arrays); {_HOW_TO_SAVE}.")
    floats = {
        # NumPy has no bfloat16 of its own.
        name: tensor.detach().float() if tensor.is_floating_point() else tensor
        for name, tensor in state_dict.items()
    }
    return {name: tensor.numpy() for name, tensor in floats.items()}


def _unwrapped(content: object) -> object:
    if isinstance(content, Mapping):
        for name in _WRAPPERS:
            if isinstance(content.get(name), Mapping):
                return content[name]
    return content


def _why_unread(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        # The end of a file may be missing in the middle of a name.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {named[1]}" if named else "is a pickle of something else than arrays"
        return f"was refused, since it {what}, which may run code, or is damaged; {_HOW_TO_SAVE}"
    if "TorchScript" in str(error):
        return f"is a TorchScript program; {_HOW_TO_SAVE}"
    return "is damaged or cut off; fetch it again"


def is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"
