"""One person of a cohort through the image side: what each worker of `prepare` does."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drenet_jax.ct.preprocess import PickedSlice, filled, prepare_person
from drenet_jax.ct.series import NoSlices
from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort import Person
from drenet_jax.errors import InputError

THUMBNAIL_PX = 112


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picked slice for the QC page: JPEG with outline and box, and why it was left out."""

    name: str
    jpeg: bytes
    why_excluded: str


@dataclasses.dataclass(frozen=True)
class PreparedSummary:
    """What became of a person.

    Attributes:
      person: who.
      n_kept: slices written to `spool`.
      n_slices: slices of the series (single images given).
      excluded: (file, why) of all that was left out; a file of "" is the person.
      thumbnails: of the picked slices.
      spool: the file that holds the person's examples.
    """

    person: Person
    n_kept: int
    n_slices: int
    excluded: tuple[tuple[str, str], ...]
    thumbnails: tuple[Thumbnail, ...]
    spool: Path


def prepare_to_spool(
    person: Person, spool: Path, settings: CtSettings, seed: int
) -> PreparedSummary:
    """Prepares a person and writes the examples of the kept slices to `spool`.

    A person whose files cannot be read, or of whom nothing is kept, is told in `excluded`.
    """
    try:
        prepared = prepare_person(person.paths, settings)
    except InputError as error:
        files = error.excluded if isinstance(error, NoSlices) else ()
        excluded = (*((one.name, one.why) for one in files), ("", str(error)))
        return PreparedSummary(person, 0, 0, excluded, (), spool)
    examples = [_example(person, picked, settings, seed) for picked in prepared.kept]
    excluded = [(one.name, one.why) for one in prepared.excluded]
    if examples:
        spool.write_bytes(pickle.dumps(examples))
    else:
        excluded.append(("", "no slice was kept"))
    return PreparedSummary(
        person=person,
        n_kept=len(examples),
        n_slices=prepared.n_slices,
        excluded=tuple(excluded),
        thumbnails=tuple(_thumbnail(picked) for picked in prepared.picked),
        spool=spool,
    )


def read_spool(spool: Path) -> list[dict[str, Any]]:
    """The examples that `prepare_to_spool` wrote, as `records` wants them."""
    return pickle.loads(spool.read_bytes())


def _example(person: Person, picked: PickedSlice, settings: CtSettings, seed: int) -> dict:
    return {
        "image": _png(filled(picked, settings, seed)),
        "lung_mask": _png(picked.lung_mask.view(np.uint8) * np.uint8(255)),
        "label": person.label,
        "patient_id": person.patient_id,
        "slice_index": picked.index,
        "slice_name": picked.name,
        "source_box": list(picked.source_box),
        "source_size": list(picked.source.shape),
        "site": person.site,
    }


def _png(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", image)
    assert done
    return data.tobytes()


def _thumbnail(picked: PickedSlice) -> Thumbnail:
    height, width = picked.source.shape
    scale = THUMBNAIL_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(picked.source, size, interpolation=cv2.INTER_AREA)
    image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    mask = cv2.resize(picked.source_mask.view(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    outline, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outline, -1, (80, 220, 80), 1)
    if picked.source_box is not None:
        y0, x0, y1, x1 = (round(edge * scale) for edge in picked.source_box)
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), (200, 160, 60), 1)
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 70])
    assert done
    return Thumbnail(picked.name, data.tobytes(), picked.why_excluded)
