"""What must be known of an exported model to use it: a JSON file beside it, and its metadata."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drenet_jax.errors import InputError

DESCRIPTION_FILE = "model.json"
# Raised whenever fields change their meaning.
FORMAT = 1
# The key of the description in an ONNX file's metadata.
METADATA_KEY = "drenet_jax"

_WARNING = "Research only, not for clinical use."
_INPUT = (
    "images: uint8 [N, size, size], lung crops of CT slices in the window and size of `ct`, "
    "prepared as `fill` says. Means and deviations are taken off in the graph."
)


def describe(
    *,
    checkpoint: Mapping[str, Any],
    step: int,
    decision: Mapping[str, Any],
    temperature: float | None,
    validation: Mapping[str, Any] | None,
    precision: str,
    heat_maps: bool,
) -> dict[str, Any]:
    """The description of an exported model.

    Args:
      checkpoint: `Meta.to_dict()`, from which all else about the model is known.
      step: of the checkpoint.
      decision: `DecisionRule.to_dict()`.
      temperature: fitted on the validation slices, by which logits may be divided, or None; the
        graph does not.
      validation: the results on the validation persons, or None.
      precision: of the graph.
      heat_maps: whether the graph gives them.
    """
    config = checkpoint["config"]
    return {
        "format": FORMAT,
        "warning": _WARNING,
        "input": _INPUT,
        "name": config["model"]["name"],
        "version": checkpoint["version"],
        "step": step,
        "labels": checkpoint["labels"],
        "decision": dict(decision),
        "fitted_temperature": temperature,
        "image_size_px": checkpoint["ct"]["image_size_px"],
        "ct": checkpoint["ct"],
        "fill": config["data"]["fill"],
        "fill_seed": checkpoint["fill_seed"],
        "trained_on": checkpoint["trained_on"],
        "precision": precision,
        "heat_maps": heat_maps,
        "checkpoint": dict(checkpoint),
        "validation": validation,
    }


def checkpoint_files(workdir: str | os.PathLike[str]) -> str:
    """A digest of the names, sizes and times of a run's checkpoint files.

    It changes when the checkpoints do, and takes neither Orbax nor reading them.
    """
    folder = Path(workdir) / "checkpoints"
    listing = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            name = path.relative_to(folder)
            listing.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return listing.hexdigest()


def write_description(folder: Path, model_file: Path, description: Mapping[str, Any]) -> None:
    """Writes the JSON file, with the place in the folder and the SHA-256 of the model's file."""
    with model_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    text = json.dumps(
        {"file": model_file.relative_to(folder).as_posix(), "sha256": digest, **description},
        indent=2,
        allow_nan=False,
    )
    (folder / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


def read_description(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The model's file in a folder that `export` wrote, which is verified, and its description.

    Raises:
      InputError: the folder is none, of another version, or its file is damaged.
    """
    path = folder / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        file, expected = folder / description["file"], description["sha256"]
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds no exported model ({DESCRIPTION_FILE} or its file is missing or "
            "damaged); export it anew."
        ) from error
    if digest != expected:
        raise InputError(f"{file} is damaged (another SHA-256); export it anew.")
    if description.get("format") != FORMAT:
        raise InputError(f"{path} is of another version of drenet_jax; export it anew.")
    return file, description
