"""The files in which a prepared person waits until the split is known."""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drenet_jax.data.qc_summary import QcEntry


# A folder of millions of files is slow to work with everywhere.
_FILES_A_FOLDER = 1000


def staging_file(staging_folder: Path, number: int) -> Path:
    """Where person `number` of the cohort waits."""
    folder, index = divmod(number, _FILES_A_FOLDER)
    return staging_folder / f"{folder:06d}" / f"{index:03d}.pickle"


def write_staged(staged: Path, entry: QcEntry, examples: Sequence[dict[str, Any]]) -> None:
    """Writes what the QC page shows of a person, and the person's examples.

    The folder above is made if it is not there, but not the folder above that one: a worker that
    outlives its run finds it gone and stops.
    """
    staged.parent.mkdir(exist_ok=True)
    write_pickles(staged, entry, list(examples))


def write_pickles(path: Path, *contents: Any) -> None:
    """Writes a file that is whole whenever it is there: a cluster may do a task twice at once."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with unfinished.open("wb") as file:
        for content in contents:
            pickle.dump(content, file, pickle.HIGHEST_PROTOCOL)
    os.replace(unfinished, path)


def read_qc_entry(staged: Path) -> QcEntry:
    """What the QC page shows of a person; the examples are not read."""
    with staged.open("rb") as file:
        return pickle.load(file)


def read_examples(staged: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples of a person, each with a key that no other has."""
    with staged.open("rb") as file:
        pickle.load(file)
        examples = pickle.load(file)
    for example in examples:
        yield f"{example['patient_id']}\n{example['slice_index']}\n{example['slice_name']}", example
