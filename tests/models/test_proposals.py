"""Anchors and suppression against plain NumPy."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from drenet_jax.models.proposals import (
    Level,
    anchor_boxes,
    can_select,
    pairwise_iou,
    select_top,
)

PAPER = (Level(32, 48, (1.0,), (1.0,)), Level(64, 96, (1.0,), (1.0,)))
NTS = tuple(
    Level(stride, size, scales, (0.667, 1.0, 1.5))
    for stride, size, scales in (
        (32, 48, (2 ** (1 / 3), 2 ** (2 / 3))),
        (64, 96, (2 ** (1 / 3), 2 ** (2 / 3))),
        (128, 192, (1.0, 2 ** (1 / 3), 2 ** (2 / 3))),
    )
)


def _plain_nms(scores, boxes, threshold, count):
    """Greedy suppression of one image, one box after the other."""
    order = np.lexsort((np.arange(len(scores)), -scores))
    picks = []
    while len(picks) < count:
        best, rest = order[0], order[1:]
        picks.append(best)
        (y0, x0, y1, x1), others = boxes[best], boxes[rest]
        height = np.minimum(y1, others[:, 2]) - np.maximum(y0, others[:, 0])
        width = np.minimum(x1, others[:, 3]) - np.maximum(x0, others[:, 1])
        both = np.maximum(height, 0) * np.maximum(width, 0)
        areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
        overlap = both / ((y1 - y0) * (x1 - x0) + areas - both)
        order = rest[overlap < threshold]
    return picks


def test_the_paper_has_245_anchors_and_nts_net_1614():
    assert len(anchor_boxes(PAPER, 448)) == 14 * 14 + 7 * 7 == 245
    assert len(anchor_boxes(NTS, 448)) == 1614


def test_anchors_stand_in_rows_around_the_centres_of_their_cells():
    boxes = anchor_boxes(PAPER, 448)
    np.testing.assert_array_equal(boxes[0], [-8, -8, 40, 40])
    np.testing.assert_array_equal(boxes[1], [-8, 24, 40, 72])
    np.testing.assert_array_equal(boxes[14], [24, -8, 72, 40])
    np.testing.assert_array_equal(boxes[196], [-16, -16, 80, 80])


@pytest.mark.parametrize("levels", [PAPER, NTS], ids=["paper", "nts"])
@pytest.mark.parametrize("values", ["random", "ties", "constant"])
def test_suppression_picks_what_a_plain_loop_picks(values, levels):
    boxes = anchor_boxes(levels, 448)
    n = 10_000 if levels is PAPER else 1_000
    rng = np.random.default_rng(0)
    scores = {
        "random": rng.normal(size=(n, len(boxes))),
        "ties": rng.integers(0, 3, (n, len(boxes))),
        "constant": np.zeros((1, len(boxes))),
    }[values].astype(np.float32)
    picks = jax.jit(lambda s: select_top(s, pairwise_iou(boxes), 0.25, 6))(scores)
    expected = [_plain_nms(row, boxes, 0.25, 6) for row in scores]
    np.testing.assert_array_equal(picks, expected)


def test_can_select_knows_when_the_anchors_might_run_out():
    iou = pairwise_iou(anchor_boxes(PAPER, 448))
    assert can_select(iou, 0.25, 6)
    assert not can_select(pairwise_iou(anchor_boxes(PAPER, 64)), 0.25, 6)
