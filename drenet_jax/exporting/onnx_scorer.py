"""Exported models in ONNX Runtime; nothing here imports JAX."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime

from drenet_jax.errors import InputError
from drenet_jax.exporting.graph_scorer import BATCH_SIZE, GraphScorer


class OnnxScorer(GraphScorer):
    """An ONNX file in ONNX Runtime."""

    runtime = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, model: Path | bytes, *, batch_size: int = BATCH_SIZE):
        """Loads a model.

        Args:
          model: the file, or its content.
          batch_size: slices in a pass.

        Raises:
          InputError: ONNX Runtime cannot load it.
        """
        super().__init__(model if isinstance(model, Path) else None, batch_size)
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

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        results = self._session.run(self._names, {"images": images})
        return dict(zip(self._names, results, strict=True))
