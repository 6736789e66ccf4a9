"""One person of a cohort through the image side: what each worker of `prepare` does."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drenet_jax.ct.prepared_series import PickedSlice, filled
from drenet_jax.ct.reader import Reader
from drenet_jax.ct.settings import CtSettings
from drenet_jax.ct.sources import CtError
from drenet_jax.data.cohort_table import Person
from drenet_jax.data.duplicates import slice_digests
from drenet_jax.data.qc_summary import look_at, look_at_nothing
from drenet_jax.data.staging import write_spool

# Those that no thread uses now: a worker process keeps its reader, and one of Beam has threads.
_idle_readers: list[Reader] = []


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedSummary:
    """What the parent process keeps of a person; one of millions, so it is small.

    Attributes:
      n_kept: examples in the person's spool.
      n_bytes: of their pictures.
      why_left_out: why there are none, or "".
      doubt: of `looks.Look`.
      digests: of the slices, from `duplicates.slice_digests`.
    """

    n_kept: int
    n_bytes: int
    why_left_out: str
    doubt: float
    digests: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What `prepare` tells of a person.

    Attributes:
      summary: the figures.
      excluded: (file, why) of all that was left out; a file of "" is the person.
      notes: of the person's files.
    """

    summary: PreparedSummary
    excluded: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def prepare_to_spool(person: Person, spool: Path, settings: CtSettings, seed: int) -> Told:
    """Prepares a person and writes the look and the examples of the kept slices to `spool`.

    A person whose files cannot be read, or of whom nothing is kept, is told in `excluded`.

    Args:
      person: of the cohort.
      spool: the file to write, see `spool`.
      settings: of the image side.
      seed: of the fill.
    """
    notes: tuple[str, ...] = ()
    examples: list[dict[str, Any]] = []
    why_left_out = ""
    digests = b""
    try:
        with _reader() as reader:
            prepared = reader.prepare(person.paths, settings, series_uid=person.series_uid)
    except CtError as error:
        excluded = [(one.name, one.why) for one in error.excluded]
        why_left_out = error.why
        look = look_at_nothing(person, why_left_out)
    else:
        notes = prepared.notes
        examples = [_example(person, picked, settings, seed) for picked in prepared.kept]
        excluded = [(one.name, one.why) for one in prepared.excluded]
        digests = slice_digests(prepared.picked)
        if not examples:
            why_left_out = "no slice was kept"
        look = look_at(person, prepared, settings, why_left_out=why_left_out)
    if why_left_out:
        excluded.append(("", why_left_out))
    write_spool(spool, look, examples)
    summary = PreparedSummary(
        n_kept=len(examples),
        n_bytes=sum(len(one["image"]) + len(one["lung_mask"]) for one in examples),
        why_left_out=why_left_out,
        doubt=look.doubt,
        digests=digests,
    )
    return Told(summary, tuple(excluded), notes)


@contextlib.contextmanager
def _reader() -> Iterator[Reader]:
    try:
        reader = _idle_readers.pop()
    except IndexError:
        reader = Reader()
        atexit.register(reader.close)
    try:
        yield reader
    finally:
        _idle_readers.append(reader)


def _example(
    person: Person, picked: PickedSlice, settings: CtSettings, seed: int
) -> dict[str, Any]:
    return {
        "image": _png(filled(picked, settings, seed)),
        "lung_mask": _png(picked.lung_mask.view(np.uint8) * np.uint8(255)),
        "label": person.label,
        "patient_id": person.patient_id,
        "slice_index": picked.file_index,
        "slice_name": picked.name,
        "source_box": list(picked.file_box),
        "source_size": list(picked.file_size),
        "source_turn": list(picked.turn),
        "site": person.site,
    }


def _png(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", image)
    assert done
    return data.tobytes()
