"""Made-up predictions for tests of the HTML report of a person."""

from __future__ import annotations

import numpy as np

from drenet_jax.evaluation.overlays import ScoredBox, SlicePicture

LABELS = ("COVID-19", "bacterial", "healthy")


def box(y0, x0, y1, x1, score):
    return ScoredBox(y0, x0, y1, x1, score)


def json_box(box_):
    return dict(zip(("y0", "x0", "y1", "x1", "score"), box_, strict=True))


def person(scores, boxes=(), names=None, *, heat=None):
    """A result and its pictures; a slice for each of the scores of the predicted class."""
    names = names or [f"IM{i:03d}.dcm" for i in range(len(scores))]
    pictures = [
        SlicePicture(
            index=10 * i,
            name=name,
            source=np.full((128, 128), 90, np.uint8),
            source_box=(16, 16, 112, 112),
            probabilities={"COVID-19": score, "bacterial": 0.75 * (1 - score), "healthy": 0.0},
            boxes=list(boxes),
            heat_map=heat,
            crop_heat_maps=None if heat is None else np.ones((len(boxes), 3, 3), np.float32),
        )
        for i, (name, score) in enumerate(zip(names, scores, strict=True))
    ]
    result = {
        "person": {
            "label": "COVID-19",
            "probabilities": {"COVID-19": 0.8125, "bacterial": 0.125, "healthy": 0.0625},
            "n_slices": len(scores),
            "validation": None,
        },
        "slices": [
            {
                "name": picture.name,
                "index": picture.index,
                "probabilities": picture.probabilities,
                "boxes": [json_box(box_) for box_ in picture.boxes],
            }
            for picture in pictures
        ],
        "excluded": [],
        "notes": [],
        "decision": {"rule": "largest_probability", "aggregate": "mean"},
        "model": {
            "name": "drenet",
            "workdir": "runs/demo",
            "step": 1200,
            "labels": list(LABELS),
            "version": "0.1.0",
            "trained_on": None,
            "ct": {"window_level_hu": -600.0, "window_width_hu": 1500.0},
        },
    }
    return result, pictures


def warm_at(row, column):
    heat = np.full((6, 6), 0.1, np.float32)
    heat[row, column] = 2.0
    return heat
