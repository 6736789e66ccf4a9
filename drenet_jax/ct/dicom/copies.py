"""Slices that are there more than once."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from drenet_jax.ct.dicom import geometry
from drenet_jax.ct.dicom.files import DicomFiles
from drenet_jax.ct.dicom.grouping import AttributeTable
from drenet_jax.ct.dicom.headers import DicomSlice
from drenet_jax.ct.sources import CtError, Excluded


class NoStackError(Exception):
    """Why the slices of one stack cannot be identified; the text names no patient."""


def without_equal_files(
    slices: Sequence[DicomSlice], files: DicomFiles
) -> tuple[list[DicomSlice], list[Excluded]]:
    """The slices without files that are there again, byte by byte.

    Before anything else: an identifier that differs in each slice would seem to be shared by them.
    """
    alike = collections.defaultdict(list)
    for slice_ in slices:
        alike[slice_.frame, slice_.position_mm, slice_.sop_instance_uid].append(slice_)
    kept: list[DicomSlice] = []
    excluded: list[Excluded] = []
    for copies in alike.values():
        first_of: dict[object, DicomSlice] = {}
        for slice_ in sorted(copies, key=lambda slice_: slice_.label) if len(copies) > 1 else ():
            first = first_of.setdefault(files.digest(slice_), slice_)
            if first is not slice_:
                why = f"at the same place as another slice: {first.label}"
                excluded.append(Excluded(slice_.label, why))
        kept += first_of.values() if len(copies) > 1 else copies
    return kept, excluded


def without_copies(
    table: AttributeTable, rows: np.ndarray, files: DicomFiles
) -> tuple[np.ndarray, list[Excluded]]:
    """The rows in order, without second copies of a slice.

    Raises:
      NoStackError: slices at the same place differ.
    """
    places_mm = table.places_mm(rows)
    order = np.argsort(places_mm, kind="stable")
    at_one_place = np.split(
        rows[order], 1 + np.flatnonzero(np.diff(places_mm[order]) >= geometry.SAME_PLACE_MM)
    )
    kept: list[int] = []
    excluded: list[Excluded] = []
    for group in at_one_place:
        row, others = (
            _one_of(table, sorted(group.tolist()), files) if len(group) > 1 else (group[0], [])
        )
        kept.append(row)
        excluded += others
    return np.array(kept), excluded


def _one_of(
    table: AttributeTable, rows: Sequence[int], files: DicomFiles
) -> tuple[int, list[Excluded]]:
    """The first of some slices at the same place that can be decoded; the others with why not."""
    digests = {row: files.digest(table.slices[row]) for row in rows}
    decoded, excluded = {}, []
    for row in {digest: row for row, digest in reversed(digests.items())}.values():
        try:
            decoded[row] = files.decode(table.slices[row])
        except CtError as error:
            excluded += [
                Excluded(table.slices[copy].label, error.why)
                for copy in rows
                if digests[copy] == digests[row]
            ]
    if not decoded:
        return rows[0], excluded[1:]
    first = min(decoded)
    slice_ = table.slices[first]
    for row, image in decoded.items():
        if not np.array_equal(image, decoded[first]):
            raise NoStackError(
                f"different slices at the same place ({slice_.label} and "
                f"{table.slices[row].label} first), with nothing in their headers that says which "
                "belong together"
            )
    damaged = {file.name for file in excluded}
    excluded += [
        Excluded(table.slices[row].label, f"at the same place as another slice: {slice_.label}")
        for row in rows
        if row != first and table.slices[row].label not in damaged
    ]
    return first, excluded
