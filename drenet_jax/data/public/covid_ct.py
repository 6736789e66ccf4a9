"""COVID-CT: 746 single slices as PNG and JPEG, cut from articles and teaching collections.

Layout: `Images-processed/CT_COVID/` and `CT_NonCOVID/` (or both in the root; their zips unpacked),
  `Data-split/COVID/trainCT_COVID.txt` and so on, `COVID-CT-MetaInfo.xlsx`,
  `NonCOVID-CT-MetaInfo.csv` (either may be CSV or .xlsx).
Labels: COVID-19 and "not COVID-19" (other diseases, and healthy).
Persons: those of the MetaInfo files. Slices that these do not name are guessed to be of one person
  if they are of one figure (`name%0.png`, `name%1.png`). That is often wrong: of the 289 persons of
  the published training and validation lists it gets 146 right and tears 52 apart.
Split: as published; none if there is no `Data-split`.
Sites: none published.
Cite: Yang X., He X., Zhao J., Zhang Y., Zhang S., Xie P., "COVID-CT-Dataset: A CT Scan Dataset
  about COVID-19" (2020), arXiv:2003.13865.
Terms: the copyright is with the authors and publishers of the articles; see its page,
  https://github.com/UCSD-AI4H/COVID-CT.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tables import read_table
from drenet_jax.data.public.tree import PICTURES, files, layout_error
from drenet_jax.errors import InputError

_TITLE = "COVID-CT"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class _Half:
    """What the data set names by "COVID" or "NonCOVID"; `prefix` makes ids unique over both."""

    name: str
    label: str
    prefix: str


_HALVES = (_Half("COVID", "COVID-19", "covid"), _Half("NonCOVID", "not COVID-19", "other"))


def find_persons(root: Path) -> ScanResult:
    scanned = ScanResult(root)
    images = next(
        (
            place
            for place in (root / "Images-processed", root)
            if all(os.path.isdir(place / f"CT_{half.name}") for half in _HALVES)
        ),
        None,
    )
    if images is None:
        if os.path.isfile(root / "manifest.csv"):
            raise InputError(
                f"--root={root} holds manifest.csv, a cohort file already; give it to prepare as "
                f"--cohort={root / 'manifest.csv'}."
            )
        raise layout_error(
            root, _TITLE, "Images-processed/CT_COVID/ and CT_NonCOVID/ (unpacked from their zips)"
        )
    has_split = os.path.isdir(root / "Data-split")
    if not has_split:
        scanned.notes.append(
            f"there is no Data-split in {root}: the published split cannot be kept."
        )
    for half in _HALVES:
        _add_half(scanned, half, images / f"CT_{half.name}", has_split=has_split)
    scanned.leave_out_contradictions()
    return scanned


def _add_half(scanned: ScanResult, half: _Half, folder: Path, *, has_split: bool) -> None:
    pictures = {picture.name: picture for picture in files(scanned, folder, PICTURES)}
    splits = _splits(scanned.root, half) if has_split else dict.fromkeys(pictures, "")
    persons = _persons(scanned.root, half)
    guessed = []
    for name, picture in pictures.items():
        if name not in splits:
            scanned.leave_out("slices in no list of Data-split", picture)
            continue
        # The table names some slices without their suffix.
        person = persons.get(name) or persons.get(picture.stem)
        if person is None:
            guessed.append(name)
            # With its suffix: 59.png and 59%0.jpg are of two persons.
            person = re.sub(r"%\d+(?=\.\w+$)", "", name)
        scanned.add(f"{half.prefix}_{person}", picture, half.label, split=splits[name])
    for name in splits:
        if name not in pictures:
            scanned.leave_out("slices of Data-split that are not there", f"CT_{half.name}/{name}")
    if guessed:
        scanned.notes.append(
            f"the persons of {len(guessed)} slices in CT_{half.name} (the first: {guessed[0]}) are "
            f"guessed from file names, often wrongly; put {half.name}-CT-MetaInfo, which names "
            f"them, into {scanned.root}."
        )


def _splits(root: Path, half: _Half) -> dict[str, str]:
    """The split of each slice that the published lists name."""
    splits: dict[str, str] = {}
    for name, split in _SPLITS.items():
        path = root / "Data-split" / half.name / f"{name}CT_{half.name}.txt"
        try:
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror}); copy Data-split from {_TITLE}'s page."
            ) from error
        for line in filter(None, map(str.strip, lines)):
            if splits.setdefault(line, split) != split:
                raise InputError(
                    f"{path} names {line}, which is in the list for {splits[line]}, too; "
                    "take it out of one."
                )
    return splits


def _persons(root: Path, half: _Half) -> dict[str, str]:
    """The person of each slice that the MetaInfo file names; none if there is no such file."""
    for suffix in (".csv", ".xlsx"):
        path = root / f"{half.name}-CT-MetaInfo{suffix}"
        if os.path.isfile(path):
            rows = read_table(path, [("file name", "image name"), ("patient id",)])
            return {name: re.sub(r"\s+", "_", patient.lower()) for name, patient in rows if patient}
    return {}
