"""A run as a whole: it goes on where it stopped, and refuses what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from drenet_jax.data import batches
from drenet_jax.data.records import open_data
from drenet_jax.errors import InputError
from drenet_jax.models.build import build_model, variable_shapes
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.training import loop
from drenet_jax.training.loop import train_and_evaluate

REPOSITORY = Path(__file__).resolve().parents[2]


def _weights(workdir):
    checkpoints = Checkpoints.of(workdir, flag="--workdir")
    step = checkpoints.latest_step
    meta = checkpoints.meta(step)
    weights = checkpoints.weights(step, variable_shapes(build_model(meta.config, len(meta.labels))))
    checkpoints.close()
    return step, weights


@pytest.fixture
def config(tiny_config, prepared):
    tiny_config.data.dir = str(prepared)
    tiny_config.train.epochs = 1
    return tiny_config


def test_a_run_that_was_stopped_ends_bit_for_bit_like_one_that_was_not(config, trained, tmp_path):
    config.train.steps = 3
    train_and_evaluate(config, tmp_path)
    step, _ = _weights(tmp_path)
    assert step == 3
    config.train.steps = 0
    train_and_evaluate(config, tmp_path)
    (whole_step, whole), (step, resumed) = _weights(trained), _weights(tmp_path)
    assert step == whole_step > 3
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(resumed), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def test_one_device_ends_like_eight(config, tmp_path):
    assert jax.device_count() == 8
    config.train.steps = 3
    train_and_evaluate(config, tmp_path / "eight")
    code = (
        "import jax, json, pathlib, ml_collections\n"
        "from drenet_jax.training.loop import train_and_evaluate\n"
        "assert jax.device_count() == 1\n"
        f"config = ml_collections.ConfigDict(json.loads({config.to_json()!r}))\n"
        f"train_and_evaluate(config, pathlib.Path({str(tmp_path / 'one')!r}))\n"
    )
    environment = os.environ | {"XLA_FLAGS": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=REPOSITORY)
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
        ("evaluation.batch_size", 3, "must be a multiple of the 8 devices"),
        ("init.weights", "/nowhere", "holds no checkpoint"),
    ],
)
def test_a_config_that_does_not_fit_is_told_by_field(field, value, message, config, tmp_path):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message) as caught:
        train_and_evaluate(config, tmp_path)
    assert f"--config.{field}={value}" in str(caught.value).replace("'", "")
