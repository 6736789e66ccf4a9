"""What is drawn over a slice: in its place, to the pixel, and only where there is something."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drenet_jax.evaluation.overlays import (
    LESION_BOX_MIN_PROBABILITY,
    Layers,
    ScoredBox,
    SlicePicture,
    composite,
    crop_layers,
    layers,
)

RED = (255, 40, 40, 255)
GREY = (170, 170, 170, 255)


def box(y0, x0, y1, x1, score=0.9):
    return ScoredBox(y0, x0, y1, x1, score)


def picture(shape=(128, 128), source_box=(16, 16, 112, 112), boxes=(), **maps):
    source = np.full(shape, 90, np.uint8)
    return SlicePicture(7, "a.dcm", source, source_box, {"COVID-19": 1.0}, list(boxes), **maps)


def where(layer, colour):
    return (layer == np.array(colour)).all(axis=-1)


def edges_of(mask):
    """y0, x0, y1, x1 of the middle of a frame's lines."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    # A frame's corner column is red from top to bottom.
    line = np.flatnonzero(mask[(rows[0] + rows[-1]) // 2])
    half = (np.flatnonzero(np.diff(line) > 1)[0] + 1) / 2
    return rows[0] + half, columns[0] + half, rows[-1] + 1 - half, columns[-1] + 1 - half


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((128, 128), (512, 512)),
        ((256, 300), (512, 600)),
        ((512, 512), (512, 512)),
        ((1024, 1024), (1024, 1024)),
        ((4096, 2048), (2048, 1024)),
        ((32, 512), (128, 2048)),
    ],
)
def test_small_slices_are_enlarged_and_huge_ones_reduced_in_all_layers(shape, wanted):
    drawn = layers(picture(shape, (0, 0, 8, 8), heat_map=np.ones((3, 3), np.float32)))
    assert drawn.slice.shape == wanted
    assert drawn.heat.shape == drawn.marks.shape == (*wanted, 4)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(100, 1500), st.integers(100, 1500)),
    corners=st.tuples(*[st.floats(0.05, 0.6)] * 2, *[st.floats(0.25, 0.35)] * 2),
)
def test_a_box_is_drawn_where_it_is(shape, corners):
    (height, width), (y, x, h, w) = shape, corners
    wanted = np.array([y * height, x * width, (y + h) * height, (x + w) * width])
    marks = layers(picture(shape, (0, 0, 1, 1), [box(*wanted)])).marks
    by = np.array([*marks.shape[:2]]) / shape
    got = np.array(edges_of(where(marks, RED))) / [*by, *by]
    assert np.abs(got - wanted).max() <= 1 / by.min()


def test_only_boxes_above_the_threshold_are_drawn():
    boxes = [box(20, 20, 60, 60, LESION_BOX_MIN_PROBABILITY), box(20, 20, 60, 60, 0.1)]
    assert not where(layers(picture(boxes=boxes)).marks, RED).any()
    assert picture(boxes=boxes).lesion_boxes == []


def test_the_highest_score_comes_first():
    boxes = [box(0, 0, 9, 9, 0.85), box(0, 0, 9, 9, 0.97), box(0, 0, 9, 9, 0.2)]
    assert [box_.probability for box_ in picture(boxes=boxes).lesion_boxes] == [0.97, 0.85]


def test_a_box_over_the_edge_is_drawn_along_the_edge():
    marks = layers(picture(boxes=[box(-20, -20, 40, 150)])).marks
    assert where(marks, RED)[100, [0, 1, 510, 511]].all()


def test_a_score_over_the_edge_is_whole():
    for corners in ((-20, -20, 40, 40), (1, 100, 60, 127), (0, 125, 60, 128)):
        marks = layers(picture(boxes=[box(*corners)])).marks
        plate = np.argwhere(where(marks, (200, 30, 30, 255)))
        assert len(plate) > 300
        height, width = np.ptp(plate, axis=0) + 1
        assert 10 < height < 30
        assert width > 30


def test_the_crop_is_grey_and_between_the_marks_all_is_transparent():
    marks = layers(picture(boxes=[box(20, 30, 60, 90)])).marks
    assert where(marks, GREY)[4 * 64, 4 * 16]
    assert marks[4 * 40, 4 * 60, 3] == 0
    assert marks[2, 2, 3] == 0


def test_the_slice_is_not_drawn_upon():
    shown = picture(boxes=[box(20, 30, 60, 90)], heat_map=np.ones((3, 3), np.float32))
    before = shown.source.copy()
    drawn = layers(shown)
    np.testing.assert_array_equal(shown.source, before)
    assert (drawn.slice == 90).all()


