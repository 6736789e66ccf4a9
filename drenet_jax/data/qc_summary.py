"""What the QC page shows of one person: every picked slice, and its flags."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from drenet_jax.ct.discovery import RENAMED
from drenet_jax.ct.prepared_series import PreparedPerson, SampledSlice
from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort_table import Person
from drenet_jax.data.qc_checks import area_shares, by_series, qc_flags

THUMBNAIL_PX = 144
_JPEG_QUALITY = 70

_GREEN_BGR = (80, 220, 80)
_BLUE_BGR = (230, 150, 60)

# Heavier than all flags together: excluded persons come first.
_LEFT_OUT_WEIGHT = 1000
_NOTE_WEIGHT = 1


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picked slice with its lungs.

    Attributes:
      name: its file name.
      jpeg: the slice with the lungs' outline and box, `THUMBNAIL_PX` on the longer side.
      area_share: lung area over the person's largest, 0 to 1.
      why_excluded: "" if the slice is kept.
    """

    name: str
    jpeg: bytes
    area_share: float
    why_excluded: str


@dataclasses.dataclass(frozen=True)
class QcEntry:
    """One person on the QC page.

    Attributes:
      patient_id, label: as the cohort has them.
      n_slices: slices of the series (single images given).
      thumbnails: of the picked slices.
      qc_flags: reasons to review, heaviest first.
      notes: of the reading of the series.
      why_left_out: why the person is in no split, or "".
      severity: the page shows patients with a larger one first.
    """

    patient_id: str
    label: str
    n_slices: int
    thumbnails: tuple[Thumbnail, ...]
    qc_flags: tuple[str, ...]
    notes: tuple[str, ...]
    why_left_out: str
    severity: float

    @property
    def n_kept(self) -> int:
        return sum(not thumbnail.why_excluded for thumbnail in self.thumbnails)


def concern(severity: float) -> int:
    """0 for a patient who is left out, 1 for one with flags or notes, 2 for all others."""
    return 0 if severity >= _LEFT_OUT_WEIGHT else 1 if severity >= 1 else 2


def qc_entry(
    person: Person, prepared: PreparedPerson, settings: CtSettings, *, why_left_out: str
) -> QcEntry:
    """The entry of a patient whose files could be read."""
    are_single_images = prepared.n_slices == len(person.paths)
    wanted = prepared.n_slices
    if not are_single_images:
        wanted = min(wanted, settings.slices_per_person)
    flags = qc_flags(
        prepared.picked,
        in_order=not are_single_images,
        n_unreadable=max(0, wanted - len(prepared.picked)),
    )
    shares = [share for series in by_series(prepared.picked) for share in area_shares(series)]
    # Below 1: it decides among persons with equal reasons only.
    share_left_out = 0.9 * (1 - len(prepared.kept) / max(1, len(prepared.picked)))
    return QcEntry(
        patient_id=person.patient_id,
        label=person.label,
        n_slices=prepared.n_slices,
        thumbnails=tuple(
            Thumbnail(slice_.name, _jpeg(slice_), share, slice_.why_excluded)
            for slice_, share in zip(prepared.picked, shares, strict=True)
        ),
        qc_flags=tuple(flag.why for flag in flags),
        notes=prepared.notes,
        why_left_out=why_left_out,
        severity=(_LEFT_OUT_WEIGHT if why_left_out else 0)
        + sum(flag.weight for flag in flags)
        # Many persons of a hospital have this note, and it says nothing of their lungs.
        + sum(_NOTE_WEIGHT for note in prepared.notes if RENAMED not in note)
        + share_left_out,
    )


def empty_entry(person: Person, why_left_out: str) -> QcEntry:
    """The entry of a patient without a readable image."""
    return QcEntry(
        person.patient_id, person.label, 0, (), (), (), why_left_out, float(_LEFT_OUT_WEIGHT)
    )


def _jpeg(picked: SampledSlice) -> bytes:
    height, width = picked.source.shape
    scale = THUMBNAIL_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(picked.source, size, interpolation=cv2.INTER_AREA)
    image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    mask = cv2.resize(picked.source_mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    outline, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outline, -1, _GREEN_BGR, 1)
    if picked.source_box is not None:
        y0, x0, y1, x1 = (round(edge * scale) for edge in picked.source_box)
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), _BLUE_BGR, 1)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert done
    return data.tobytes()
