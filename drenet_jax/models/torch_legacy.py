"""State dicts as PyTorch before 1.6 wrote them, read without PyTorch, which is a large package."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from drenet_jax.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

# What else Python's unpickler raises.
_OF_DAMAGED_PICKLES = (
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
)

Ints = tuple[int, ...]

# PyTorch's storages; a file is little-endian.
_TYPES = {
    ("torch", "DoubleStorage"): "<f8",
    ("torch", "FloatStorage"): "<f4",
    ("torch", "HalfStorage"): "<f2",
    ("torch", "LongStorage"): "<i8",
    ("torch", "IntStorage"): "<i4",
}


def read_legacy_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state dict by their names.

    The file is a pickle, of which only tensors in an ordered dictionary are made: no code runs.

    Raises:
      InputError: the file is cut off, or holds something else.
    """
    try:
        with path.open("rb") as file:
            if pickle.load(file) != _MAGIC or pickle.load(file) != _PROTOCOL:
                raise pickle.UnpicklingError("no PyTorch file of this kind")
            pickle.load(file)  # sizes and byte order of the machine
            reader = _Reader(file)
            tensors = reader.load()
            reader.read_storages(file)
            return {name: tensor.array() for name, tensor in tensors.items()}
    except (pickle.UnpicklingError, *_OF_DAMAGED_PICKLES) as error:
        raise InputError(
            f"{path} is damaged or no state dict of an old PyTorch ({error}); install or fetch it "
            "again."
        ) from error


class _Storage:
    """Values that tensors are views of."""

    def __init__(self, dtype: str, size: int):
        self.dtype, self.size = np.dtype(dtype), size
        self.values = np.empty(0, dtype)


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, shape: Ints, strides: Ints, *unused: Any):
        del unused  # whether it has a gradient, and hooks
        self._storage, self._offset, self._shape, self._strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        values = self._storage.values[self._offset :]
        last = sum((n - 1) * stride for n, stride in zip(self._shape, self._strides, strict=True))
        if self._offset < 0 or min(self._strides, default=0) < 0 or last >= values.size:
            raise ValueError("a tensor reaches beyond its values")
        steps = [stride * values.itemsize for stride in self._strides]
        return np.lib.stride_tricks.as_strided(values, self._shape, steps, writeable=False)


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if (module, name) in _TYPES:
            return _TYPES[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, size, view = pid
        if view is not None:
            raise pickle.UnpicklingError("it has views of storages")
        return self._storages.setdefault(key, _Storage(dtype, size))

    def read_storages(self, file: BinaryIO) -> None:
        """Reads the values behind the pickle: for each storage its size and its values."""
        for key in pickle.load(file):
            storage = self._storages[key]
            if int.from_bytes(file.read(8), "little") != storage.size:
                raise ValueError("sizes differ")
            values = file.read(storage.size * storage.dtype.itemsize)
            storage.values = np.frombuffer(values, storage.dtype, storage.size)
