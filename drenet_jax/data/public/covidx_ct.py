"""COVIDx-CT: slices gathered from a dozen data sets, listed by split."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from drenet_jax.ct.sources import natural
from drenet_jax.data.public.scan import ScanResult, names_in, read_lines
from drenet_jax.data.public.tables import read_table
from drenet_jax.errors import InputError

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# By class, in the order of the cohort.
_LABELS = {"2": "COVID-19", "1": "pneumonia", "0": "healthy"}

# Names of lists differ between versions: train_COVIDx-CT.txt, ..._v2A.txt, train_COVIDx_CT-3A.txt.
_LIST = "{}_COVIDx[-_]CT*.txt"
_VERSION = re.compile(r"CT[-_]v?(\d[A-B]?)\.txt$")

# How the sources name their slices, where metadata.csv does not tell the patient. COVID-CTset's
# (`137covid_patient1_SR_3_IM00001`) have the patient in the middle.
_PATIENTS = tuple(
    map(
        re.compile,
        (
            r"((?:NCP|CP|Normal)_\d+)_\d+_\d+$",
            r".+?_(patient\d+)_",
            r"(LIDC-IDRI-\d+)-",
            r"(COVIDCTMD-[^-]+)-",
            r"(radiopaedia-\d+)-",
            r"(radiopaedia_\d+_\d+)_\d+-\d+$",
            r"(volume-covid19-A-\d+)(?:_\w+)?-\d+$",
            r"(A\d+)-",
            r"(.+)-\d+$",
        ),
    )
)


class _Slice(NamedTuple):
    name: str
    label: str
    split: str


def find_patients(root: Path) -> ScanResult:
    """COVIDx-CT (versions 1 to 3): single slices as PNG, gathered from a dozen data sets.

    Layout: slices in `3A_images/` (`2A_images/`, `images/`, or the root), `train_COVIDx_CT-3A.txt`,
      `val_...`, `test_...` with lines `file class xmin ymin xmax ymax`, `metadata.csv`.
    Labels: COVID-19 (class 2), pneumonia (1), healthy (0). Of ill persons there are mostly the
      slices with lesions, of healthy ones all.
    Persons: a row a slice. A person is the "patient id" of metadata.csv that the file's name begins
      with, or else what the name tells (`NCP_96_1328_0035.png` is of `NCP_96`).
    Split: as published.
    Sites: the "source"s of metadata.csv.
    Cite: Gunraj H., Wang L., Wong A., "COVIDNet-CT: A Tailored Deep Convolutional Neural Network
      Design for Detection of COVID-19 Cases From Chest CT Images", Frontiers in Medicine 7 (2020),
      doi:10.3389/fmed.2020.608525; for versions 2 and 3: Gunraj H., Sabri A., Koff D., Wong A.,
      "COVID-Net CT-2: Enhanced Deep Neural Networks for Detection of COVID-19 From Chest CT Images
      Through Bigger, More Diverse Learning", Frontiers in Medicine 8 (2022),
      doi:10.3389/fmed.2021.729287.
    Terms: those of each source, some without commercial use; see docs/licenses_acknowledgements.md
      in https://github.com/haydengunraj/COVIDNet-CT.
    """
    scan = ScanResult(root, "COVIDx-CT")
    lists = {split: _list_file(scan, name) for name, split in _SPLITS.items()}
    slices = list(
        dict.fromkeys(row for split, path in lists.items() for row in _read_list(path, split))
    )
    folder, present = _images(scan, lists["train"], slices)
    sites = _sites(scan)

    order = list(_LABELS.values())
    slices.sort(key=lambda row: (order.index(row.label), natural(row.name)))
    guessed = []
    for name, label, split in slices:
        if name not in present:
            scan.leave_out("slices of the lists that are not there", name)
            continue
        patient = _patient_of_metadata(name, sites)
        if patient is None:
            patient = _patient_of_name(name)
            guessed.append(name)
        if patient is None:
            scan.leave_out("slices whose names tell no person", name)
            continue
        scan.add(patient, folder / name, label, split=split, site=sites.get(patient, ""))
    if guessed and sites:
        scan.notes.append(
            f"metadata.csv does not name the persons of {len(guessed)} slices (the first: "
            f"{guessed[0]}); these are taken from the file names."
        )
    for name in sorted(present - {row.name for row in slices}, key=natural):
        if name.lower().endswith(".png"):
            scan.leave_out("slices in no list", name)
    scan.leave_out_contradictions()
    return scan


def _list_file(scan: ScanResult, name: str) -> Path:
    paths = sorted(scan.root.glob(_LIST.format(name)))
    if not paths:
        raise scan.layout_error(scan.root, f"{_LIST.format(name)!r}")
    if len(paths) > 1:
        raise InputError(
            f"--root={scan.root} holds the lists {paths[0].name} and {paths[1].name}; "
            "keep those of one version."
        )
    return paths[0]


def _read_list(path: Path, split: str) -> list[_Slice]:
    slices = []
    for number, line in enumerate(read_lines(path, "check it"), 1):
        if not line:
            continue
        fields = line.split()
        if len(fields) < 2 or fields[1] not in _LABELS:
            raise InputError(
                f"{path}, line {number}: a file and its class, 0 to 2, were looked for; "
                "download the list again."
            )
        slices.append(_Slice(fields[0], _LABELS[fields[1]], split))
    return slices


def _images(scan: ScanResult, train_list: Path, slices: list[_Slice]) -> tuple[Path, set[str]]:
    """The folder of the slices, and the names of all that it holds."""
    root, version = scan.root, _VERSION.search(train_list.name)
    folders = [root / "images", root]
    if version:
        folders.insert(0, root / f"{version[1]}_images")
    for folder in folders:
        if os.path.isdir(folder):
            present = set(names_in(folder))
            if any(row.name in present for row in slices):
                return folder, present
    wanted = " or ".join(folder.name + "/" for folder in folders[:-1])
    raise scan.layout_error(root, f"slices that {train_list.name} names, in {wanted} or the root")


def _sites(scan: ScanResult) -> dict[str, str]:
    """The source of each patient that metadata.csv names."""
    path = scan.root / "metadata.csv"
    if not os.path.isfile(path):
        scan.notes.append(
            f"there is no metadata.csv in {scan.root}: persons are taken from file names, and "
            "sites are not known."
        )
        return {}
    rows = read_table(path, [("patient id", "patient_id")], [("source", "data source")])
    return {row[0]: row[1] for row in rows}


def _patient_of_metadata(name: str, sites: dict[str, str]) -> str | None:
    """The longest beginning of the name, up to a - or _, that is a patient's id."""
    stem = Path(name).stem
    ends = [match.start() for match in re.finditer(r"[-_]", stem)]
    patient = next((stem[:end] for end in reversed(ends) if stem[:end] in sites), None)
    if patient is None and (inside := _PATIENTS[1].match(stem)) and inside[1] in sites:
        patient = inside[1]
    return patient


def _patient_of_name(name: str) -> str | None:
    matches = (pattern.match(Path(name).stem) for pattern in _PATIENTS)
    return next((match[1] for match in matches if match), None)
