"""The pointing game: do heat maps and boxes hit the lesions (Zhang et al., IJCV 2018).

On each slice with a known lesion, the model points at one place: at the heat map's maximum, and at
the centre of its best box. A point inside a lesion's box is a hit. Chance is a point drawn at
random from the lungs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from drenet_jax.ct.orientation import Box
from drenet_jax.data.batches import CropGeometry
from drenet_jax.data.csv_tables import write_rows
from drenet_jax.errors import InputError
from drenet_jax.evaluation import statistics
from drenet_jax.evaluation.decisions import MetricSettings
from drenet_jax.evaluation.metrics import Metric
from drenet_jax.evaluation.predictions import SlicePredictions

# Paper, Fig. 3: the top 3 slices of a patient.
_TOP_SLICES = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Where a model points on N slices, (y, x) in pixels of its input; NaN where nowhere.

    Attributes:
      heat_map: the maximum of each class's heat map.
      box: the centre of the box with the highest proposal logit.
    """

    heat_map: Float[np.ndarray, "slices classes 2"]
    box: Float[np.ndarray, "slices 2"]

    @classmethod
    def of(cls, scored: Mapping[str, np.ndarray], image_size_px: int) -> Points:
        """From the outputs of `SliceScorer`."""
        maps = scored["heat_maps"]
        n, classes, rows, columns = maps.shape
        flat = maps.reshape(n, classes, -1)
        place = np.stack(np.divmod(flat.argmax(axis=2), columns), axis=2)
        peak = (place + 0.5) * np.array([image_size_px / rows, image_size_px / columns])
        # A map of zeros has no maximum.
        peak[flat.max(axis=2) <= 0] = np.nan
        if not scored["boxes"].shape[1]:
            return cls(peak, np.full((n, 2), np.nan))
        # `boxes` are sorted within each group of levels only. "scores" are the proposal logits.
        best = scored["scores"].argmax(axis=1)
        y0, x0, y1, x1 = scored["boxes"][np.arange(n), best].T
        return cls(peak, np.stack([(y0 + y1) / 2, (x0 + x1) / 2], axis=1))

    @classmethod
    def join(cls, parts: Sequence[Points]) -> Points:
        return cls(
            heat_map=np.concatenate([part.heat_map for part in parts]),
            box=np.concatenate([part.box for part in parts]),
        )


@dataclasses.dataclass(frozen=True)
class PointingHit:
    """The result of one slice with a lesion, a row of explain.csv.

    Attributes:
      patient_id, slice_name, slice_index: of the slice.
      label: the person's true class, whose heat map is taken.
      heat_map: whether its maximum is a hit.
      box: whether the best box's centre is; None for a model without boxes.
      chance: the share of the lungs in the crop that lies in lesions.
    """

    patient_id: str
    slice_name: str
    slice_index: int
    label: str
    heat_map: bool
    box: bool | None
    chance: float


def play(
    slices: SlicePredictions,
    points: Points,
    places: Iterable[CropGeometry],
    lesions: Mapping[tuple[str, str], Sequence[Box]],
) -> list[PointingHit]:
    """The game on every slice with a lesion in the lungs' crop.

    Args:
      slices, points, places: of the same slices in the same order.
      lesions: from `data.lesions.read_lesions`.

    Raises:
      InputError: no slice has a lesion.
    """
    has_boxes = not np.isnan(points.box).all()
    hits = []
    for i, place in enumerate(places):
        key = (place.patient_id, place.slice_name)
        assert key == (slices.patient_id[i], slices.slice_name[i]), key
        marks = np.array([_in_crop(box, place) for box in lesions.get(key, ())]).reshape(-1, 4)
        size_px = len(place.lung_mask)
        is_inside = (marks[:, :2] < size_px).all(axis=1) & (marks[:, 2:] > 0).all(axis=1)
        marks = marks[is_inside]
        if not len(marks):
            continue
        hits.append(
            PointingHit(
                patient_id=place.patient_id,
                slice_name=place.slice_name,
                slice_index=place.slice_index,
                label=slices.labels[slices.label[i]],
                heat_map=bool(_inside(points.heat_map[i, slices.label[i]][None], marks)[0]),
                box=bool(_inside(points.box[i][None], marks)[0]) if has_boxes else None,
                # The centres of the lungs' pixels.
                chance=float(_inside(np.argwhere(place.lung_mask) + 0.5, marks).mean()),
            )
        )
    if not hits:
        raise InputError(
            "no slice of the split has a lesion in the table of lesions; patient_id and "
            "slice_name must be written there as in slices.csv."
        )
    return hits


