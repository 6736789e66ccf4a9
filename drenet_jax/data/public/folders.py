"""Your own data: a folder a label, and in it a folder or a file a person.

Layout: `<label>/<person>`, where a person is a folder (with whatever is below it) or a file: a zip,
  NIfTI (.nii, .nii.gz), MetaImage (.mha, .mhd), NRRD, DICOM (.dcm, .dicom, .ima), PNG or JPEG.
Labels: the folders' names.
Persons: the names without suffix. If a name is under two labels, these are two persons, and all ids
  begin with the label.
Split, sites: none; add the columns by hand.
"""

from __future__ import annotations

import collections
import os
from pathlib import Path

from drenet_jax.data.identities import person_key
from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tree import PICTURES, entries, holds_a_file, layout_error
from drenet_jax.errors import InputError

_SUFFIXES = (
    *(".zip", ".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".dcm", ".dicom", ".ima"),
    *PICTURES,
)
# The voxels that belong to a .mhd.
_VOXELS = (".raw", ".zraw")


def find_persons(root: Path) -> ScanResult:
    scanned = ScanResult(root)
    labels = [entry for entry in entries(root) if os.path.isdir(entry)]
    if len(labels) < 2:
        raise layout_error(root, "a cohort of folders", "two or more folders, one for each label")
    for entry in entries(root):
        if entry not in labels:
            scanned.leave_out("files beside the labels' folders", entry)

    persons = {label: _persons(scanned, label) for label in labels}
    seen = collections.Counter(
        key for of_label in persons.values() for key in {person_key(name) for name in of_label}
    )
    twice = [
        name
        for name in dict.fromkeys(name for of_label in persons.values() for name in of_label)
        if seen[person_key(name)] > 1
    ]
    if twice:
        scanned.notes.append(
            f"{len(twice)} names (the first: {twice[0]}) are under two labels; they are taken for "
            "different persons, and each id begins with its label."
        )
    for label, of_label in persons.items():
        for name, path in of_label.items():
            scanned.add(f"{label.name}_{name}" if twice else name, path, label.name)
    return scanned


def _persons(scanned: ScanResult, label: Path) -> dict[str, Path]:
    persons: dict[str, Path] = {}
    for entry in entries(label):
        if os.path.isdir(entry):
            if not holds_a_file(entry):
                scanned.leave_out("folders without a file that may be read", entry)
                continue
            name = entry.name
        else:
            suffix = next((item for item in _SUFFIXES if entry.name.lower().endswith(item)), None)
            if suffix is None:
                if entry.suffix.lower() not in _VOXELS or not os.path.exists(
                    entry.with_suffix(".mhd")
                ):
                    scanned.leave_out("files of a kind that holds no CT", entry)
                continue
            name = entry.name[: -len(suffix)]
        if name in persons:
            raise InputError(
                f"{persons[name]} and {entry} would be one person, {name!r}; remove one, or put "
                "them into one folder."
            )
        persons[name] = entry
    return persons
