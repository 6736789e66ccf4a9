"""Answers complete studies: reads and scores them, and makes the DICOM objects of the result."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

from drenet_jax.ct.sources import CtError
from drenet_jax.dicom_export.objects import write_objects
from drenet_jax.errors import InputError, one_line
from drenet_jax.evaluation.pipeline import PersonPipeline
from drenet_jax.pacs.completeness import Completeness, park
from drenet_jax.pacs.node_status import RESULTS, WORK_SECONDS
from drenet_jax.pacs.settings import NodeSettings
from drenet_jax.pacs.study_database import READY, Study
from drenet_jax.pacs.study_queue import StudyQueue
from drenet_jax.private_log import log_error, logger

# How often something may have become complete, or old, without an event.
_POLL_S = 1.0


class _TimedOut(Exception):
    pass


class _Stopped(Exception):
    pass


class Worker:
    """The thread that owns the model.

    Args:
      queue: of studies.
      completeness: which studies are complete.
      pipeline: the model, and the reader of files.
      scratch: a folder on the spool's file system, for results in the making.
      settings: of the node.
    """

    def __init__(
        self,
        queue: StudyQueue,
        completeness: Completeness,
        pipeline: PersonPipeline,
        scratch: Path,
        settings: NodeSettings,
    ):
        self._queue = queue
        self._completeness = completeness
        self._pipeline = pipeline
        self._model = json.dumps(
            [pipeline.predictor.identity, pipeline.predictor.rule.to_dict()],
            sort_keys=True,
            default=str,
        )
        self._scratch = scratch
        self._settings = settings
        self._is_stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread; a study in work is answered after the next start."""
        self._is_stopping.set()
        self._queue.changed.set()
        self.thread.join()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            self._queue.changed.wait(_POLL_S)
            self._queue.changed.clear()
            try:
                self._work()
            except Exception as error:
                # Such as a full disk: nothing is lost, and it may end.
                log_error(error)
                self._is_stopping.wait(self._settings.retry_seconds)

    def _work(self) -> None:
        self._completeness.update()
        for study in self._queue.database.by_state(READY):
            if self._is_stopping.is_set():
                return
            if study.next_try_s <= time.time():
                self._answer(study)
        n_removed = self._queue.remove_ended()
        if n_removed:
            logger.info("%d studies removed after %g h", n_removed, self._settings.keep_hours)

    def _answer(self, study: Study) -> None:
        digest = self._queue.digest(study, self._model)
        if study.answered == digest:
            # It came once more. What is not delivered yet still is.
            self._queue.send_again(study)
            return
        attempt = self._queue.begin_attempt(study)
        if attempt > self._settings.attempts:
            why = f"the node ended {attempt - 1} times while it read the study"
            park(self._queue, study, why)
            return
        start_s = time.monotonic()
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            notes = self._write_results(study, digest, folder, start_s)
        except _Stopped:
            self._queue.forget_attempt(study)
        except OSError as error:
            # Such as a full disk: not the study's fault, and it may end.
            log_error(error)
            self._queue.forget_attempt(study)
            delay_s = self._settings.retry_delay_s(study.retries)
            self._queue.retry_later(study, time.time() + delay_s)
        except _TimedOut:
            park(
                self._queue,
                study,
                f"the work took longer than {self._settings.work_seconds:g} seconds",
            )
        except CtError as error:
            park(self._queue, study, f"no result: {error.why.rstrip('.')}")
        except InputError as error:
            park(self._queue, study, f"no result: {one_line(error)}")
        except Exception as error:
            log_error(error)
            park(self._queue, study, "an internal error; see the log")
        else:
            seconds = time.monotonic() - start_s
            WORK_SECONDS.observe(seconds)
            if self._queue.keep_results(study, digest, folder):
                RESULTS.labels("answered").inc()
                text = f"; {'; '.join(notes)}" if notes else ""
                logger.info(
                    "%s answered from %d instances in %.1f s%s",
                    study.name,
                    study.n_instances,
                    seconds,
                    text,
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_results(self, study: Study, digest: str, folder: Path, start_s: float) -> list[str]:
        """Writes the objects of a study into a folder; returns the notes of the result."""

        def watch(stage: str) -> None:
            if self._is_stopping.is_set():
                raise _Stopped
            if time.monotonic() > start_s + self._settings.work_seconds:
                raise _TimedOut

        prediction = self._pipeline.predict(
            self._queue.images(study), with_instances=True, watch=watch
        )
        write_objects(
            folder,
            prediction.result,
            prediction.pictures,
            prediction.instances,
            uid_seed=digest,
        )
        return prediction.result["notes"]
