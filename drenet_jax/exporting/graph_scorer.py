"""What scorers of exported models have in common; nothing here imports JAX."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from drenet_jax.array_types import UInt8
from drenet_jax.errors import InputError

# Slices in a pass: larger ones are not faster on a CPU, and need more memory.
BATCH_SIZE = 4


class GraphScorer(abc.ABC):
    """As `models.slice_scorer.SliceScorer`, of an exported graph, on the CPU.

    Attributes:
      batch_size: slices in a pass.
      runtime: its name and version.
      file: of the model; None if it was given as content.
    """

    runtime: str

    def __init__(self, file: Path | None, batch_size: int):
        self.file = file
        self.batch_size = batch_size

    @abc.abstractmethod
    def run(self, images: UInt8[np.ndarray, "slices size size"]) -> dict[str, np.ndarray]:
        """The outputs of the graph for one batch."""

    def compile(self) -> None:  # noqa: B027 (no scorer has anything left to do)
        """Nothing to do: a session is ready."""

    def __call__(
        self, variables: Any, images: UInt8[np.ndarray, "slices size size"]
    ) -> dict[str, np.ndarray]:
        """As `SliceScorer`, with the same results; `variables` is of no use: the file has them."""
        batches = (
            images[start : start + self.batch_size]
            for start in range(0, len(images), self.batch_size)
        )
        parts = [self._completed(batch) for batch in batches]
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
                for name, rows in self._completed(batch).items()
            }

    def _completed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """One batch, with empty boxes of a model of the whole image."""
        scored = self.run(images)
        n, classes = scored["logits"].shape
        if "boxes" not in scored:
            scored["boxes"] = np.zeros((n, 0, 4), np.float32)
            scored["scores"] = np.zeros((n, 0), np.float32)
            scored["part_probabilities"] = np.zeros((n, 0, classes), np.float32)
            if "heat_maps" in scored:
                scored["crop_heat_maps"] = np.zeros((n, classes, 0, 0, 0), np.float32)
        return scored
