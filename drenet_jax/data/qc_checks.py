"""Automatic quality checks of a prepared person: implausible lung areas and intensities."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from drenet_jax.ct.prepared_series import SampledSlice

# In three real series, the 25 slices of the authors' demo and 59 phantoms, a side of a kept slice
# holds at least 28% of the lungs' area, neighbours differ by at most 44% of the largest area, and
# no slice lies more than 4% of it below larger ones on both sides. A 60th phantom, whose lobe full
# of pneumonia was not found, has a side of 12%.
_LEAST_SIDE = 0.2
_LARGEST_STEP = 0.5
_DEEPEST_DIP = 0.15
_LEAST_KEPT = 1 / 3


class QcFlag(NamedTuple):
    """A reason to review a patient; the heavier, the likelier that lungs were missed."""

    weight: int
    why: str


def by_series(picked: Sequence[SampledSlice]) -> list[list[SampledSlice]]:
    """A person's picked slices, parted where another series begins: indices count from 0 again."""
    parts: list[list[SampledSlice]] = []
    last = -1
    for slice_ in picked:
        if not parts or slice_.index <= last:
            parts.append([])
        parts[-1].append(slice_)
        last = slice_.index
    return parts


def area_shares(series: Sequence[SampledSlice]) -> list[float]:
    """Lung area of each picked slice of a series over the largest among them, 0 to 1."""
    areas = [int(np.count_nonzero(slice_.source_mask)) for slice_ in series]
    largest = max(areas, default=0)
    return [area / max(largest, 1) for area in areas]


def qc_flags(
    picked: Sequence[SampledSlice], *, in_order: bool, n_unreadable: int
) -> tuple[QcFlag, ...]:
    """The reasons to review a patient's slices, heaviest first.

    Args:
      picked: the person's picked slices.
      in_order: neighbours in a series are neighbours in the body; single images need not be.
      n_unreadable: slices that would have been picked, had they been readable.
    """
    flags = []
    if in_order:
        for series in by_series(picked):
            flags += _order_flags(series)
    kept = [slice_ for slice_ in picked if slice_.kept]
    one_sided = sum(_smaller_side(slice_) < _LEAST_SIDE for slice_ in kept)
    if one_sided:
        flags.append(QcFlag(3, f"one lung small or missing in {_slices(one_sided)}"))
    if 0 < len(kept) < _LEAST_KEPT * len(picked):
        flags.append(QcFlag(2, f"only {len(kept)} of {_slices(len(picked))} kept"))
    if n_unreadable:
        flags.append(QcFlag(2, f"{_slices(n_unreadable)} could not be read"))
    at_edge = sum(_touches_edge(slice_) for slice_ in kept)
    if at_edge:
        flags.append(QcFlag(1, f"lungs touch the picture's edge in {_slices(at_edge)}"))
    # dict.fromkeys: two series of a person may give the same reason.
    return tuple(sorted(dict.fromkeys(flags), key=lambda flag: -flag.weight))


def _order_flags(series: Sequence[SampledSlice]) -> list[QcFlag]:
    flags = []
    indices = [index for index, slice_ in enumerate(series) if slice_.kept]
    if indices and indices[-1] - indices[0] >= len(indices):
        flags.append(QcFlag(3, "gap between kept slices"))
    shares = area_shares(series)
    step = max((abs(a - b) for a, b in itertools.pairwise(shares)), default=0.0)
    if step > _LARGEST_STEP or _deepest_dip(shares) > _DEEPEST_DIP:
        flags.append(QcFlag(2, "lung area jumps between neighbours"))
    return flags


def _deepest_dip(shares: Sequence[float]) -> float:
    """How far a slice lies below larger ones on both sides: lungs widen, then narrow."""
    up_to_here = np.maximum.accumulate(shares)
    from_here_on = np.maximum.accumulate(shares[::-1])[::-1]
    return float(np.max(np.minimum(up_to_here, from_here_on) - shares, initial=0.0))


def _smaller_side(picked: SampledSlice) -> float:
    """The share of the lungs' area in the half of the body that has less of it, 0 to 0.5."""
    # The body's middle is the centre of brightness: lungs are dark, and muscle is on both sides.
    brightness = picked.source.sum(axis=0, dtype=np.float64)
    middle = round(float(np.average(np.arange(len(brightness)), weights=brightness + 1e-6)))
    left = np.count_nonzero(picked.source_mask[:, :middle])
    share = left / np.count_nonzero(picked.source_mask)
    return float(min(share, 1 - share))


def _touches_edge(picked: SampledSlice) -> bool:
    assert picked.source_box is not None
    height, width = picked.source.shape
    y0, x0, y1, x1 = picked.source_box
    return y0 == 0 or x0 == 0 or y1 == height or x1 == width


def _slices(count: int) -> str:
    return "1 slice" if count == 1 else f"{count} slices"
