"""The slices of one series in their order along the patient (DESIGN 3.1)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from drenet_jax.ct.dicom import DicomSlice
from drenet_jax.ct.files import Excluded

# Slices closer to each other are at the same place.
_PLACE_MM = 1e-3

# From this cosine of normal and patient's axis on a slice counts as tilted: 2.6 degrees.
_TILTED_BELOW = 0.999


@dataclasses.dataclass(frozen=True)
class Ordered:
    """The slices of the chosen stack from the feet to the head, and the rest."""

    slices: tuple[DicomSlice, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]


def order(slices: Sequence[DicomSlice], series_uid: str) -> Ordered | str:
    """Takes the stack with most slices and orders it by place along the slice normal.

    Args:
      slices: of all files.
      series_uid: takes the largest stack of this series; '': of all.

    Returns:
      The stack, or, where there is no such series, which ones there are.
    """
    wanted = [one for one in slices if not series_uid or one.series_uid == series_uid]
    if not wanted:
        return _series_in_words(slices)
    stack, _ = collections.Counter(one.stack for one in wanted).most_common(1)[0]
    taken = sorted((one for one in slices if one.stack == stack), key=lambda one: one.place_mm)
    excluded = []
    for one in slices:
        if one.stack == stack:
            continue
        if one.series_uid == taken[0].series_uid:
            why = "a slice of another size or orientation than the rest of its series"
        else:
            why = "of another series than the one that is taken"
        excluded.append(Excluded(slice_name(one), why))
    kept: list[DicomSlice] = []
    for one in taken:
        if kept and one.place_mm - kept[-1].place_mm < _PLACE_MM:
            why = f"at the same place as another slice: {slice_name(kept[-1])}"
            excluded.append(Excluded(slice_name(one), why))
        else:
            kept.append(one)
    others = [one for one in slices if one.series_uid != taken[0].series_uid]
    notes = list(_notes_on_places(kept))
    if others:
        notes.append(f"left out beside the series taken: {_series_in_words(others)}")
    if len({one.patient for one in slices}) > 1:
        notes.append("the files are of more than one patient; those of the series taken are used")
    return Ordered(tuple(kept), tuple(excluded), tuple(notes))


def slice_name(one: DicomSlice) -> str:
    return one.name if one.frame is None else f"{one.name}#{one.frame + 1}"


def _series_in_words(slices: Sequence[DicomSlice]) -> str:
    """Series by number and size: a UID would lead to the patient."""
    counts = collections.Counter((one.series_uid, one.series_number) for one in slices)
    return ", ".join(
        f"series {number or 'without a number'} of {count} slice{'s' if count > 1 else ''}"
        for (_, number), count in counts.most_common()
    )


def _notes_on_places(slices: Sequence[DicomSlice]) -> Iterator[str]:
    if slices[0].cosine < _TILTED_BELOW:
        yield f"the gantry is tilted by {np.degrees(np.arccos(slices[0].cosine)):.0f} degrees"
    steps_mm = np.diff([one.place_mm for one in slices])
    if len(steps_mm) < 2:
        return
    usual_mm = float(np.median(steps_mm))
    missing = int(np.sum(np.maximum(np.rint(steps_mm / usual_mm) - 1, 0)))
    if missing:
        first = int(np.argmax(np.rint(steps_mm / usual_mm) > 1))
        yield (
            f"{missing} slice{'s' if missing > 1 else ''} missing (spacing {usual_mm:.1f} mm, up "
            f"to {steps_mm.max():.1f} mm; first behind slice {first + 1} of {len(slices)})"
        )
    elif np.ptp(steps_mm) > max(0.1, 0.1 * usual_mm):
        yield f"uneven spacing of slices: {steps_mm.min():.1f} to {steps_mm.max():.1f} mm"
