"""Experiment tracking: Weights & Biases or MLflow get a run's scalars and its config.

They get what TensorBoard gets, without images, under the same id after each restart. A tracker is
called in a thread of its own; if it fails, it is left alone and training goes on.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import flax.traverse_util
from tqdm import tqdm

from drenet_jax.errors import InputError, one_line

ID_FILE = "tracker_id.txt"

_TITLES = {"wandb": "Weights & Biases", "mlflow": "MLflow"}
TRACKERS = ("none", *_TITLES)

# The project of Weights & Biases and the experiment of MLflow, unless the environment names one.
_PROJECT = "drenet_jax"

# MLflow takes at most 1000 metrics and 100 parameters in a request; a step has less than 50.
_ROWS_AT_ONCE, _PARAMETERS_AT_ONCE = 20, 100

# After a preemption the machine is gone in 30 s.
_FINISH_S, _CLOSE_S = 10, 15

# A step and its scalars, by their TensorBoard tags.
Row: TypeAlias = tuple[int, Mapping[str, float]]


def check_package(tracker: str) -> None:
    """Raises InputError if the package of a tracker is not installed."""
    spec = None if tracker == "none" else importlib.util.find_spec(tracker)
    # Without an origin it is a folder of that name, as Weights & Biases makes one.
    if tracker != "none" and (spec is None or spec.origin is None):
        raise InputError(
            f"--config.train.tracker={tracker!r} needs the package {tracker}; install it with "
            f"pip install 'drenet_jax[{tracker}]'."
        )


class Tracker:
    """Sends the scalars of a run to a tracker, those of a step once.

    What the tracker has is not sent again, so a step that is made again after a kill keeps its
    first values there. What it lacks of the steps before the checkpoint (lost in a kill, or made
    before tracking was switched on) is read from the run's own log.
    """

    def __init__(
        self,
        tracker: str,
        workdir: Path,
        name: str,
        start_step: int,
        config: Mapping[str, Any],
        history: Callable[[], Mapping[int, Mapping[str, float]]],
    ):
        """Starts the thread.

        Args:
          tracker: one of `TRACKERS` but "none".
          workdir: of the run; gets `ID_FILE`.
          name: of the run, for people.
          start_step: updates made so far; 0: a new run, with a new id.
          config: nested fields.
          history: returns the scalars of each step up to `start_step`.
        """
        self._title, self._start_step, self._history = _TITLES[tracker], start_step, history
        self._row: tuple[int, dict[str, float]] | None = None
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._succeeded, self._is_off = True, False
        try:
            run_id = _run_id(workdir / ID_FILE, start_step)
            # It reports its use to its makers otherwise.
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            # Not in the thread, which may meet an import of the main thread half done.
            importlib.import_module(tracker)
        except Exception as error:
            self._turn_off(error)
        # A daemon: a server that does not answer must not keep the process alive.
        self._thread = threading.Thread(
            target=lambda: self._send(_RUNS[tracker], run_id, name, config), daemon=True
        )
        if not self._is_off:
            self._thread.start()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars to a step, which is sent when the next one begins."""
        if self._row is not None and self._row[0] == step:
            self._row[1].update(scalars)
            return
        self._put_row()
        self._row = (step, dict(scalars))

    def close(self, *, succeeded: bool) -> None:
        """Sends what is left, and waits for that for some seconds."""
        self._put_row()
        self._succeeded = succeeded
        self._rows.put(None)
        if not self._is_off:
            self._thread.join(_CLOSE_S)
            if self._thread.is_alive():
                self._turn_off(TimeoutError(f"it took longer than {_CLOSE_S} s at the end"))

    def _put_row(self) -> None:
        if self._row is not None and not self._is_off:
            self._rows.put(self._row)

    def _send(self, open_run: type[_WandbRun | _MlflowRun], *arguments: Any) -> None:
        try:
            run = open_run(*arguments)
            tqdm.write(f"{self._title}: {run.place}", file=sys.stderr)
            if run.last_step < self._start_step:
                rows = sorted(self._history().items())
                for i in range(0, len(rows), _ROWS_AT_ONCE):
                    run.log([row for row in rows[i : i + _ROWS_AT_ONCE] if row[0] > run.last_step])
            for new in self._waiting():
                run.log([row for row in new if row[0] > run.last_step])
            run.finish(self._succeeded)
        except (Exception, SystemExit) as error:
            self._turn_off(error)

    def _waiting(self) -> Iterator[list[Row]]:
        """The rows as they come, several at once where they have piled up."""
        is_open = True
        while is_open:
            rows = [self._rows.get()]
            while len(rows) < _ROWS_AT_ONCE and not self._rows.empty():
                rows.append(self._rows.get())
            is_open = rows[-1] is not None
            yield [row for row in rows if row is not None]

    def _turn_off(self, error: BaseException) -> None:
        if self._is_off:
            return
        self._is_off = True
        tqdm.write(
            f"warning: {self._title} gets no more of this run ({one_line(error)}); training goes "
            "on.",
            file=sys.stderr,
        )


