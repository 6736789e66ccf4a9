"""Whether an exported model gives what JAX gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

# Of probabilities; of other outputs relative to their largest value.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How two runtimes agree on the same slices.

    Attributes:
      n_slices: compared.
      n_other_boxes: slices with another box, where the scores of the proposals leave the choice
        open: they differ by less than `TOLERANCE`.
      largest_difference: of a probability, over the slices with the same boxes.
      problem: what does not agree, in a few words; '' if all does.
    """

    n_slices: int
    n_other_boxes: int
    largest_difference: float
    problem: str


def compare(expected: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> Agreement:
    """Compares what two runtimes give for the same slices.

    Args:
      expected: of JAX, as `SliceScorer` gives it.
      given: likewise, of the exported model.
    """
    n_slices = len(expected["logits"])
    same = np.array(
        [np.array_equal(a, b) for a, b in zip(expected["boxes"], given["boxes"], strict=True)]
    )
    problem = ""
    for i in np.flatnonzero(~same):
        gap = np.abs(expected["scores"][i] - given["scores"][i]).max()
        if not gap < TOLERANCE * max(1.0, np.abs(expected["scores"][i]).max()):
            problem = "other boxes are chosen, whose scores differ"
    for name, values in given.items():
        if values.shape != expected[name].shape:
            return Agreement(n_slices, int((~same).sum()), np.inf, f"the shape of {name} differs")
        a, b = expected[name][same], values[same]
        scale = 1.0 if "probabilities" in name else max(1.0, float(np.abs(a).max(initial=0)))
        difference = float(np.abs(a - b).max(initial=0)) / scale
        if not difference < TOLERANCE and not problem:
            problem = f"{name} differ by {difference:.1g}"
    probabilities = np.abs(expected["probabilities"][same] - given["probabilities"][same])
    return Agreement(n_slices, int((~same).sum()), float(probabilities.max(initial=0.0)), problem)
