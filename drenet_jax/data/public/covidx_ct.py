"""COVIDx-CT (versions 1 to 3): single slices as PNG, gathered from a dozen data sets.

Layout: slices in `3A_images/` (`2A_images/`, `images/`, or the root), `train_COVIDx_CT-3A.txt`,
  `val_...`, `test_...` with lines `file class xmin ymin xmax ymax`, `metadata.csv`.
Labels: COVID-19 (class 2), pneumonia (1), healthy (0). Of ill persons there are mostly the slices
  with lesions, of healthy ones all.
Persons: a row a slice. A person is the "patient id" of metadata.csv that the file's name begins
  with, or else what the name tells (`NCP_96_1328_0035.png` is of `NCP_96`).
Split: as published.
Sites: the "source"s of metadata.csv.
Cite: Gunraj H., Wang L., Wong A., "COVIDNet-CT: A Tailored Deep Convolutional Neural Network Design
  for Detection of COVID-19 Cases From Chest CT Images", Frontiers in Medicine 7 (2020),
  doi:10.3389/fmed.2020.608525; for versions 2 and 3: Gunraj H., Sabri A., Koff D., Wong A.,
  "COVID-Net CT-2: Enhanced Deep Neural Networks for Detection of COVID-19 From Chest CT Images
  Through Bigger, More Diverse Learning", Frontiers in Medicine 8 (2022),
  doi:10.3389/fmed.2021.729287.
Terms: those of each source, some without commercial use; see docs/licenses_acknowledgements.md in
  https://github.com/haydengunraj/COVIDNet-CT.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from drenet_jax.ct.sources import natural
from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tables import read_table
from drenet_jax.data.public.tree import layout_error, listed
from drenet_jax.errors import InputError

_TITLE = "COVIDx-CT"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# By class, in the order of the cohort.
_LABELS = {"2": "COVID-19", "1": "pneumonia", "0": "healthy"}

# Names of lists differ between versions: train_COVIDx-CT.txt, ..._v2A.txt, train_COVIDx_CT-3A.txt.
_LIST = "{}_COVIDx[-_]CT*.txt"
_VERSION = re.compile(r"CT[-_]v?(\d[A-B]?)\.txt$")

# How the sources name their slices, where metadata.csv does not tell the person. COVID-CTset's
# (`137covid_patient1_SR_3_IM00001`) have the person in the middle.
_PERSONS = tuple(
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


@dataclasses.dataclass(frozen=True)
class _Slice:
    name: str
    label: str
    split: str


def find_persons(root: Path) -> ScanResult:
    scanned = ScanResult(root)
    lists = {name: _one_list(root, name) for name in _SPLITS}
    named = [item for name, path in lists.items() for item in _read_list(path, _SPLITS[name])]
    slices = list(dict.fromkeys(named))
    folder, there = _images(root, lists["train"], slices)
    sites = _sites(scanned)

    order = list(_LABELS.values())
    slices.sort(key=lambda item: (order.index(item.label), natural(item.name)))
    guessed = []
    for slice_ in slices:
        if slice_.name not in there:
            scanned.leave_out("slices of the lists that are not there", slice_.name)
            continue
        person = _person_of_metadata(slice_.name, sites)
        if person is None:
            person = _person_of_name(slice_.name)
            guessed.append(slice_.name)
        if person is None:
            scanned.leave_out("slices whose names tell no person", slice_.name)
            continue
        site = sites.get(person, "")
        scanned.add(person, folder / slice_.name, slice_.label, split=slice_.split, site=site)
    if guessed and sites:
        scanned.notes.append(
            f"metadata.csv does not name the persons of {len(guessed)} slices (the first: "
            f"{guessed[0]}); these are taken from the file names."
        )
    for name in sorted(there - {item.name for item in slices}, key=natural):
        if name.lower().endswith(".png"):
            scanned.leave_out("slices in no list", name)
    scanned.leave_out_contradictions()
    return scanned


def _one_list(root: Path, name: str) -> Path:
    paths = sorted(root.glob(_LIST.format(name)))
    if not paths:
        raise layout_error(root, _TITLE, f"{_LIST.format(name)!r}")
    if len(paths) > 1:
        raise InputError(
            f"--root={root} holds the lists {paths[0].name} and {paths[1].name}; "
            "keep those of one version."
        )
    return paths[0]


def _read_list(path: Path, split: str) -> list[_Slice]:
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check it.") from error
    slices = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) < 2 or fields[1] not in _LABELS:
            raise InputError(
                f"{path}, line {number}: a file and its class, 0 to 2, were looked for; "
                "download the list again."
            )
        slices.append(_Slice(fields[0], _LABELS[fields[1]], split))
    return slices


def _images(root: Path, train_list: Path, slices: list[_Slice]) -> tuple[Path, set[str]]:
    """The folder of the slices, and the names of all that it holds."""
    version = _VERSION.search(train_list.name)
    places = [root / "images", root]
    if version:
        places.insert(0, root / f"{version[1]}_images")
    for place in places:
        if os.path.isdir(place):
            there = set(listed(place))
            if any(slice_.name in there for slice_ in slices):
                return place, there
    wanted = " or ".join(place.name + "/" for place in places[:-1])
    raise layout_error(
        root, _TITLE, f"slices that {train_list.name} names, in {wanted} or the root"
    )


def _sites(scanned: ScanResult) -> dict[str, str]:
    """The source of each person that metadata.csv names."""
    path = scanned.root / "metadata.csv"
    if not os.path.isfile(path):
        scanned.notes.append(
            f"there is no metadata.csv in {scanned.root}: persons are taken from file names, and "
            "sites are not known."
        )
        return {}
    rows = read_table(path, [("patient id", "patient_id")], [("source", "data source")])
    return {row[0]: row[1] for row in rows}


def _person_of_metadata(name: str, sites: dict[str, str]) -> str | None:
    """The longest beginning of the name, up to a - or _, that is a person's id."""
    stem = Path(name).stem
    ends = [match.start() for match in re.finditer(r"[-_]", stem)]
    person = next((stem[:end] for end in reversed(ends) if stem[:end] in sites), None)
    if person is None and (inside := _PERSONS[1].match(stem)) and inside[1] in sites:
        person = inside[1]
    return person


def _person_of_name(name: str) -> str | None:
    scanned = (pattern.match(Path(name).stem) for pattern in _PERSONS)
    return next((match[1] for match in scanned if match), None)
