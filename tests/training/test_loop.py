"""A run as a whole: it goes on where it stopped, and refuses what does not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest

from drenet_jax.data import batches
from drenet_jax.data.prepared_data import open_data, write_fold
from drenet_jax.errors import InputError
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.models.build import build_model, init_variables, variable_shapes
from drenet_jax.models.checkpoints import Checkpoints, has_checkpoint
from drenet_jax.models.warm_start import start_from
from drenet_jax.training import loop, validation
from drenet_jax.training.loop import train_and_evaluate
from drenet_jax.training.validation import Validation


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


def _assert_equal(actual, expected):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True
    ):
        np.testing.assert_array_equal(b, a, err_msg=jax.tree_util.keystr(path))


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


@pytest.mark.slow
def test_a_run_with_an_average_validates_saves_and_resumes_it(config, tmp_path, monkeypatch):
    config.model = {
        "name": "resnet18",
        "width": 2,
        "image_size_px": 96,
        "dropout": 0.0,
        "dtype": "float32",
    }
    config.train.update(ema_decay=0.99, steps=3)
    validated = []
    score = validation.score_split

    def watched(scorer, variables, *args, **kwargs):
        validated.append(jax.tree.map(lambda x: np.array(x[0]), variables))
        return score(scorer, variables, *args, **kwargs)

    monkeypatch.setattr(validation, "score_split", watched)
    train_and_evaluate(config, tmp_path / "whole")
    config.train.steps = 2
    train_and_evaluate(config, tmp_path / "resumed")
    config.train.steps = 3
    train_and_evaluate(config, tmp_path / "resumed")
    (_, whole), (_, resumed) = (_weights(tmp_path / name) for name in ("whole", "resumed"))
    _assert_equal(resumed, whole)
    _assert_equal(validated[0], whole)
    _assert_equal(validated[-1], whole)
    config.train.ema_decay = 0.0
    with pytest.raises(InputError, match=r"train\.ema_decay 0.99 there, 0.0 now"):
        train_and_evaluate(config, tmp_path / "whole")


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


def test_the_epochs_of_a_run_may_change_unless_its_cosine_ends_with_them(config, trained):
    checks = loop.check_same_run
    with Checkpoints.of(trained, flag="--workdir") as checkpoints:
        meta = checkpoints.meta(checkpoints.latest_step)
    longer = dataclasses.replace(meta, config=meta.config.copy_and_resolve_references())
    longer.config.train.epochs = 7
    checks(meta, longer, str(trained))
    for side in (meta, longer):
        side.config.optimizer.schedule = "cosine"
    with pytest.raises(InputError, match=r"train\.epochs 1 there, 7 now"):
        checks(meta, longer, str(trained))


def test_data_in_other_settings_and_the_workdir_of_another_model_are_refused(
    config, trained, prepared, tmp_path
):
    shutil.copytree(prepared, tmp_path / "data")
    path = tmp_path / "data" / "dataset.json"
    settings = json.loads(path.read_text())
    settings["ct"]["window_level_hu"] -= 100
    path.write_text(json.dumps(settings))
    config.data.dir = str(tmp_path / "data")
    with pytest.raises(InputError, match="prepared anew, with other persons, splits or settings"):
        train_and_evaluate(config, trained)
    config.data.dir = str(prepared)
    config.model.context = "none"
    with pytest.raises(InputError, match=r"model\.context 'weighted' there, 'none' now"):
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
    with pytest.raises(InputError, match=r"persons that .* was trained or selected on"):
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


@pytest.mark.slow
def test_fresh_starts_over(config, tmp_path):
    config.train.steps = 2
    train_and_evaluate(config, tmp_path)
    config.data.shuffle_buffer -= 1
    config.train.steps = 1
    train_and_evaluate(config, tmp_path, fresh=True)
    step, _ = _weights(tmp_path)
    assert step == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_nan_in_a_batch_stops_the_run_and_names_the_step_and_the_last_good_checkpoint(
    config, trained, tmp_path, monkeypatch
):
    honest, stood_at = loop.train_batches, _weights(trained)[0]
    shutil.copytree(trained, tmp_path / "run")

    def poisoned(*args, **kwargs):
        for i, (place, image, label) in enumerate(honest(*args, **kwargs), 1):
            # A label out of range makes the cross-entropy NaN.
            yield place, image, label if i < 3 else np.full_like(label, 99)

    monkeypatch.setattr(loop, "train_batches", poisoned)
    config.train.epochs = 2
    with pytest.raises(
        InputError,
        match=rf"not finite at step {stood_at + 3} \(last good checkpoint: step {stood_at}\)",
    ):
        train_and_evaluate(config, tmp_path / "run")


@pytest.mark.parametrize("at", [1, 2])
def test_a_step_that_does_not_fit_the_memory_is_reported(at, config, tmp_path, monkeypatch):
    honest = loop._check_finite
    config.train.steps = 2

    def full(metrics, step, *rest):
        # Where an error of the devices comes to light: when the host reads what they computed.
        if step == at:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying")
        honest(metrics, step, *rest)

    monkeypatch.setattr(loop, "_check_finite", full)
    with pytest.raises(InputError, match="fit the memory") as caught:
        train_and_evaluate(config, tmp_path)
    for field in ("--config.data.batch_size=8", "--config.train.accumulate=1"):
        assert field in str(caught.value)


@pytest.mark.slow
def test_a_run_that_gets_no_better_stops_and_stays_so(config, tmp_path, monkeypatch, capsys):
    as_ever = Validation({"auc": 0.5, "cross_entropy": 1.0}, None, None)
    monkeypatch.setattr(loop, "validate", lambda *args: as_ever)
    config.train.epochs = 9
    config.train.patience_epochs = 1
    train_and_evaluate(config, tmp_path)
    log, step = tmp_path / "metrics.jsonl", _weights(tmp_path)[0]
    assert [int(json.loads(line)["epoch"]) for line in log.read_text().splitlines()] == [1, 2]
    train_and_evaluate(config, tmp_path)
    assert "nothing is left to do" in capsys.readouterr().out
    # Nor does it forget when the best was.
    config.train.patience_epochs = 2
    train_and_evaluate(config, tmp_path)
    assert len(log.read_text().splitlines()) == 3
    assert _weights(tmp_path)[0] > step


def test_the_backbone_of_another_kind_of_model_is_the_start(config, trained, prepared, tmp_path):
    rival = config.copy_and_resolve_references()
    rival.model = {
        "name": "resnet18",
        "width": 4,
        "image_size_px": 96,
        "dropout": 0.0,
        "dtype": "float32",
    }
    rival.init.update(weights=str(trained), parts="backbone")
    model, labels = build_model(rival, 3), ("other", "labels", "here")
    drawn = init_variables(model, 0)
    weights = start_from(str(trained), model, drawn, labels, parts="backbone")
    _, expected = _weights(trained)
    _assert_equal(weights["params"]["backbone"], expected["params"]["backbone"])
    of_image = jax.tree.map(lambda x: x[0], expected["batch_stats"]["backbone"])
    _assert_equal(weights["batch_stats"]["backbone"], of_image)
    _assert_equal(weights["params"]["head"], drawn["params"]["head"])
    rival.model.width = 8
    model = build_model(rival, 3)
    shapes = variable_shapes(model)
    with pytest.raises(InputError, match=r"is of a resnet18 of width 4, but .*model\.width=8"):
        start_from(str(trained), model, shapes, labels, parts="backbone")


@pytest.mark.slow
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
        ("data.fill", "sometimes", "must be one of train, always, never, none"),
        ("data.batch_size", 12, "must be a multiple of the 8 devices"),
        ("model.image_size_px", 128, "holds slices of 96 pixels"),
        ("train.epochs", 0, "must be 1 or more"),
        ("optimizer.name", "lion", "must be sgd or adamw"),
        ("evaluation.positive_label", "flu", "names none of the labels"),
        ("init.weights", "/nowhere", "holds no checkpoint"),
        ("init.parts", "head", "must be one of all, backbone"),
        ("optimizer.schedule", "line", "must be steps or cosine"),
        ("optimizer.backbone_factor", -0.5, "must be 0 or more"),
        ("optimizer.decay_factor", 0.0, "must be above 0"),
        ("optimizer.momentum", 1.0, "must be from 0 to below 1"),
        ("train.class_weights", "1,2", "must be none, balanced, or a number above 0 for each"),
        ("train.frozen_stages", 5, "must be from 0 to 4, the stages of resnet18"),
        ("train.patience_epochs", -1, "must be 0 or more"),
        ("train.tracker", "tensorboard", "must be one of none, wandb, mlflow"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_field(field, value, message, config, tmp_path):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(InputError, match=message) as caught:
        train_and_evaluate(config, tmp_path)
    message = str(caught.value).replace("'", "")
    assert (value if field == "data.dir" else f"--config.{field}={value}") in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("known", "split"), [("train", "validation"), ("train", "test"), ("validation", "test")]
)
def test_weights_that_know_persons_who_should_judge_them_are_refused(
    config, trained, prepared, tmp_path, known, split
):
    data = open_data(prepared)
    person = data.persons[known][0]
    members = {"train": data.persons["train"][1:], split: [person]}
    write_fold(tmp_path / "fold", data.fold(members, {"train": 20, split: 5}))
    config.data.dir = str(tmp_path / "fold")
    config.init.weights = str(trained)
    with pytest.raises(InputError, match=rf"pictures of 1 persons of the {split} .*'{person}' \("):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_knows_the_slices_of_its_run_and_of_the_weights_it_started_from(
    config, trained, prepared, tmp_path
):
    data = open_data(prepared)
    own = {split: data.digests.of_persons(data.persons[split]) for split in ("train", "validation")}
    with Checkpoints.of(trained, flag="") as checkpoints:
        first = checkpoints.digests(checkpoints.best_step)
    np.testing.assert_array_equal(first.trained, own["train"])
    np.testing.assert_array_equal(first.chosen, own["validation"])
    # Another data set of fewer persons, from the weights of the first.
    fold = data.fold(
        {"train": data.persons["train"][3:], "test": data.persons["test"]}, {"train": 20}
    )
    write_fold(tmp_path / "fold", fold)
    config.data.dir = str(tmp_path / "fold")
    config.init.weights = str(trained)
    config.train.steps = 1
    for steps in (1, 2):  # the second call goes on
        config.train.steps = steps
        train_and_evaluate(config, tmp_path / "run")
        with Checkpoints.of(tmp_path / "run", flag="") as checkpoints:
            again = checkpoints.digests(checkpoints.latest_step)
        np.testing.assert_array_equal(again.trained, own["train"])
        np.testing.assert_array_equal(again.chosen, own["validation"])
