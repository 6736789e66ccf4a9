"""A model repository of NVIDIA Triton: what it needs beside an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

_LABEL_FILE = "labels.txt"
_TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}


def write_config(
    folder: Path, model_file: Path, labels: Sequence[str], *, max_batch_size: int
) -> None:
    """Writes `config.pbtxt` and the labels.

    Args:
      folder: of the model in the repository; its name is the model's.
      model_file: the ONNX file in it, whose batch may be of any size.
      labels: the names of the classes.
      max_batch_size: slices in a request, and in a batch.
    """
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    blocks = [f"input {_tensor(value)}" for value in session.get_inputs()]
    blocks += [
        f"output {_tensor(value, labelled=value.name == 'probabilities')}"
        for value in session.get_outputs()
    ]
    text = "\n".join(
        [
            f'name: "{folder.name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {max_batch_size}",
            *blocks,
            "dynamic_batching { }\n",
        ]
    )
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    (folder / _LABEL_FILE).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _tensor(value: onnxruntime.NodeArg, *, labelled: bool = False) -> str:
    """A value of the graph; the axis of the batch is not named."""
    lines = [
        f'name: "{value.name}"',
        f"data_type: {_TYPES[value.type]}",
        f"dims: {value.shape[1:]}",
        *[f'label_filename: "{_LABEL_FILE}"'] * labelled,
    ]
    return "\n  ".join(["{", *lines]) + "\n}"
