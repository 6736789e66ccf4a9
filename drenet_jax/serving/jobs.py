"""The job queue: one worker thread owns the model; answers are kept in memory for a while."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from drenet_jax.ct.sources import CtError
from drenet_jax.evaluation.pipeline import PersonResult
from drenet_jax.private_log import log_error
from drenet_jax.serving.limits import Limits
from drenet_jax.serving.monitoring import IN_FLIGHT, STAGE_SECONDS, record_outcome
from drenet_jax.serving.responses import HttpError, SafeJSONResponse
from drenet_jax.serving.uploads import Upload

WAITING, DRAWING = "waiting", "drawing"
DONE, REFUSED, FAILED, TIMED_OUT = "done", "refused", "failed", "timed_out"
ENDED = (DONE, REFUSED, FAILED, TIMED_OUT)

STOPPED = "the server is stopping; try again later."
_CANCELLED = "the job was cancelled."

# How often expired answers are removed while nothing else happens, in seconds.
_EXPIRY_CHECK_S = 5.0


class _TimedOut(Exception):
    pass


class _Cancelled(Exception):
    pass


@dataclasses.dataclass(eq=False)
class Job:
    """An upload on its way to an answer. Times are of the monotonic clock."""

    folder: Path
    upload: Upload
    # Neither can be guessed: `id` gives access to the answer, `view` to the report only, for
    # browsers, which send no token with a frame.
    id: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(24))
    view: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(24))
    state: str = WAITING  # then "reading", "scoring", DRAWING, and one of ENDED
    error: str = ""  # one sentence, if it ended without an answer
    result: bytes = b""  # JSON
    report: bytes = b""  # HTML
    created_s: float = dataclasses.field(default_factory=time.monotonic)
    state_since_s: float = dataclasses.field(default_factory=time.monotonic)
    ended: concurrent.futures.Future = dataclasses.field(default_factory=concurrent.futures.Future)
    is_cancelled: bool = False


class Jobs:
    """A bounded queue in front of one worker thread, and the finished jobs. Thread-safe.

    Not a ThreadPoolExecutor: the worker also removes expired answers, and as a daemon thread it
    does not keep a stopped server alive.

    Args:
      explain: as `PersonPipeline.predict`.
      render_report: makes the HTML report.
      scratch: for temporary files of the reader; emptied after each job.
      limits: of the queue, the work and the kept answers.
    """

    def __init__(
        self,
        explain: Callable[..., PersonResult],
        render_report: Callable[[PersonResult], str],
        scratch: Path,
        limits: Limits,
    ):
        self._explain = explain
        self._render_report = render_report
        self._scratch = scratch
        self._limits = limits
        self._changed = threading.Condition()
        self._n_uploading = 0
        self._active: dict[str, Job] = {}  # in order of arrival, the running one first
        self._running: Job | None = None
        self._finished: dict[str, Job] = {}  # in order of their ends
        self._recent_s: deque[float] = deque([1.0], maxlen=10)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_closing

    @property
    def n_in_flight(self) -> int:
        """Requests that are uploading, waiting, or in work."""
        with self._changed:
            return self._n_uploading + len(self._active)

    def acquire_slot(self) -> None:
        """Reserves a slot for an upload; end with `submit` or `release_slot`.

        Raises:
          HttpError: no slot is free, or the server is stopping.
        """
        with self._changed:
            if not self.is_alive:
                raise HttpError(503, "the server is stopping or out of order; try again later.")
            if self.n_in_flight >= self._limits.places:
                # One slot becomes free about so often.
                mean_s = sum(self._recent_s) / len(self._recent_s)
                raise HttpError(
                    429,
                    "the server is busy with other requests; try again later.",
                    {"Retry-After": str(max(1, math.ceil(mean_s)))},
                )
            self._n_uploading += 1
            IN_FLIGHT.set(self.n_in_flight)

    def release_slot(self) -> None:
        with self._changed:
            self._n_uploading -= 1
            IN_FLIGHT.set(self.n_in_flight)

    def submit(self, job: Job) -> None:
        """Queues a job, which takes over the slot of its upload."""
        with self._changed:
            self._n_uploading -= 1
            self._active[job.id] = job
            if self._is_closing:
                self._finish(job, FAILED, STOPPED)
            self._changed.notify()

    def find(self, id: str) -> Job:
        """The job of this id.

        Raises:
          HttpError: there is none, or it is no longer kept.
        """
        with self._changed:
            self._remove_expired()
            job = self._active.get(id) or self._finished.get(id)
        if job is None or job.is_cancelled:
            raise HttpError(404, "there is no such job, or its answer is no longer kept.")
        return job

    def find_view(self, view: str) -> Job:
        """The finished job whose report has this name; raises HttpError as `find`."""
        with self._changed:
            self._remove_expired()
            for job in self._finished.values():
                if job.view == view and job.report:
                    return job
        raise HttpError(404, "there is no such report, or it is no longer kept.")

    def n_before(self, job: Job) -> int | None:
        """The number of jobs before a waiting one; None if it is not waiting."""
        with self._changed:
            if job is self._running or job.id not in self._active:
                return None
            return list(self._active).index(job.id)

    def remove(self, job: Job) -> None:
        """Cancels a job, or removes its answer."""
        with self._changed:
            job.is_cancelled = True
            self._finished.pop(job.id, None)
            if job.id in self._active and job is not self._running:
                self._finish(job, FAILED, _CANCELLED)

    def close(self) -> None:
        """Ends all waiting jobs, gives the running one its time, and ends the worker."""
        with self._changed:
            self._is_closing = True
            self._stop_waiting()
            self._changed.notify()
        self._thread.join(self._limits.shutdown_seconds)
        with self._changed:
            if self._running is not None:
                self._running.is_cancelled = True
        # Reading ends at once; a forward pass takes seconds at most.
        self._thread.join(self._limits.shutdown_seconds)

    def _stop_waiting(self) -> None:
        for job in list(self._active.values()):
            if job is not self._running:
                self._finish(job, FAILED, STOPPED)

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                state, error = self._work(job)
                with self._changed:
                    self._running = None
                    self._finish(job, state, error)
        finally:
            # Also if the worker dies of an error: no request must wait for ever.
            with self._changed:
                self._is_closing = True
                self._running = None
                self._stop_waiting()

    def _next(self) -> Job | None:
        with self._changed:
            while not self._active and not self._is_closing:
                self._changed.wait(_EXPIRY_CHECK_S)
                self._remove_expired()
            if not self._is_closing:
                self._running = next(iter(self._active.values()))
            return self._running

    def _work(self, job: Job) -> tuple[str, str]:
        """Returns the final state and the error sentence."""
        start_s = time.monotonic()

        def watch(stage: str) -> None:
            if job.is_cancelled:
                raise _Cancelled
            if time.monotonic() > start_s + self._limits.work_seconds:
                raise _TimedOut
            if job.state != stage:
                self._enter(job, stage)

        try:
            result = self._explain(job.upload.path, watch=watch)
            watch(DRAWING)
            job.report = self._render_report(result).encode("utf-8", "backslashreplace")
            job.result = bytes(SafeJSONResponse(result.result).body)
            return DONE, ""
        except CtError as error:
            return REFUSED, f"invalid input: {error.why.rstrip('.')}."
        except _TimedOut:
            limit_s = f"{self._limits.work_seconds:g} seconds"
            return TIMED_OUT, f"the work took longer than {limit_s}; send fewer or smaller files."
        except _Cancelled:
            return FAILED, _CANCELLED
        except Exception as error:
            log_error(error)
            return FAILED, "internal server error; see the server's log."
        finally:
            self._recent_s.append(time.monotonic() - start_s)
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch.mkdir(exist_ok=True)

    def _enter(self, job: Job, state: str) -> None:
        now_s = time.monotonic()
        STAGE_SECONDS.labels(job.state).observe(now_s - job.state_since_s)
        job.state, job.state_since_s = state, now_s

    def _finish(self, job: Job, state: str, error: str) -> None:
        shutil.rmtree(job.folder, ignore_errors=True)
        del self._active[job.id]
        job.error = error
        self._enter(job, state)
        if not job.is_cancelled:
            self._finished[job.id] = job
            self._remove_expired()
        IN_FLIGHT.set(self.n_in_flight)
        record_outcome(
            job.id,
            "given_up" if job.is_cancelled else state,
            job.state_since_s - job.created_s,
            n_files=job.upload.n_files,
            n_bytes=job.upload.n_bytes,
        )
        job.ended.set_result(None)

    def _remove_expired(self) -> None:
        """Removes answers that are too old, too many, or too large; the newest stays."""
        oldest_s = time.monotonic() - 60 * self._limits.answer_minutes
        for job in list(self._finished.values()):
            n_bytes = sum(len(item.result) + len(item.report) for item in self._finished.values())
            is_full = (
                len(self._finished) > self._limits.answers
                or n_bytes > self._limits.answers_mib << 20
            )
            if job.state_since_s > oldest_s and not (is_full and len(self._finished) > 1):
                return
            del self._finished[job.id]
