"""Work spread over processes, its results in order."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Tasks handed out ahead of the one whose turn it is, for each worker: enough that none waits, few
# enough that results do not pile up.
_AHEAD = 4


def map_in_order(function: Callable, tasks: Iterable[tuple], workers: int) -> Iterator[Any]:
    """`function(*task)` of every task, in the order of the tasks.

    Args:
      function: at the top level of a module that the processes can import.
      tasks: arguments, which are pickled.
      workers: processes; with 1 the work is done in this one.
    """
    if workers == 1:
        for task in tasks:
            yield function(*task)
        return
    # Spawn: a forked child would inherit the locks of the parent's threads.
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    ) as pool:
        pending: deque[concurrent.futures.Future] = deque()
        try:
            for task in tasks:
                pending.append(pool.submit(function, *task))
                if len(pending) > _AHEAD * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches the workers too; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The processes share the cores among them already.
    import cv2

    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    """Ends the worker when the process that started it was killed; it would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
