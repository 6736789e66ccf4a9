"""Persons one after the other: who waits, who is in work, and what came of it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import secrets
import shutil
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

from drenet_jax.ct.sources import CtError
from drenet_jax.evaluation.predictor import PersonResult
from drenet_jax.serving.access_log import Log, where
from drenet_jax.serving.limits import Limits
from drenet_jax.serving.monitoring import Metrics
from drenet_jax.serving.responses import HttpError, json_text
from drenet_jax.serving.uploads import Upload

WAITING, READING, SCORING, DRAWING = "waiting", "reading", "scoring", "drawing"
DONE, REFUSED, FAILED, TIMED_OUT = "done", "refused", "failed", "timed_out"
ENDED = (DONE, REFUSED, FAILED, TIMED_OUT)

STOPPED = "the server is shutting down; try again later."
_GIVEN_UP = "the job was given up."

# Interval at which expired answers are removed, in seconds.
_LOOK_S = 5.0


class _TimedOut(Exception):
    """The work takes longer than is allowed."""


class _GivenUp(Exception):
    """The client no longer waits for the answer."""


@dataclasses.dataclass(eq=False)
class Job:
    """One person's way through the server.

    Attributes:
      id: cannot be guessed; who knows it may ask for the answer.
      folder: of the upload.
      upload: what was sent.
      view: the unguessable name under which a browser shows the report, which cannot send a token.
      state: one of the above.
      error: one sentence, if it was refused, failed or timed out.
      result: JSON, as `predict` writes it; empty unless it is done.
      report: an HTML page; empty unless it is done.
      came_s: when it came, on the monotonic clock, as all times here.
      entered_s: when it reached its state.
      ended_s: when it ended.
      ended: is set when one of `ENDED` is reached.
      is_given_up: the client no longer waits for it.
    """

    folder: Path
    upload: Upload
    id: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(24))
    view: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(24))
    state: str = WAITING
    error: str = ""
    result: bytes = b""
    report: bytes = b""
    came_s: float = dataclasses.field(default_factory=time.monotonic)
    entered_s: float = dataclasses.field(default_factory=time.monotonic)
    ended_s: float = math.inf
    ended: concurrent.futures.Future = dataclasses.field(
        default_factory=concurrent.futures.Future, repr=False
    )
    is_given_up: bool = False

    @property
    def n_bytes(self) -> int:
        return len(self.result) + len(self.report)


class Jobs:
    """A bounded queue before one thread, which owns the model, and the answers kept behind it.

    Call from any thread.
    """

    def __init__(
        self,
        explain: Callable[..., PersonResult],
        draw: Callable[[PersonResult], str],
        scratch: Path,
        limits: Limits,
        metrics: Metrics,
        log: Log,
    ):
        """Starts the thread.

        Args:
          explain: as `Predictor.explain`.
          draw: makes the report.
          scratch: where the reader leaves temporary files; emptied after each person.
          limits: what the visitors may cost.
          metrics: counters that are updated.
          log: gets a line for each finished job.
        """
        self._explain = explain
        self._draw = draw
        self._scratch = scratch
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._changed = threading.Condition()
        self._n_sending = 0
        self._waiting: deque[Job] = deque()
        self._at_work: Job | None = None
        self._ended: OrderedDict[str, Job] = OrderedDict()
        self._recent_s: deque[float] = deque(maxlen=10)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_closing

    @property
    def n_present(self) -> int:
        """Persons being sent, waiting, or in work."""
        with self._changed:
            return self._count()

    def _count(self) -> int:
        return self._n_sending + len(self._waiting) + (self._at_work is not None)

    def acquire_slot(self) -> None:
        """Keeps a place for a person who is being sent; end with `submit` or `give_place_back`.

        Raises:
          Refused: there is none, or the server is ending.
        """
        with self._changed:
            if not self.is_alive:
                raise HttpError(503, "the server is ending or out of order; try again later.")
            if self._count() >= self._limits.places:
                # One place gets free about so often.
                mean_s = sum(self._recent_s) / len(self._recent_s) if self._recent_s else 1
                raise HttpError(
                    429,
                    "the server is busy with other persons; try again later.",
                    {"Retry-After": str(max(1, math.ceil(mean_s)))},
                )
            self._n_sending += 1
            self._metrics.present.set(self._count())

    def give_place_back(self) -> None:
        with self._changed:
            self._n_sending -= 1
            self._metrics.present.set(self._count())

    def submit(self, job: Job) -> None:
        """Queues a job for which a slot was acquired."""
        with self._changed:
            self._n_sending -= 1
            self._waiting.append(job)
            if self._is_closing:
                self._waiting.remove(job)
                self._end(job, FAILED, STOPPED)
            self._changed.notify()

    def find(self, id: str) -> Job:
        """The job of this id.

        Raises:
          Refused: there is none, or no more.
        """
        with self._changed:
            self._forget_old()
            present = [*self._waiting, *([self._at_work] if self._at_work else [])]
            job = next((item for item in present if item.id == id), None) or self._ended.get(id)
        if job is None or job.is_given_up:
            raise HttpError(404, "there is no such job, or its answer is no longer kept.")
        return job

    def seen(self, view: str) -> Job:
        """The job whose report has this name; raises Refused as `find`."""
        with self._changed:
            self._forget_old()
            job = next((item for item in self._ended.values() if item.view == view), None)
        if job is None or not job.report:
            raise HttpError(404, "there is no such report, or it is no longer kept.")
        return job

    def place_of(self, job: Job) -> int | None:
        """How many persons are before this one, with the one in work; None if it does not wait."""
        with self._changed:
            if job not in self._waiting:
                return None
            return self._waiting.index(job) + (self._at_work is not None)

    def forget(self, job: Job) -> None:
        """Drops a job and its answer; work on it ends soon."""
        with self._changed:
            job.is_given_up = True
            self._ended.pop(job.id, None)
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, FAILED, _GIVEN_UP)

    def close(self) -> None:
        """Tells all who wait, gives the person in work its time, and ends the thread."""
        with self._changed:
            self._is_closing = True
            while self._waiting:
                self._end(self._waiting.popleft(), FAILED, STOPPED)
            self._changed.notify()
        self._thread.join(self._limits.shutdown_seconds)
        with self._changed:
            if self._at_work is not None:
                self._at_work.is_given_up = True
        # Reading ends at once; a forward pass takes seconds at most.
        self._thread.join(self._limits.shutdown_seconds)

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                state, error = self._work(job)
                with self._changed:
                    self._at_work = None
                    self._end(job, state, error)
        finally:
            # If a bug ends the thread, no client may wait for ever.
            with self._changed:
                self._is_closing = True
                if self._at_work is not None:
                    self._waiting.appendleft(self._at_work)
                    self._at_work = None
                while self._waiting:
                    self._end(self._waiting.popleft(), FAILED, STOPPED)

    def _next(self) -> Job | None:
        with self._changed:
            while not self._waiting and not self._is_closing:
                self._changed.wait(_LOOK_S)
                self._forget_old()
            if self._is_closing:
                return None
            self._at_work = self._waiting.popleft()
            return self._at_work

    def _work(self, job: Job) -> tuple[str, str]:
        start_s = time.monotonic()

        def watch(stage: str) -> None:
            if job.is_given_up:
                raise _GivenUp
            if time.monotonic() > start_s + self._limits.work_seconds:
                raise _TimedOut
            if job.state != stage:
                self._enter(job, stage)

        try:
            result = self._explain(job.upload.path, watch=watch)
            watch(DRAWING)
            job.report = self._draw(result).encode("utf-8", "backslashreplace")
            job.result = json_text(result.result)
            return DONE, ""
        except CtError as error:
            return REFUSED, f"invalid input: {error.why.rstrip('.')}."
        except _TimedOut:
            return (
                TIMED_OUT,
                f"the work took longer than {self._limits.work_seconds:g} seconds; send fewer or "
                "smaller files.",
            )
        except _GivenUp:
            return FAILED, _GIVEN_UP
        except Exception as error:
            # Not its text, which may quote names.
            self._log.mistake(where(error))
            return FAILED, "the server made a mistake; its log says where."
        finally:
            self._recent_s.append(time.monotonic() - start_s)
            for left_over in self._scratch.iterdir():
                if left_over.is_dir():
                    shutil.rmtree(left_over, ignore_errors=True)
                else:
                    left_over.unlink(missing_ok=True)

    def _enter(self, job: Job, state: str) -> None:
        now_s = time.monotonic()
        self._metrics.took(job.state, now_s - job.entered_s)
        job.state, job.entered_s = state, now_s

    def _end(self, job: Job, state: str, error: str) -> None:
        shutil.rmtree(job.folder, ignore_errors=True)
        job.error = error
        self._enter(job, state)
        job.ended_s = job.entered_s
        if not job.is_given_up:
            self._ended[job.id] = job
            self._forget_old()
        self._metrics.present.set(self._count())
        outcome = "given_up" if job.is_given_up else state
        self._metrics.outcome(outcome)
        self._log.request(
            job.id, outcome, job.ended_s - job.came_s, job.upload.n_files, job.upload.n_bytes
        )
        job.ended.set_result(None)

    def _forget_old(self) -> None:
        oldest_s = time.monotonic() - 60 * self._limits.answer_minutes
        kept = self._ended
        n_bytes = sum(item.n_bytes for item in kept.values())
        while kept:
            first = next(iter(kept.values()))
            # The newest is kept whatever its size: its client waits for it.
            is_one_too_many = len(kept) > 1 and (
                len(kept) > self._limits.answers or n_bytes > self._limits.answers_bytes
            )
            if first.ended_s > oldest_s and not is_one_too_many:
                return
            n_bytes -= first.n_bytes
            del kept[first.id]
