"""From files to a diagnosis: what the pipeline returns, and that all paths agree."""

from __future__ import annotations

import json

import numpy as np
import pytest

import drenet_jax
from drenet_jax.ct.lung_crops import to_source
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.data.batches import split_batches
from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.models.checkpoints import Checkpoints, save_converted


@pytest.fixture(scope="module")
def pipeline(trained):
    return drenet_jax.load(trained)


@pytest.fixture(scope="module")
def person(phantoms):
    return read_cohort(phantoms / "cohort.csv").persons[0]


def test_slices_have_the_shapes_and_types_of_the_design(pipeline):
    images = np.random.default_rng(0).integers(0, 255, (11, 96, 96), np.uint8)
    outputs = pipeline.slices(images)
    assert outputs["probabilities"].shape == outputs["logits"].shape == (11, 3)
    assert outputs["raw_logits"].shape == (11, 3)
    assert outputs["boxes"].shape == (11, 2, 4)
    assert outputs["scores"].shape == (11, 2)
    for array in outputs.values():
        assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, rtol=1e-5)


def test_a_slice_is_scored_alike_in_any_batch(pipeline):
    images = np.random.default_rng(0).integers(0, 255, (11, 96, 96), np.uint8)
    together = pipeline.slices(images)
    for i in (0, 7, 10):
        alone = pipeline.slices(images[i : i + 1])
        np.testing.assert_allclose(alone["logits"][0], together["logits"][i], atol=1e-4)
        np.testing.assert_array_equal(alone["boxes"][0], together["boxes"][i])


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 90, 96), np.uint8), np.zeros((2, 96, 96)), np.zeros((0, 96, 96), np.uint8)],
)
def test_images_that_do_not_fit_are_refused(images, pipeline):
    with pytest.raises(InputError):
        pipeline.slices(images)


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [("hidden", (16,), "params/mlp1/kernel has shape"), ("hidden", (8, 8), "mlp2/bias is missing")],
)
def test_weights_that_do_not_fit_their_config_are_reported_by_name(
    trained, tmp_path, field, value, fault
):
    with Checkpoints.of(trained, flag="--workdir") as checkpoints:
        step = checkpoints.best_step
        meta = checkpoints.meta(step)
        weights = checkpoints.weights(step, checkpoints.weight_shapes(step))
    meta.config.model[field] = value
    save_converted(tmp_path, weights, meta)
    with pytest.raises(InputError, match=f"{tmp_path}.*does not fit the model: .*{fault}"):
        drenet_jax.load(tmp_path)


def test_a_person_is_the_mean_of_the_kept_slices(pipeline, person):
    result = pipeline.person(person.paths[0])
    prepared = prepare_person(person.paths, pipeline.predictor.meta.ct)
    assert [row["name"] for row in result["slices"]] == [row.name for row in prepared.kept]
    assert [row["name"] for row in result["excluded"]] == [row.name for row in prepared.excluded]
    assert result["person"]["n_slices"] == len(prepared.kept)
    for label, p in result["person"]["probabilities"].items():
        mean = np.mean([row["probabilities"][label] for row in result["slices"]])
        assert p == pytest.approx(mean, abs=1e-6)
    assert result["person"]["label"] == max(
        result["person"]["probabilities"], key=result["person"]["probabilities"].get
    )
    assert result["model"]["labels"] == list(pipeline.predictor.meta.labels)
    json.dumps(result, allow_nan=False)


def test_boxes_lie_in_the_lung_crop_of_the_original_slice(pipeline, person):
    prediction = pipeline.predict(person.paths[0])
    for row, picture in zip(prediction.result["slices"], prediction.pictures, strict=True):
        y0, x0, y1, x1 = picture.source_box
        assert len(row["boxes"]) == 2
        for box in row["boxes"]:
            assert y0 <= box["y0"] < box["y1"] <= y1
            assert x0 <= box["x0"] < box["x1"] <= x1
            assert 0 <= box["score"] <= 1


def test_a_box_of_the_input_is_drawn_where_it_was_cut_out():
    boxes = np.array([[0, 0, 50, 100], [-10, 25, 60, 75]])
    # What reaches over the crop's border is clipped to it.
    wanted = [[100.0, 200.0, 200.0, 500.0], [100.0, 275.0, 220.0, 425.0]]
    np.testing.assert_array_equal(to_source(boxes, (100, 200, 300, 500), 100), wanted)


@pytest.mark.parametrize("fill", ["train", "always", "none"])
def test_predict_sees_the_images_of_the_records(fill, pipeline, prepared, phantoms, monkeypatch):
    monkeypatch.setitem(pipeline.predictor.meta.config.data, "fill", fill)
    data = open_data(prepared)
    cohort = {person.patient_id: person for person in read_cohort(phantoms / "cohort.csv").persons}
    for batch in split_batches(data, "test", batch_size=64, fill=fill):
        scored = pipeline.slices(batch["image"])
        patient = batch["patient_id"][0]
        result = pipeline.person(cohort[patient].paths[0])
        rows = {row["name"]: row["probabilities"] for row in result["slices"]}
        for i, name in enumerate(batch["slice_name"]):
            if batch["patient_id"][i] == patient:
                np.testing.assert_allclose(
                    list(rows[name].values()), scored["probabilities"][i], atol=1e-5
                )


def test_calibrated_probabilities_are_those_of_the_checkpoint_s_temperature(trained, monkeypatch):
    monkeypatch.setattr(Checkpoints, "metrics", lambda self, step: {"temperature": 2.5})
    calibrated = drenet_jax.load(trained, runtime="jax", calibrated=True)
    pipeline = drenet_jax.load(trained, runtime="jax")
    images = np.random.default_rng(0).integers(0, 255, (3, 96, 96), np.uint8)
    outputs, plain = calibrated.slices(images), pipeline.slices(images)
    np.testing.assert_array_equal(outputs["logits"], plain["logits"])
    powers = plain["probabilities"] ** (1 / 2.5)
    np.testing.assert_allclose(
        outputs["probabilities"], powers / powers.sum(axis=1, keepdims=True), rtol=1e-5
    )
    assert (
        calibrated.predictor.identity["temperature"],
        pipeline.predictor.identity["temperature"],
    ) == (2.5, 1.0)


@pytest.mark.parametrize("metrics", [{"auc": None}, {"auc": 1.0, "temperature": None}])
def test_a_checkpoint_without_a_temperature_is_not_calibrated(trained, monkeypatch, metrics):
    monkeypatch.setattr(Checkpoints, "metrics", lambda self, step: metrics)
    with pytest.raises(InputError, match="has no temperature"):
        drenet_jax.load(trained, calibrated=True)
