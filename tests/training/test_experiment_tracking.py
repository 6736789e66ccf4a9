"""Weights & Biases and MLflow get each step once, and cannot end a training.

Tests with the packages themselves skip where those are absent:
`pip install -e ".[wandb,mlflow]"`, then pytest with `-m slow`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.train import PREEMPTED
from drenet_jax.training import experiment_tracking, loop
from drenet_jax.training.experiment_tracking import Tracker
from drenet_jax.training.loop import train_and_evaluate
from drenet_jax.training.run_log import RunLog, read_scalars
from drenet_jax.training.stopping import Preempted

REPOSITORY = Path(__file__).resolve().parents[2]


class _Server:
    """A tracker that keeps runs in memory; what a killed client has not sent is lost."""

    place = "memory"

    def __init__(self):
        self.runs, self.configs = {}, {}

    def open_run(self, run_id, name, config):
        self.rows = self.runs.setdefault(run_id, [])
        self.configs[name] = config
        self.last_step = max((step for step, _ in self.rows), default=-1)
        return self

    def log(self, rows):
        self.rows += rows

    def finish(self, succeeded):
        self.succeeded = succeeded


@pytest.fixture
def server(monkeypatch):
    server = _Server()
    monkeypatch.setitem(experiment_tracking._RUNS, "wandb", server.open_run)
    monkeypatch.setitem(sys.modules, "wandb", sys)
    return server


def _open(workdir, start_step):
    log = RunLog(workdir, start_step)
    history = functools.partial(read_scalars, workdir, start_step)
    log.tracker = Tracker("wandb", workdir, "mine", start_step, {"seed": 0}, history)
    return log


def _train(log, steps):
    for step in steps:
        log.step(step, {"loss": step / 2, "rate": 0.5})
        if step % 3 == 0:
            log.validation(step, step / 3, {"loss": 1.0}, {"auc": step / 7, "empty": None})


def _expected(steps):
    return [
        (
            step,
            {"train/loss": step / 2, "train/rate": 0.5}
            | ({"validation/auc": step / 7} if step % 3 == 0 else {}),
        )
        for step in steps
    ]


@pytest.mark.parametrize(("sent", "start"), [(9, 6), (6, 6), (4, 6), (0, 6), (8, 9)])
def test_each_step_is_sent_once_whatever_a_killed_run_had_sent(server, tmp_path, sent, start):
    log = _open(tmp_path, 0)
    _train(log, range(1, 10))
    log.close()
    ((run_id, rows),) = server.runs.items()
    del rows[sent:]
    log = _open(tmp_path, start)
    _train(log, range(start + 1, 13))
    log.close()
    assert server.runs == {run_id: _expected(range(1, 13))}
    assert server.configs == {"mine": {"seed": 0}}


def test_a_run_from_the_beginning_is_a_new_one(server, tmp_path):
    for _ in range(2):
        log = _open(tmp_path, 0)
        _train(log, range(1, 3))
        log.close()
    assert list(server.runs.values()) == [_expected((1, 2))] * 2


def test_an_error_of_the_training_marks_the_run(server, tmp_path):
    with contextlib.suppress(KeyError), _open(tmp_path, 0) as log:
        _train(log, [1])
        raise KeyError
    assert not server.succeeded
    assert next(iter(server.runs.values())) == _expected([1])


def test_a_tracker_that_does_not_answer_is_left_alone(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment_tracking, "_CLOSE_S", 0.1)
    monkeypatch.setattr(server, "log", lambda rows: threading.Event().wait(5))
    log = _open(tmp_path, 0)
    _train(log, [1, 2])
    start_s = time.monotonic()
    log.close()
    assert time.monotonic() - start_s < 3
    assert capsys.readouterr().err.count("warning: Weights & Biases gets no more of this run") == 1


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_missing_package_is_refused_before_training(
    tracker, tiny_config, prepared, tmp_path, monkeypatch
):
    # Such a folder, in which Weights & Biases keeps its files, is importable.
    (tmp_path / tracker).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, tracker, raising=False)
    tiny_config.data.dir = str(prepared)
    tiny_config.train.tracker = tracker
    with pytest.raises(InputError, match=rf"pip install 'drenet_jax\[{tracker}\]'"):
        train_and_evaluate(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _small_config(prepared):
    """A network that is compiled soon."""
    config = importlib.import_module("drenet_jax.configs.resnet50").get_config()
    config.model.update(name="resnet18", width=4, image_size_px=96, dropout=0.2)
    config.data.update(dir=str(prepared), batch_size=8)
    config.train.accumulate = 1
    return config


def test_a_tracker_that_fails_gives_one_warning_and_training_goes_on(
    server, prepared, tmp_path, monkeypatch, capsys
):
    saved = []

    def refuse(rows):
        raise ConnectionError("no route to host")

    @contextlib.contextmanager
    def preempted():
        asked = iter((False, True))
        yield lambda: next(asked)

    def watched(checkpoints, step, *args):
        # The logs are copied to a bucket with the checkpoint.
        saved.append(sorted(read_scalars(tmp_path, step)))
        save(checkpoints, step, *args)

    save = loop._save
    monkeypatch.setattr(server, "log", refuse)
    monkeypatch.setattr(loop, "preemption", preempted)
    monkeypatch.setattr(loop, "_save", watched)
    config = _small_config(prepared)
    config.train.update(tracker="wandb", steps=4)
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path)
    assert saved == [[1, 2]]
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("warning: Weights")] == [
        "warning: Weights & Biases gets no more of this run (no route to host); training goes on."
    ]


# With the packages themselves.


def _records(path):
    """The records of a file that Weights & Biases writes: the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if (left := -at % 2**15) and left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, at)
        record += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