def _run_id(path: Path, start_step: int) -> str:
    """The id of the run that is resumed, or a new one."""
    if start_step and path.exists() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    run_id = uuid.uuid4().hex
    path.write_text(f"{run_id}\n", encoding="utf-8")
    return run_id


class _WandbRun:
    def __init__(self, run_id: str, name: str, config: Mapping[str, Any]):
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        given = wandb.setup().settings
        is_online = given.mode not in ("offline", "dryrun", "disabled")
        # `init` would prompt for a key.
        if is_online and not wandb.login(prompt=False):
            raise PermissionError("no API key: run `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=given.project or _PROJECT,
            id=run_id,
            name=name,
            config=dict(config),
            # Only online it says what it has. Offline each call writes a folder with all steps,
            # so that the last folder is the one to upload.
            resume="allow" if is_online else None,
            reinit="create_new",
            settings=wandb.Settings(
                allow_val_change=True,
                finish_timeout=_FINISH_S,
                # The website's Stop button would interrupt the process.
                stop_fn=lambda: None,
                # No output, code, arguments or machine.
                console="off",
                disable_code=True,
                disable_git=True,
                host="",
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self.place = self._run.dir if self._run.offline else self._run.url
        # The last step that the tracker has; below 0: none.
        self.last_step = self._run.step - 1

    def log(self, rows: Sequence[Row]) -> None:
        for step, scalars in rows:
            self._run.log(dict(scalars), step=step, commit=True)

    def finish(self, succeeded: bool) -> None:
        self._run.finish(exit_code=0 if succeeded else 1)


class _MlflowRun:
    # MLflow chooses ids itself; this tag has ours.
    _TAG = "drenet_jax.run_id"

    def __init__(self, run_id: str, name: str, config: Mapping[str, Any]):
        import mlflow

        # Not `mlflow.start_run`, which adds tags with the user, the command and the commit.
        self._client = client = mlflow.MlflowClient()
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else client.create_experiment(project)
        runs = client.search_runs([experiment], f"tags.`{self._TAG}` = '{run_id}'")
        if not runs:
            runs = [client.create_run(experiment, tags={self._TAG: run_id}, run_name=name)]
        self._id = runs[0].info.run_id
        client.update_run(self._id, status="RUNNING")
        self.place = f"run {self._id} of experiment {project} at {mlflow.get_tracking_uri()}"
        # A metric of each step.
        logged = client.get_metric_history(self._id, "train/loss")
        self.last_step = max((metric.step for metric in logged), default=-1)
        fields = flax.traverse_util.flatten_dict(dict(config), sep=".")
        # Parameters cannot be changed later.
        parameters = [
            mlflow.entities.Param(name, str(value))
            for name, value in fields.items()
            if name not in runs[0].data.params
        ]
        for i in range(0, len(parameters), _PARAMETERS_AT_ONCE):
            client.log_batch(self._id, params=parameters[i : i + _PARAMETERS_AT_ONCE])

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now_ms = round(time.time() * 1000)
        metrics = [
            Metric(key, value, now_ms, step) for step, row in rows for key, value in row.items()
        ]
        if metrics:
            self._client.log_batch(self._id, metrics=metrics)

    def finish(self, succeeded: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if succeeded else "KILLED")


_RUNS: Mapping[str, type[_WandbRun | _MlflowRun]] = {"wandb": _WandbRun, "mlflow": _MlflowRun}
