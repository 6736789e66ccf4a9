"""Exported models in ONNX Runtime; nothing here imports JAX."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from drenet_jax.array_types import UInt8
from drenet_jax.errors import InputError

# Slices in a pass: larger ones are not faster on a CPU, and need more memory.
BATCH_SIZE = 4


class OnnxScorer:
    """As `models.slice_scorer.SliceScorer`, of an ONNX file, on the CPU.

    Attributes:
      batch_size: slices in a pass.
      file: of the model; None if it was given as content.
    """

    runtime = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, model: Path | bytes, *, batch_size: int = BATCH_SIZE):
        """Loads a model.

        Args:
          model: the file, or its content.
          batch_size: slices in a pass.

        Raises:
          InputError: ONNX Runtime cannot load it.
        """
        self.batch_size = batch_size
        self.file = model if isinstance(model, Path) else None
        options = onnxruntime.SessionOptions()
        # Warnings of the graph's shapes are of no use to a user.
        options.log_severity_level = 3
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(model) if isinstance(model, Path) else model,
                options,
                providers=["CPUExecutionProvider"],
            )
        # onnxruntime's errors have no class in common.
        except Exception as error:
            name = model if isinstance(model, Path) else "the model"
            raise InputError(f"ONNX Runtime cannot load {name}; export it anew.") from error
        self._names = [output.name for output in self._session.get_outputs()]

    def compile(self) -> None:
        """Nothing to do: a session is ready."""

    def __call__(
        self, variables: Any, images: UInt8[np.ndarray, "slices size size"]
    ) -> dict[str, np.ndarray]:
        """As `SliceScorer`, with the same results; `variables` is of no use: the file has them."""
        batches = (
            images[start : start + self.batch_size]
            for start in range(0, len(images), self.batch_size)
        )
        parts = [self._run(batch) for batch in batches]
        scored = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not np.isfinite(scored["logits"]).all():
            raise InputError("the model's output is not finite; export an earlier checkpoint.")
        return scored

    def padded(
        self, variables: Any, batches: Iterable[np.ndarray]
    ) -> Iterator[dict[str, np.ndarray]]:
        """As `SliceScorer.padded`; rows that fill a batch up are zeros."""
        for batch in batches:
            yield {
                name: np.concatenate(
                    [rows, np.zeros((self.batch_size - len(rows), *rows.shape[1:]), rows.dtype)]
                )
                for name, rows in self._run(batch).items()
            }

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        results = self._session.run(self._names, {"images": images})
        scored = dict(zip(self._names, results, strict=True))
        n, classes = scored["logits"].shape
        if "boxes" not in scored:  # a model of the whole image only
            scored["boxes"] = np.zeros((n, 0, 4), np.float32)
            scored["scores"] = np.zeros((n, 0), np.float32)
            scored["part_probabilities"] = np.zeros((n, 0, classes), np.float32)
            if "heat_maps" in scored:
                scored["crop_heat_maps"] = np.zeros((n, classes, 0, 0, 0), np.float32)
        return scored