class _Wandb:
    """Where the offline mode of Weights & Biases writes, and what is there."""

    name, title = "wandb", "Weights & Biases"

    def __init__(self, folder):
        pytest.importorskip("wandb")
        self.folder = folder
        self.environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
        self.unreachable = {
            "WANDB_BASE_URL": "http://127.0.0.1:9",
            "WANDB_API_KEY": "0" * 40,
            "WANDB_DIR": str(folder),
        }

    def prepare(self):
        pass

    def has_step(self, step):
        return True  # what it has not written yet is lost in a kill

    def read(self):
        """Steps with their scalars, the config, the id, and whether the last call succeeded."""
        calls = sorted(self.folder.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
        records = list(_records(calls[-1]))
        runs = [record.run for record in records if record.HasField("run")]
        assert len({path.name for path in calls}) == 1  # the id of each
        assert not any(run.resume or run.host for run in runs)
        rows = []
        for record in records:
            if record.HasField("history"):
                items = {
                    item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
                }
                rows.append((record.history.step.num, _own(items)))
        config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
        exits = [record.exit.exit_code for record in records if record.HasField("exit")]
        kinds = {record.WhichOneof("record_type") for record in records}
        assert kinds <= {"header", "run", "telemetry", "summary", "history", "exit"}
        for run_file in calls[-1].parent.rglob("files/*"):
            assert run_file.name in ("config.yaml", "wandb-summary.json"), run_file
        # As whole words: short host names are parts of random ids.
        for secret in (socket.gethostname(), str(REPOSITORY), sys.executable):
            assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", "".join(map(str, records)))
        return rows, config["train"]["epochs"], runs[0].run_id, exits == [0]


class _Mlflow:
    """A database of MLflow, and what it has."""

    name, title = "mlflow", "MLflow"

    def __init__(self, folder):
        pytest.importorskip("mlflow")
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.environment = {"MLFLOW_TRACKING_URI": self.uri}
        self.unreachable = {
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        }

    def prepare(self):
        self._run("client.search_experiments()")  # creates the tables, which takes long

    def has_step(self, step):
        with contextlib.closing(sqlite3.connect(self.uri.removeprefix("sqlite:///"))) as database:
            ((last,),) = database.execute("SELECT MAX(step) FROM metrics")
        return (last or 0) >= step

    def read(self):
        code = (
            "(run,) = client.search_runs(\n"
            "    [client.get_experiment_by_name('drenet_jax').experiment_id])\n"
            "metrics = [(m.step, key, m.value) for key in run.data.metrics\n"
            "           for m in client.get_metric_history(run.info.run_id, key)]\n"
            "print(json.dumps([metrics, run.data.params, run.data.tags, run.info.status]))\n"
        )
        metrics, parameters, tags, status = json.loads(self._run(code))
        assert set(tags) == {"mlflow.runName", "drenet_jax.run_id"}
        rows = {}
        for step, key, value in metrics:
            assert key not in rows.setdefault(step, {}), "a step was logged twice"
            rows[step][key] = value
        epochs = int(parameters["train.epochs"])
        return sorted(rows.items()), epochs, tags["drenet_jax.run_id"], status == "FINISHED"

    def _run(self, code):
        return subprocess.run(
            [sys.executable, "-c", f"import json, mlflow\nclient = mlflow.MlflowClient()\n{code}"],
            env=os.environ | self.environment | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.PIPE,
            check=True,
            timeout=120,
        ).stdout


def _own(items):
    return {key: value for key, value in items.items() if not key.startswith("_")}


def _call(config, workdir, environment):
    """`train` as a user calls it."""
    path = workdir.with_suffix(".py")
    path.write_text(
        "import ml_collections\n"
        f"def get_config():\n    return ml_collections.ConfigDict({config.to_dict()!r})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-m", "drenet_jax.train", f"--config={path}", f"--workdir={workdir}"],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _latest(workdir):
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("tracker", [_Wandb, _Mlflow])
def test_a_run_that_is_killed_and_preempted_is_complete_in_the_tracker(tracker, prepared, tmp_path):
    tracker, run = tracker(tmp_path), tmp_path / "run"
    config = _small_config(prepared)
    config.train.update(epochs=4, tracker=tracker.name)
    per_epoch = -(-open_data(prepared).n_slices["train"] // 8)

    tracker.prepare()
    process = _call(config, run, tracker.environment)
    while _latest(run) < per_epoch or not tracker.has_step(per_epoch + 1):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()

    process = _call(config, run, tracker.environment)
    while not process.stderr.readline().startswith("train:"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=300)
    assert process.returncode == PREEMPTED, output
    stopped_at = _latest(run)
    rows, _, first_id, succeeded = tracker.read()
    # It may have steps that the killed run made, and this one has not yet made again.
    assert rows[:stopped_at] == sorted(read_scalars(run, stopped_at).items())
    assert not succeeded

    process = _call(config, run, tracker.environment)
    _, output = process.communicate(timeout=300)
    assert process.returncode == 0, output
    rows, epochs, run_id, succeeded = tracker.read()
    assert [step for step, _ in rows] == list(range(1, 4 * per_epoch + 1))
    assert rows == sorted(read_scalars(run, 4 * per_epoch).items())
    assert [step for step, row in rows if "validation/auc" in row] == [
        epoch * per_epoch for epoch in (1, 2, 3, 4)
    ]
    assert (epochs, run_id) == (4, first_id)
    assert succeeded
    assert f"{tracker.title}: " in output
    assert "warning" not in output.lower()


@pytest.mark.slow
@pytest.mark.parametrize("tracker", [_Wandb, _Mlflow])
def test_a_server_that_cannot_be_reached_does_not_end_a_training(tracker, prepared, tmp_path):
    tracker = tracker(tmp_path)
    config = _small_config(prepared)
    config.train.update(steps=1, tracker=tracker.name)
    process = _call(config, tmp_path / "run", tracker.unreachable)
    _, output = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count(f"warning: {tracker.title} gets no more of this run") == 1, output
    assert "Traceback" not in output
