"""Exported models in OpenVINO, which computes in bfloat16 too; nothing here imports JAX."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import openvino

from drenet_jax.errors import InputError
from drenet_jax.exporting.graph_scorer import BATCH_SIZE, GraphScorer
from drenet_jax.exporting.onnx_images import INPUT
from drenet_jax.exporting.onnx_parts import split, whole

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoScorer(GraphScorer):
    """An ONNX file in OpenVINO."""

    runtime = f"openvino {openvino.__version__.split('-')[0]}"

    def __init__(self, file: Path, precision: str = "float32", *, batch_size: int = BATCH_SIZE):
        """Loads and compiles a model.

        Args:
          file: in float32.
          precision: `float32`; `bfloat16`; or `bfloat16_crops`: the passes over crops and context
            image in bfloat16, so that the boxes stay those of float32.
          batch_size: slices in a pass.

        Raises:
          InputError: OpenVINO cannot load it; or `bfloat16_crops`, of a model without boxes.
        """
        super().__init__(file, batch_size)
        graph = onnx.load(file).graph
        self._names = [output.name for output in graph.output]
        if precision != "bfloat16_crops":
            parts, precisions = [whole(file)], [precision]
        elif "boxes" in self._names:
            parts, precisions = list(split(file)), ["float32", "bfloat16", "float32"]
        else:
            raise InputError(
                "a model of the whole image has no crops; use --precision=bfloat16 or float32."
            )
        core = openvino.Core()
        self._parts = []
        for part, precision_of_part in zip(parts, precisions, strict=True):
            settings = {
                "INFERENCE_PRECISION_HINT": _HINTS[precision_of_part],
                "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
                "PERFORMANCE_HINT": "LATENCY",
            }
            try:
                compiled = core.compile_model(core.read_model(part.content), "CPU", settings)
            except RuntimeError as error:
                raise InputError(f"OpenVINO cannot load {file}; export it anew.") from error
            self._parts.append((part, compiled))

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        values = {INPUT: images}
        for part, compiled in self._parts:
            results = compiled([values[name] for name in part.inputs])
            # Copies: OpenVINO writes the next results into the same memory.
            values |= {
                name: np.array(results[output])
                for name, output in zip(part.outputs, compiled.outputs, strict=True)
            }
        return {name: values[name] for name in self._names}
