"""The pointing game: hits where they are planted, chance where there is nothing to know."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from drenet_jax.ct.orientation import Orientation
from drenet_jax.data.batches import CropGeometry, crop_geometries
from drenet_jax.data.lesions import read_lesions
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.evaluation.pointing_game import Points, play, pointing_metrics
from drenet_jax.evaluation.predictions import SlicePredictions

SIZE_PX = 64
SETTINGS = MetricSettings(bootstrap_draws=200)


def _slices(persons, slices_each, probabilities=None):
    n = persons * slices_each
    patient = np.repeat([f"p{i}" for i in range(persons)], slices_each)
    index = np.tile(np.arange(slices_each), persons)
    if probabilities is None:
        probabilities = np.tile([0.7, 0.3], (n, 1))
    return SlicePredictions(
        labels=("covid", "healthy"),
        patient_id=patient,
        slice_name=np.array([f"{i}.dcm" for i in index]),
        slice_index=index,
        site=np.array([""] * n),
        label=np.zeros(n, np.int64),
        probabilities=np.asarray(probabilities),
    )


def _places(slices, orientation=Orientation(), box=(10, 20, 74, 148), size=(200, 180)):  # noqa: B008
    """Crops of 64 × 128 pixels of the slice as stored, of lungs that fill them."""
    return [
        CropGeometry(
            patient_id=str(slices.patient_id[i]),
            slice_name=str(slices.slice_name[i]),
            slice_index=int(slices.slice_index[i]),
            box=box,
            size=size,
            orientation=orientation,
            lung_mask=np.ones((SIZE_PX, SIZE_PX), bool),
        )
        for i in range(len(slices))
    ]


def _scored(heat_maps, boxes=None, scores=None):
    n = len(heat_maps)
    return {
        "heat_maps": heat_maps,
        "boxes": np.zeros((n, 0, 4)) if boxes is None else boxes,
        "scores": np.zeros((n, 0)) if scores is None else scores,
    }


def test_the_maximum_of_the_own_class_and_the_best_box_are_taken():
    maps = np.zeros((1, 2, 4, 8))
    maps[0, 0, 1, 6], maps[0, 1, 3, 0] = 2.0, 5.0
    boxes = np.array([[[0.0, 0, 10, 10], [20, 30, 40, 50]]])
    points = Points.of(_scored(maps, boxes, np.array([[0.1, 0.3]])), SIZE_PX)
    np.testing.assert_array_equal(points.heat_map[0], [[24, 52], [56, 4]])
    np.testing.assert_array_equal(points.box, [[30, 40]])


@pytest.mark.parametrize(
    "orientation",
    [Orientation(*map(bool, (a, b, c))) for a in (0, 1) for b in (0, 1) for c in (0, 1)],
)
def test_a_lesion_of_the_stored_slice_is_hit_however_the_slice_was_turned(orientation):
    """The model points at a cell; the lesion is where that cell is in the file."""
    slices = _slices(1, 1)
    (place,) = _places(slices, orientation)
    maps = np.zeros((1, 2, 8, 8))
    maps[0, 0, 2, 5] = 1.0
    to_canonical = np.zeros((180, 200) if orientation.transpose else (200, 180))
    top, left, bottom, right = orientation.canonical_box(place.box, place.size)
    cell_y, cell_x = (bottom - top) / 8, (right - left) / 8
    y, x = int(top + 2 * cell_y), int(left + 5 * cell_x)
    to_canonical[y : y + int(cell_y), x : x + int(cell_x)] = 1
    # As the file has it: the turn undone, by what `Orientation.to_canonical` does itself.
    at = np.indices(place.size)
    stored = np.zeros(place.size)
    rows, columns = orientation.to_canonical(at[0]), orientation.to_canonical(at[1])
    stored[rows[to_canonical > 0], columns[to_canonical > 0]] = 1
    ys, xs = np.nonzero(stored)
    lesion = (float(ys.min()), float(xs.min()), float(ys.max() + 1), float(xs.max() + 1))
    points = Points.of(_scored(maps), SIZE_PX)
    (hit,) = play(slices, points, [place], {("p0", "0.dcm"): [lesion]})
    assert hit.heat_map
    assert hit.box is None
    assert hit.chance == pytest.approx(1 / 64)
    maps[0, 0, 2, 5], maps[0, 0, 2, 4] = 0, 1
    (missed,) = play(
        slices, Points.of(_scored(maps), SIZE_PX), [place], {("p0", "0.dcm"): [lesion]}
    )
    assert not missed.heat_map


def test_a_map_of_nothing_is_a_miss_even_where_the_first_cell_is_a_lesion():
    slices = _slices(1, 1)
    points = Points.of(_scored(np.zeros((1, 2, 4, 4))), SIZE_PX)
    (hit,) = play(slices, points, _places(slices), {("p0", "0.dcm"): [(10, 20, 40, 90)]})
    assert not hit.heat_map


def test_random_points_hit_as_often_as_chance_says():
    rng = np.random.default_rng(0)
    slices = _slices(100, 8)
    maps = rng.random((len(slices), 2, 32, 32))
    lesions = {}
    for i in range(len(slices)):
        y, x = rng.integers(10, 50).item(), rng.integers(20, 100).item()
        lesions[f"{slices.patient_id[i]}", f"{slices.slice_name[i]}"] = [(y, x, y + 24, x + 48)]
    pointed = play(slices, Points.of(_scored(maps), SIZE_PX), _places(slices), lesions)
    game = pointing_metrics(slices, pointed, SETTINGS)
    assert game["n_slices"] == 800
    assert game["heat_map"]["chance"]["value"] == pytest.approx(24 * 48 / (64 * 128), abs=0.02)
    difference = game["heat_map"]["difference"]
    assert difference["low"] < 0 < difference["high"]
    assert game["box"] is None


def test_the_top_slices_are_those_of_the_own_label():
    probability = np.tile([0.1, 0.9, 0.2, 0.8, 0.7, 0.3], 2)
    slices = _slices(2, 6, np.stack([probability, 1 - probability], axis=1))
    marked = {(f"p{p}", f"{i}.dcm"): [(20, 30, 40, 60)] for p in (0, 1) for i in (1, 3)}
    maps = np.ones((len(slices), 2, 4, 4))
    pointed = play(slices, Points.of(_scored(maps), SIZE_PX), _places(slices), marked)
    game = pointing_metrics(slices, pointed, SETTINGS)["top_slices"]
    assert game["rate"]["value"] == pytest.approx(2 / 3)
    assert game["chance"]["value"] == pytest.approx(2 / 6)


def test_a_lesion_outside_the_crop_does_not_count_and_none_at_all_is_refused():
    slices = _slices(1, 2)
    points = Points.of(_scored(np.ones((2, 2, 4, 4))), SIZE_PX)
    lesions = {("p0", "0.dcm"): [(80, 20, 90, 40)], ("p0", "1.dcm"): [(70, 20, 90, 40)]}
    assert [hit.slice_name for hit in play(slices, points, _places(slices), lesions)] == ["1.dcm"]
    with pytest.raises(InputError, match="no slice of the split has a lesion"):
        play(slices, points, _places(slices), {("p1", "0.dcm"): [(10, 20, 40, 90)]})


def test_evaluate_explains_a_trained_model_by_the_phantoms_lesions(trained, prepared, tmp_path):
    metrics = evaluate_split(trained, "test", tmp_path, explain=True)
    game = json.loads((tmp_path / "metrics.json").read_text())["explain"]
    assert game == metrics["explain"]
    with (tmp_path / "explain.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == game["n_slices"] > 0
    for name in ("heat_map", "box", "chance"):
        mean = np.mean([float(row[name]) for row in rows])
        figure = game["heat_map"]["chance"] if name == "chance" else game[name]["rate"]
        assert figure["value"] == pytest.approx(mean)
    assert "Pointing game" in (tmp_path / "report.html").read_text()
    # Every slice of the records with a lesion in its crop is there.
    lesions = read_lesions(prepared / "lesions.csv")
    keys = {
        (place.patient_id, place.slice_name)
        for place in crop_geometries(open_data(prepared), "test")
    }
    assert {(row["patient_id"], row["slice_name"]) for row in rows} <= keys & set(lesions)


def test_a_lesion_s_pixels_are_brighter_in_the_records_than_its_surroundings(prepared):
    """The chain from the file to the crop: lesions of phantoms are denser than lung."""
    from drenet_jax.data.batches import split_batches
    from drenet_jax.evaluation.pointing_game import _in_crop

    data = open_data(prepared)
    lesions = read_lesions(prepared / "lesions.csv")
    inside, outside = [], []
    for split in ("train", "validation", "test"):
        images = np.concatenate(
            [batch["image"] for batch in split_batches(data, split, batch_size=8, fill="never")]
        )
        for place, image in zip(crop_geometries(data, split), images, strict=True):
            boxes = lesions.get((place.patient_id, place.slice_name), [])
            mark = np.zeros_like(place.lung_mask)
            for box in boxes:
                y0, x0, y1, x1 = np.round(np.clip(_in_crop(box, place), 0, len(mark))).astype(int)
                mark[y0:y1, x0:x1] = True
            if boxes and (mark & place.lung_mask).sum() > 20:
                inside.append(image[mark & place.lung_mask].mean())
                outside.append(image[~mark & place.lung_mask].mean())
    assert len(inside) > 5
    assert np.mean(np.greater(inside, outside)) > 0.9


def test_without_a_table_of_lesions_the_sentence_says_where_to_name_one(
    trained, prepared, tmp_path
):
    hidden = prepared / "lesions.csv"
    hidden.rename(hidden.with_suffix(".away"))
    try:
        with pytest.raises(InputError, match="--lesions"):
            evaluate_split(trained, "test", tmp_path, explain=True)
    finally:
        hidden.with_suffix(".away").rename(hidden)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient_id,slice_name\np,1\n", "no column y0, x0, y1, x1"),
        ("patient_id,slice_name,y0,x0,y1,x1\np,1,5,5,5,9\n", "line 2: the box 5, 5, 5, 9"),
        ("patient_id,slice_name,y0,x0,y1,x1\np,1,5,five,6,9\n", "line 2: y0, x0, y1 and x1 must"),
        ("patient_id,slice_name,y0,x0,y1,x1\np,1,5\n", "line 2: y0, x0, y1 and x1 must"),
        ("patient_id,slice_name,y0,x0,y1,x1\n", "names no lesion"),
    ],
)
def test_a_broken_table_of_lesions_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "lesions.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_lesions(path)


def test_a_missing_table_is_reported(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_lesions(tmp_path / "none.csv")
