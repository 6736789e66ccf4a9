"""The log of a run: lines that survive kills, events that TensorBoard reads, pictures."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import tensorflow as tf

from drenet_jax.training.run_log import RunLog, proposal_grid


def _events(workdir):
    files = sorted((workdir / "tensorboard").iterdir())
    records = (r.numpy() for path in files for r in tf.data.TFRecordDataset(str(path)))
    return [tf.compat.v1.Event.FromString(record) for record in records]


def _scalars(workdir):
    return {
        (value.tag, event.step): float(tf.make_ndarray(value.tensor))
        for event in _events(workdir)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "scalars"
    }


def _log_step(log, step):
    log.step(step, {"loss": step / 2, "learning_rate": 0.125})


def _validated(log, step):
    log.validation(step, step / 3, {"loss": 1.5}, {"auc": None, "cross_entropy": 0.25})


def test_a_validation_is_one_line_of_json(tmp_path):
    log = RunLog(tmp_path, 0)
    _validated(log, 1)
    _validated(log, 2)
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert lines[0] == (
        '{"step": 1, "epoch": 0.333, "train": {"loss": 1.5}, '
        '"validation": {"auc": null, "cross_entropy": 0.25}}'
    )


def test_scalars_of_steps_and_validations_become_events(tmp_path):
    log = RunLog(tmp_path, 0)
    _log_step(log, 1)
    _validated(log, 1)
    log.close()
    assert _events(tmp_path)[0].file_version == "brain.Event:2"
    assert _scalars(tmp_path) == {
        ("train/loss", 1): 0.5,
        ("train/learning_rate", 1): 0.125,
        ("validation/cross_entropy", 1): 0.25,  # an AUC that is not defined is not drawn
    }


def test_events_are_on_disk_after_a_validation(tmp_path):
    log = RunLog(tmp_path, 0)
    _log_step(log, 1)
    _validated(log, 1)
    assert ("validation/cross_entropy", 1) in _scalars(tmp_path)
    log.close()


def test_a_run_that_goes_on_drops_later_steps(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        _log_step(log, step)
        _validated(log, step)
    log.close()

    log = RunLog(tmp_path, 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    _log_step(log, 3)
    log.close()
    scalars = _scalars(tmp_path)
    assert {step for tag, step in scalars if tag == "train/loss"} == {1, 2, 3}
    assert {step for tag, step in scalars if tag == "validation/cross_entropy"} == {1, 2}
    assert [e.step for e in _events(tmp_path)].count(3) == 2  # the loss and the learning rate


def test_a_run_from_the_beginning_drops_all(tmp_path):
    log = RunLog(tmp_path, 0)
    _log_step(log, 1)
    _validated(log, 1)
    log.close()
    log = RunLog(tmp_path, 0)
    log.close()
    assert not (tmp_path / "metrics.jsonl").read_text()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert not _scalars(tmp_path)


@pytest.mark.parametrize("lost_bytes", [1, 9, 40])
def test_an_event_that_a_kill_tore_is_dropped(tmp_path, lost_bytes):
    log = RunLog(tmp_path, 0)
    _log_step(log, 1)
    _log_step(log, 2)
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-lost_bytes])

    log = RunLog(tmp_path, 5)
    _log_step(log, 6)
    log.close()
    assert set(_scalars(tmp_path)) == {
        ("train/loss", 1),
        ("train/learning_rate", 1),
        ("train/loss", 2),
        ("train/loss", 6),
        ("train/learning_rate", 6),
    }


def test_a_picture_comes_back_as_it_was(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    log = RunLog(tmp_path, 0)
    log.image(4, image)
    log.close()
    event = _events(tmp_path)[-1]
    (value,) = event.summary.value
    width, height, png = tf.make_ndarray(value.tensor)
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert (event.step, int(height), int(width)) == (4, 20, 30)
    np.testing.assert_array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), image)


def test_proposals_are_drawn_at_their_places():
    images = np.full((3, 300, 300), 100, np.uint8)
    boxes = np.array([[[20, 40, 120, 200]]] * 2 + [[[-50, -50, 700, 700]]], float)
    picture = proposal_grid(images, boxes, np.full((3, 1), 0.5))
    assert picture.shape == (604, 604, 3)  # with a gap between the slices
    red = (picture == (255, 40, 40)).all(axis=-1)
    for tile in (red[:300, :300], red[:300, 304:]):
        rows, columns = np.flatnonzero(tile.any(axis=1)), np.flatnonzero(tile.any(axis=0))
        # Lines of two or three pixels lie around the edge.
        assert abs(rows[0] - 20) <= 1
        assert abs(rows[-1] - 119) <= 1
        assert abs(columns[0] - 40) <= 1
        assert abs(columns[-1] - 199) <= 1
    assert not red[304:, 304:].any()  # three slices in a grid of four
    assert red[304, :300].all()  # a box over the edge is drawn along it


def test_small_slices_without_proposals_make_a_picture_too():
    images = np.arange(2 * 64 * 64, dtype=np.uint8).reshape(2, 64, 64)
    picture = proposal_grid(images, np.zeros((2, 0, 4)), np.zeros((2, 0)))
    assert picture.shape == (256, 516, 3)
    np.testing.assert_array_equal(picture[::4, :256:4, 0], images[0])
