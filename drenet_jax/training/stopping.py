"""Early ends of a run: a stop signal (preemption), or no improvement (patience)."""

from __future__ import annotations

import math
import signal
import types
from collections.abc import Mapping, Sequence
from typing import Any

from drenet_jax import parallel
from drenet_jax.models.checkpoints import selection_key


class Preempted(Exception):
    """The run received a stop signal and has saved a checkpoint."""


class Preemption:
    """SIGTERM, as a scheduler sends it, asks for a stop after the step under way.

    To be used in a `with` statement, in the main thread; elsewhere signals are the caller's
    business, and nothing is asked.
    """

    def __init__(self) -> None:
        self._asked = False
        self._any_host = parallel.AnyAcrossHosts()

    def __enter__(self) -> Preemption:
        try:
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        except ValueError:
            self._previous = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, signum: int, frame: types.FrameType | None) -> None:
        self._asked = True

    def is_asked(self) -> bool:
        """To be called once after each step: whether to stop now.

        All hosts get the same answer. With several it comes a step later, as in
        `parallel.AnyAcrossHosts`.
        """
        return self._any_host(self._asked)


def is_out_of_patience(lines: Sequence[Mapping[str, Any]], patience_epochs: int) -> bool:
    """Whether the validation has not got better for so many epochs.

    Args:
      lines: of `metrics.jsonl`, so that a run that goes on decides as one that never stopped.
      patience_epochs: `train.patience_epochs`; 0: without end.
    """
    if not patience_epochs or not lines:
        return False
    # The first of equals.
    best = max(lines, key=lambda line: selection_key(line["validation"]))
    # A validation takes place at the first step at which its epoch is complete.
    passed = math.floor(lines[-1]["epoch"]) - math.floor(best["epoch"])
    return passed >= patience_epochs
