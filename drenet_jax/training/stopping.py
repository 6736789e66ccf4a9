"""Early ends of a run: a stop signal (preemption), or no improvement (patience)."""

from __future__ import annotations

import contextlib
import math
import signal
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from drenet_jax import parallel
from drenet_jax.models.checkpoints import selection_key


class Preempted(Exception):
    """The run received a stop signal and has saved a checkpoint."""


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[], bool]]:
    """In the main thread, SIGTERM, as a scheduler sends it, requests a stop.

    Yields:
      a function to call once after each step: whether to stop now. All hosts get the same answer;
      with several it comes a step later, as in `parallel.AnyAcrossHosts`.
    """
    is_requested = False
    any_host = parallel.AnyAcrossHosts()

    def request(signum: int, frame: types.FrameType | None) -> None:
        nonlocal is_requested
        is_requested = True

    previous = None
    with contextlib.suppress(ValueError):  # not the main thread: signals are the caller's business
        previous = signal.signal(signal.SIGTERM, request)
    try:
        yield lambda: any_host(is_requested)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


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
