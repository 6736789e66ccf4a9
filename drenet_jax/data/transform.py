"""One person of a cohort through the preprocessing: what each worker of `prepare` does."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Integer

from drenet_jax.ct.prepared_series import SampledSlice, fill_of
from drenet_jax.ct.reader import Reader
from drenet_jax.ct.settings import CtSettings
from drenet_jax.ct.sources import CtError
from drenet_jax.data.cohort_table import Person
from drenet_jax.data.duplicates import slice_digests
from drenet_jax.data.facts import facts_of_slices
from drenet_jax.data.qc_summary import empty_entry, qc_entry
from drenet_jax.data.staging import write_staged

# Those that no thread uses now: a worker process keeps its reader, and one of Beam has threads.
_idle_readers: list[Reader] = []


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedSummary:
    """What the parent process keeps of a person; one of millions, so it is small.

    Attributes:
      n_kept: examples in the person's staged file.
      n_bytes: of their pictures.
      why_left_out: why there are none, or "".
      severity: of `QcEntry`.
      digests: of the slices, from `duplicates.slice_digests`.
    """

    n_kept: int
    n_bytes: int
    why_left_out: str
    severity: float
    digests: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class PersonReport:
    """What is reported of a patient.

    Attributes:
      summary: the numbers.
      excluded: (file, why) of all that was left out; a file of "" is the person.
      notes: of the person's files.
      facts: of the kept slices, from `facts.facts_of_slices`.
    """

    summary: PreparedSummary
    excluded: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    facts: tuple[dict[str, Any], ...] = ()


def prepare_to_staging(
    person: Person, staged: Path, settings: CtSettings, seed: int
) -> PersonReport:
    """Prepares a person and writes the entry and the examples of the kept slices to `staged`.

    A person whose files cannot be read, or without a kept slice, is reported in `excluded`.

    Args:
      person: of the cohort.
      staged: the file to write, see `staging`.
      settings: of the preprocessing.
      seed: of the fill.
    """
    notes: tuple[str, ...] = ()
    examples: list[dict[str, Any]] = []
    why_left_out = ""
    digests = b""
    facts: tuple[dict[str, Any], ...] = ()
    try:
        with _reader() as reader:
            prepared = reader.prepare(person.paths, settings, series_uid=person.series_uid)
    except CtError as error:
        excluded = [(file.name, file.why) for file in error.excluded]
        why_left_out = error.why
        entry = empty_entry(person, why_left_out)
    else:
        notes = prepared.notes
        examples = [_example(person, picked, settings, seed) for picked in prepared.kept]
        facts = facts_of_slices(prepared.kept)
        excluded = [(file.name, file.why) for file in prepared.excluded]
        digests = slice_digests(prepared.picked)
        if not examples:
            why_left_out = "no slice was kept"
        entry = qc_entry(person, prepared, settings, why_left_out=why_left_out)
    if why_left_out:
        excluded.append(("", why_left_out))
    write_staged(staged, entry, examples)
    summary = PreparedSummary(
        n_kept=len(examples),
        n_bytes=sum(len(example["image"]) + len(example["fill_map"]) for example in examples),
        why_left_out=why_left_out,
        severity=entry.severity,
        digests=digests,
    )
    return PersonReport(summary, tuple(excluded), notes, facts)


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
    person: Person, picked: SampledSlice, settings: CtSettings, seed: int
) -> dict[str, Any]:
    assert picked.image is not None
    fill = fill_of(picked, settings, seed)
    return {
        "image": _png(picked.image),
        "fill_map": _png(fill.copy_map),
        "fill_shifts": fill.shifts_px,
        "label": person.label,
        "patient_id": person.patient_id,
        "slice_index": picked.file_index,
        "slice_name": picked.name,
        "source_box": list(picked.file_box),
        "source_size": list(picked.file_size),
        "source_turn": list(picked.orientation),
        "site": person.site,
    }


def _png(image: Integer[np.ndarray, "height width"]) -> bytes:
    done, data = cv2.imencode(".png", image)
    assert done
    return data.tobytes()
