"""A run as a whole: it goes on where it stopped, and refuses what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from drenet_jax.data import batches
from drenet_jax.data.records import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.evaluate import evaluate_split
from drenet_jax.models.build import build_model, variable_shapes
from drenet_jax.models.checkpoints import Checkpoints, has_checkpoint
from drenet_jax.training import loop
from drenet_jax.training.loop import train_and_evaluate

REPOSITORY = Path(__file__).resolve().parents[2]


def _weights(workdir):
    with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
        step = checkpoints.latest_step
        meta = checkpoints.meta(step)
        shapes = variable_shapes(build_model(meta.config, len(meta.labels)))
        return step, checkpoints.weights(step, shapes)


@pytest.fixture
def config(tiny_config, prepared):
    tiny_config.data.dir = str(prepared)
    tiny_config.train.epochs = 1
    return tiny_config


def _start(config, workdir, devices):
    """`train_and_evaluate` in a process with so many devices."""
    code = (
        "import jax, json, pathlib, ml_collections\n"
        "from drenet_jax.training.loop import train_and_evaluate\n"
        f"assert jax.device_count() == {devices}\n"
        f"config = ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n"
        f"train_and_evaluate(config, pathlib.Path({str(workdir)!r}))\n"
    )
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=REPOSITORY)


def _assert_equal(found, expected):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True
    ):
        np.testing.assert_array_equal(b, a, err_msg=jax.tree_util.keystr(path))


def test_a_run_that_was_killed_ends_bit_for_bit_like_one_that_was_not(config, tmp_path):
    config.train.epochs = 3
    whole = tmp_path / "whole"
    assert _start(config, whole, 2).wait() == 0
    killed = tmp_path / "killed"
    process = _start(config, killed, 2)
    while not has_checkpoint(killed):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)  # some steps on
    process.kill()
    process.wait()
    stood_at = _weights(killed)[0]
    assert _start(config, killed, 2).wait() == 0
    (last, expected), (step, found) = _weights(whole), _weights(killed)
    assert stood_at < step == last
    _assert_equal(found, expected)
    assert (killed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_a_run_that_was_stopped_ends_bit_for_bit_like_one_that_was_not(config, trained, tmp_path):
    config.train.steps = 3
    train_and_evaluate(config, tmp_path)
    step, _ = _weights(tmp_path)
    assert step == 3
    config.train.steps = 0
    train_and_evaluate(config, tmp_path)
    (whole_step, whole), (step, resumed) = _weights(trained), _weights(tmp_path)
    assert step == whole_step > 3
    _assert_equal(resumed, whole)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_device_ends_like_eight(accumulate, config, tmp_path):
    assert jax.device_count() == 8
    config.data.batch_size = 8 * accumulate
    config.train.accumulate = accumulate
    config.train.steps = 3
    train_and_evaluate(config, tmp_path / "eight")
    assert _start(config, tmp_path / "one", 1).wait() == 0
    (_, eight), (_, one) = _weights(tmp_path / "eight"), _weights(tmp_path / "one")
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(eight), strict=True
    ):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_a_finished_run_called_again_does_nothing(config, trained, capsys):
    before = (trained / "metrics.jsonl").read_bytes()
    train_and_evaluate(config, trained)
    assert "nothing is left to do" in capsys.readouterr().out
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_the_log_has_the_losses_and_the_validation_of_each_epoch(trained, prepared):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    n = open_data(prepared).n_slices["train"]
    assert [line["step"] for line in lines] == [-(-n // 8)]
    assert {"loss", "raw", "concat", "parts", "rank", "learning_rate"} <= lines[0]["train"].keys()
    assert 0 <= lines[0]["validation"]["auc"] <= 1
    assert lines[0]["validation"]["cross_entropy"] > 0


def test_training_never_opens_the_test_split(config, tmp_path, monkeypatch):
    opened = []
    records = batches._records

    def watched(data, split):
        opened.append(split)
        return records(data, split)

    monkeypatch.setattr(batches, "_records", watched)
    config.train.steps = 1
    train_and_evaluate(config, tmp_path)
    assert set(opened) == {"train", "validation"}


def test_another_config_in_the_same_workdir_is_refused_by_field(config, trained):
    config.model.width = 8
    config.seed = 5
    with pytest.raises(InputError, match=r"model\.width 4 there, 8 now; seed 0 there, 5 now"):
        train_and_evaluate(config, trained)


def test_data_that_were_prepared_anew_are_refused(config, trained, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    path = tmp_path / "data" / "split.json"
    persons = json.loads(path.read_text())
    persons["train"], persons["test"] = persons["test"], persons["train"]
    path.write_text(json.dumps(persons))
    config.data.dir = str(tmp_path / "data")
    with pytest.raises(InputError, match="the data were prepared anew"):
        train_and_evaluate(config, trained)
    with pytest.raises(InputError, match="may be known to the model"):
        evaluate_split(trained, "test", tmp_path, str(tmp_path / "data"))


def test_a_run_goes_on_with_data_that_have_moved(config, trained, prepared, tmp_path):
    config.data.dir = os.path.relpath(prepared)
    train_and_evaluate(config, trained)


def test_fresh_keeps_the_old_run_if_the_new_one_cannot_start(config, trained):
    config.init.weights = "/nowhere"
    with pytest.raises(InputError, match="holds no checkpoint"):
        train_and_evaluate(config, trained, fresh=True)
    assert has_checkpoint(trained)


def test_weights_with_the_labels_in_another_order_are_refused(config, trained, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    path = tmp_path / "data" / "dataset.json"
    settings = json.loads(path.read_text())
    settings["labels"].reverse()
    path.write_text(json.dumps(settings))
    config.data.dir = str(tmp_path / "data")
    config.init.weights = str(trained)
    with pytest.raises(InputError, match="prepare the data with --labels="):
        train_and_evaluate(config, tmp_path / "run")


def test_fresh_starts_over(config, tmp_path):
    config.train.steps = 1
    train_and_evaluate(config, tmp_path)
    config.seed = 1
    train_and_evaluate(config, tmp_path, fresh=True)
    step, _ = _weights(tmp_path)
    assert step == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(config, tmp_path, monkeypatch):
    honest = loop.train_batches

    def poisoned(*args, **kwargs):
        for step, (image, label) in enumerate(honest(*args, **kwargs), 1):
            # A label out of range makes the cross-entropy NaN.
            yield image, label if step < 3 else np.full_like(label, 99)

    monkeypatch.setattr(loop, "train_batches", poisoned)
    with pytest.raises(InputError, match=r"not finite at step 3 \(last good checkpoint: none\)"):
        train_and_evaluate(config, tmp_path)


def test_weights_of_another_run_are_the_start(config, trained, tmp_path):
    config.init.weights = str(trained)
    config.optimizer.learning_rate = 0.0
    config.optimizer.weight_decay = 0.0
    config.train.steps = 1
    train_and_evaluate(config, tmp_path)
    (_, start), (_, end) = _weights(trained), _weights(tmp_path)
    for a, b in zip(jax.tree.leaves(start["params"]), jax.tree.leaves(end["params"]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.dir", "/nowhere", "is not a folder that prepare wrote"),
        ("data.fill", "sometimes", "must be one of train, always, never"),
        ("data.batch_size", 12, "must be a multiple of the 8 devices"),
        ("model.image_size_px", 128, "holds slices of 96 pixels"),
        ("train.epochs", 0, "must be 1 or more"),
        ("optimizer.name", "lion", "must be sgd or adamw"),
        ("evaluation.positive_label", "flu", "names none of the labels"),
        ("init.weights", "/nowhere", "holds no checkpoint"),
    ],
)
def test_a_config_that_does_not_fit_is_told_by_field(field, value, message, config, tmp_path):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message) as caught:
        train_and_evaluate(config, tmp_path)
    said = str(caught.value).replace("'", "")
    assert (value if field == "data.dir" else f"--config.{field}={value}") in said
    assert not list(tmp_path.iterdir())
