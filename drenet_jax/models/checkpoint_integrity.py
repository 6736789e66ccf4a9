"""Whether the arrays of a checkpoint are those that were saved, and those that a model expects."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from drenet_jax.errors import InputError

PyTree = Any

# Characters of what Orbax says of a damaged file.
_LONGEST_REASON = 200


class ItemChanged(Exception):
    """An item is not what was saved."""


def tree_checksum(tree: PyTree) -> int:
    """CRC-32 of the names, types and bytes of a tree's arrays."""
    result = 0
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
        array = np.ascontiguousarray(leaf)
        head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        result = zlib.crc32(head.encode(), result)
        # Types that NumPy does not know, as bfloat16, give no buffer themselves.
        result = zlib.crc32(array.reshape(-1).view(np.uint8).data, result)
    return result


def json_checksum(values: Mapping[str, Any]) -> int:
    """CRC-32 of what is written as JSON."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def check_shapes(
    arrays: PyTree,
    wanted: PyTree,
    where: str,
    fix: str = "use the config with which the weights were made",
) -> None:
    """Compares two trees of arrays (or of their shapes) by name.

    Args:
      arrays: what there is.
      wanted: what there should be.
      where: `actual` is, for the message.
      fix: the advice for the error message.

    Raises:
      InputError: one sentence that lists every missing, extra and wrongly shaped array.
    """
    arrays, wanted = _named_shapes(arrays), _named_shapes(wanted)
    faults = [
        *(f"{name} is missing" for name in wanted if name not in arrays),
        *(f"{name} is not expected" for name in arrays if name not in wanted),
        *(
            f"{name} has shape {arrays[name]} instead of {shape}"
            for name, shape in wanted.items()
            if name in arrays and arrays[name] != shape
        ),
    ]
    if faults:
        raise InputError(f"{where} does not fit the model: {'; '.join(faults)}; {fix}.")


def _named_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


@contextlib.contextmanager
def translate_read_errors(folder: Path, step: int | None) -> Iterator[None]:
    """Turns whatever goes wrong while a checkpoint is read into an InputError.

    Orbax, tensorstore and JSON each have errors of their own, of many kinds, for a file that is
    cut, changed or gone.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, PermissionError):
            raise InputError(
                f"{error.filename or folder} cannot be read ({error.strerror}); change "
                "its permissions, or name another folder."
            ) from error
        raise InputError(_damage(folder, step, error)) from error


def _damage(folder: Path, step: int | None, error: Exception) -> str:
    """A sentence that says which checkpoint is damaged, and what can be done."""
    if step is None:
        step = _step_without_metrics(folder)
    place = folder if step is None else folder / str(step)
    if not place.exists():
        return (
            f"{place} was removed while it was read, as a run does that goes on there; call again."
        )
    why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if len(why) > _LONGEST_REASON:
        why = f"{why[:_LONGEST_REASON]}..."
    steps = sorted(
        (int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True
    )
    others = [str(other) for other in steps if other != step]
    remedy = "restore it from a copy, or make it anew (train with --fresh, or convert_weights)"
    if step is not None and others:
        remedy = (
            f"restore it from a copy, or remove this folder, so that {' or '.join(others)} "
            "beside it is taken"
        )
    return f"the checkpoint {place} is damaged ({why}); {remedy}."


def _step_without_metrics(folder: Path) -> int | None:
    """The step that Orbax stumbles over when it reads the metrics of all, if there is one."""
    for step in folder.iterdir() if folder.is_dir() else ():
        if step.name.isdigit():
            try:
                json.loads((step / "metrics" / "metrics").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return int(step.name)
    return None
