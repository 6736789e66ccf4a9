"""Slice positions along the patient: clustering, and regularity of a stack."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

# Slices closer to each other are at the same place. No scanner moves by less than 0.1 mm.
SAME_PLACE_MM = 0.05

# A step this much shorter or longer than the usual one is no jitter of a stack's places.
_SHORTEST_STEP, _LONGEST_STEP = 0.55, 1.7
# A share of the steps may be longer by whole multiples: slices are missing there.
_MOST_GAPS = 0.25
_GRID_TOLERANCE = 0.1
# A change of spacing within a scan is a change for some slices at least.
_LEAST_BLOCK_STEPS = 3
_MOST_BLOCKS = 3


def clusters(values: Float[np.ndarray, " n"], tolerance: float) -> Int[np.ndarray, " n"]:
    """Numbers one after the other with smaller gaps than the tolerance share a cluster.

    Args:
      values: NaN makes one more cluster.
      tolerance: in the unit of the values.

    Returns:
      The cluster of each.
    """
    order = np.argsort(values, kind="stable")
    is_new = ~(np.diff(values[order]) <= tolerance)  # NaN at the end is always new
    is_new &= ~(np.isnan(values[order][1:]) & np.isnan(values[order][:-1]))
    labels = np.empty(len(values), int)
    labels[order] = np.concatenate([[0], np.cumsum(is_new)])
    return labels


def is_one_stack(places_mm: Float[np.ndarray, " n"]) -> bool:
    """Whether slices at these places may be one scan of one patient.

    They may lie evenly, or with gaps where slices are missing, or with a spacing that changes once
    or twice along the patient, or with some jitter. Two stacks that interleave lie otherwise,
    unless one is shifted against the other by half of their spacing.

    Args:
      places_mm: growing.
    """
    steps = np.diff(places_mm)
    if len(steps) < 2:
        return True
    if steps.min() < SAME_PLACE_MM or _alternates(places_mm):
        return False
    if len(steps) < 3:
        return True
    return is_even(places_mm) or _has_few_gaps(steps) or _in_blocks(steps)


def is_even(places_mm: Float[np.ndarray, " n"]) -> bool:
    """Whether the steps between slices are alike, jitter aside."""
    steps = np.diff(places_mm)
    if not len(steps):
        return True
    usual = np.median(steps)
    return bool(steps.min() > _SHORTEST_STEP * usual and steps.max() < _LONGEST_STEP * usual)


def _alternates(places_mm: np.ndarray) -> bool:
    """Whether two even stacks of one spacing interleave, other than by half of the spacing."""
    if len(places_mm) < 4:
        return False
    steps = np.diff(places_mm)
    pairs = places_mm[2:] - places_mm[:-2]
    spacing = np.median(pairs)
    is_pair = np.abs(pairs - spacing) < max(0.02 * spacing, SAME_PLACE_MM)
    # Places that are rounded to a unit make steps of a half uneven by it.
    unit = next((u for u in (1.0, 0.5, 0.1) if _are_multiples(places_mm, u)), 0.0)
    allowed = max(0.2 * spacing / 2, 1.02 * unit / 2)
    is_odd = np.abs(steps - spacing / 2) > allowed
    run = is_pair & is_odd[:-1] & is_odd[1:]
    # A single gap makes two such pairs.
    return bool(run.sum() >= min(3, len(pairs)))


def _are_multiples(places_mm: np.ndarray, unit: float) -> bool:
    relative = (places_mm - places_mm[0]) / unit
    return bool(np.all(np.abs(relative - np.rint(relative)) < 1e-3))


def _has_few_gaps(steps: np.ndarray) -> bool:
    usual = np.median(steps)
    times = np.maximum(np.rint(steps / usual), 1)
    is_on_grid = np.abs(steps - times * usual) < _GRID_TOLERANCE * usual + SAME_PLACE_MM
    return bool(is_on_grid.all() and np.sum(times > 1) <= max(1, _MOST_GAPS * len(steps)))


def _in_blocks(steps: np.ndarray) -> bool:
    is_change = np.abs(np.diff(steps)) > _GRID_TOLERANCE * steps[:-1] + SAME_PLACE_MM
    ends = [0, *(np.flatnonzero(is_change) + 1), len(steps)]
    return len(ends) - 1 <= _MOST_BLOCKS and bool(np.diff(ends).min() >= _LEAST_BLOCK_STEPS)