def pointing_metrics(
    slices: SlicePredictions, pointed: Sequence[PointingHit], settings: MetricSettings
) -> dict:
    """What `evaluate --explain` adds to metrics.json.

    Args:
      slices: of the split.
      pointed: from `play`.
      settings: of the draws.

    Returns:
      {"n_persons", "n_slices"} with a lesion; "heat_map", "box" (None for a model without boxes):
      {"rate", "chance", "difference"}, the share of hits over these slices; "top_slices": likewise
      the share of slices with a lesion among a person's three with the highest probability of the
      person's label, against the share among all of the person's slices. Each has `value`, `low`,
      `high`, by bootstrap over persons.
    """
    patient_id = np.array([hit.patient_id for hit in pointed])
    chance = [hit.chance for hit in pointed]
    box = None
    if pointed[0].box is not None:
        box = _against_chance(
            patient_id, [float(hit.box) for hit in pointed if hit.box is not None], chance, settings
        )
    persons, shares = np.unique(patient_id), []
    marked = {(hit.patient_id, hit.slice_name) for hit in pointed}
    for person in persons:
        rows = slices.of(slices.patient_id == person)
        is_marked = np.array([(person, name) in marked for name in rows.slice_name])
        order = np.argsort(-rows.probabilities[:, rows.label[0]], kind="stable")
        shares.append((is_marked[order[:_TOP_SLICES]].mean(), is_marked.mean()))
    top, all_slices = zip(*shares, strict=True)
    return {
        "n_persons": len(persons),
        "n_slices": len(pointed),
        "heat_map": _against_chance(
            patient_id, [hit.heat_map for hit in pointed], chance, settings
        ),
        "box": box,
        "top_slices": _against_chance(persons, top, all_slices, settings),
    }


def write_hits(path: str | os.PathLike[str], hits: Sequence[PointingHit]) -> None:
    """Writes `explain.csv`: a row for each slice with a lesion; hits are 1 or 0."""
    write_rows(
        path,
        [field.name for field in dataclasses.fields(PointingHit)],
        (
            [int(value) if isinstance(value, bool) else value for value in dataclasses.astuple(hit)]
            for hit in hits
        ),
    )


def _in_crop(box: Box, place: CropGeometry) -> tuple[float, float, float, float]:
    """A lesion in pixels of the model's input; it may reach over its edges."""
    y0, x0, y1, x1 = place.orientation.canonical_box(box, place.size)
    top, left, bottom, right = place.orientation.canonical_box(place.box, place.size)
    size_px = len(place.lung_mask)
    y, x = size_px / (bottom - top), size_px / (right - left)
    return (y0 - top) * y, (x0 - left) * x, (y1 - top) * y, (x1 - left) * x


def _inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[N] bool, which points [N, 2] lie in any of the boxes [K, 4]."""
    y, x = points.T[..., None]
    y0, x0, y1, x1 = boxes.T
    return np.any((y0 <= y) & (y < y1) & (x0 <= x) & (x < x1), axis=1)


def _against_chance(
    patient_id: np.ndarray,
    hits: Sequence[float],
    chance: Sequence[float],
    settings: MetricSettings,
) -> dict[str, Metric]:
    person, times = statistics.person_draws(
        patient_id, settings.bootstrap_draws, settings.bootstrap_seed
    )
    n_persons = times.shape[1]
    rows = np.array([hits, chance, np.subtract(hits, chance)], np.float64)
    names = ("rate", "chance", "difference")
    sums = np.stack([np.bincount(person, row, n_persons) for row in rows])
    counts = np.bincount(person, minlength=n_persons)

    def means(times: np.ndarray) -> dict[str, np.ndarray]:
        weight = times @ counts
        with np.errstate(invalid="ignore"):  # with the only person left out, none is left
            return {name: times @ total / weight for name, total in zip(names, sums, strict=True)}

    values, drawn, left_out = (
        rows.mean(axis=1).tolist(),
        means(times),
        means(statistics.all_but_one(n_persons)),
    )
    return {
        name: statistics.with_interval(value, drawn[name], left_out[name])
        for name, value in zip(names, values, strict=True)
    }