@pytest.mark.parametrize("cells", [(5, 5), (14, 14), (14, 7)])
def test_a_heat_map_lies_over_the_lungs_crop_and_nowhere_else(cells):
    source_box = (20, 33, 100, 91)
    heat = layers(picture((128, 160), source_box, heat_map=np.ones(cells, np.float32))).heat
    wanted = np.zeros((512, 640), bool)
    wanted[80:400, 132:364] = True
    np.testing.assert_array_equal(heat[..., 3] == 255, wanted)
    assert not heat[~wanted].any()


@pytest.mark.parametrize("row", [0, 3, 6])
@pytest.mark.parametrize("column", [0, 2, 6])
def test_the_warmest_place_is_the_centre_of_the_warmest_cell(row, column):
    heat_map = np.zeros((7, 7), np.float32)
    heat_map[row, column] = 3.0
    shown = picture(source_box=(16, 30, 114, 121), heat_map=heat_map)
    wanted = 16 + (row + 0.5) * 14, 30 + (column + 0.5) * 13
    assert shown.peak_location == wanted
    opacity = layers(shown).heat[..., 3]
    places = np.argwhere(opacity == opacity.max())
    # A cell at the crop's border is as warm up to it.
    assert np.abs((places + 0.5) / 4 - wanted).min(axis=0).max() < 0.5
    assert opacity.max() >= 250


def test_heat_is_linear_between_the_centres_of_cells():
    heat_map = np.array([[0.0, 2.0]], np.float32)
    opacity = layers(picture((512, 512), (0, 0, 512, 512), heat_map=heat_map)).heat[9, :, 3]
    assert (opacity[:128] == 0).all()
    assert (opacity[384:] == 255).all()
    wanted = (np.arange(128, 384) + 0.5 - 128) / 256 * 255
    assert np.abs(opacity[128:384] - wanted).max() <= 0.5


def test_without_heat_there_is_no_layer():
    assert layers(picture()).heat is None
    cold = picture(heat_map=np.zeros((7, 7), np.float32))
    assert layers(cold).heat is None
    assert cold.peak_location is None


def test_heat_gets_lighter_and_is_never_red():
    ramp = np.linspace(0, 1, 50, dtype=np.float32)[None]
    drawn = layers(picture((512, 512), (0, 0, 512, 512), heat_map=ramp))
    colours = drawn.heat[9, 20:-20, :3]
    lightness = cv2.cvtColor(colours[None], cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert (np.diff(lightness) >= -1).all()
    assert not ((colours[:, 0] > 150) & (colours[:, 1] < 100)).any()


def test_the_composite_lays_heat_and_marks_over_the_slice():
    grey = np.full((1, 3), 100, np.uint8)
    heat = np.array([[[255, 255, 0, 255], [255, 255, 0, 51], [0, 0, 0, 0]]], np.uint8)
    marks = np.array([[[0, 0, 0, 0], [0, 0, 0, 0], RED]], np.uint8)
    drawn = Layers(grey, heat, marks)
    np.testing.assert_array_equal(
        composite(drawn, 1.0), [[[255, 255, 0], [131, 131, 80], [255, 40, 40]]]
    )
    np.testing.assert_array_equal(composite(drawn, 0.0)[0, :2], [[100] * 3] * 2)
    no_heat = composite(Layers(grey, None, marks), 0.6)
    np.testing.assert_array_equal(no_heat, composite(drawn, 0.0))


def test_a_crop_is_the_cut_of_the_slice_at_its_box():
    ramp = np.add.outer(np.arange(128), 2 * np.arange(64)).astype(np.uint8)
    shown = SlicePicture(0, "a", ramp, (0, 0, 128, 64), {}, [box(10.5, 20.25, 58.5, 44.25)])
    drawn = crop_layers(shown, 0)
    assert drawn.slice.shape == (192, 96)
    assert drawn.heat is None
    assert not drawn.marks.any()
    rows, columns = ((np.arange(n) + 0.5) / 4 for n in (192, 96))
    wanted = np.add.outer(10.5 + rows - 0.5, 2 * (20.25 + columns - 0.5))
    assert np.abs(drawn.slice - wanted).max() <= 0.5


def test_each_crop_has_its_own_heat_map():
    maps = np.zeros((3, 2, 2), np.float32)
    maps[0, 0, 1] = 5
    maps[1, 1, 0] = 0.001
    shown = picture(boxes=[box(10, 10, 58, 34)] * 3, crop_heat_maps=maps)
    first, second = (crop_layers(shown, k).heat[..., 3] for k in (0, 1))
    assert first.shape == (192, 96)
    assert first[0, -1] == second[-1, 0] == 255
    assert first[-1, 0] == second[0, -1] == 0
    assert crop_layers(shown, 2).heat is None


def test_a_crop_over_the_edge_or_without_extent_has_a_picture():
    shown = picture(boxes=[box(-10, -10, 20, 20), box(5, 5, 5, 5), box(120, 120, 140, 160)])
    for k in range(3):
        assert (crop_layers(shown, k).slice == 90).all()
