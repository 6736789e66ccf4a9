"""COVID-CT: slices of articles, with the patients and the split of its tables."""

from __future__ import annotations

import os
import re
from pathlib import Path

from drenet_jax.data.public.scan import PICTURES, ScanResult, read_lines
from drenet_jax.data.public.tables import read_table
from drenet_jax.errors import InputError

_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# What the data set calls its halves -> label, and a prefix that makes ids unique over both.
_HALVES = {"COVID": ("COVID-19", "covid"), "NonCOVID": ("not COVID-19", "other")}


def find_patients(root: Path) -> ScanResult:
    """COVID-CT: 746 single slices as PNG and JPEG, cut from articles and teaching collections.

    Layout: `Images-processed/CT_COVID/` and `CT_NonCOVID/` (or both in the root; their zips
      unpacked), `Data-split/COVID/trainCT_COVID.txt` and so on, `COVID-CT-MetaInfo.xlsx`,
      `NonCOVID-CT-MetaInfo.csv` (either may be CSV or .xlsx).
    Labels: COVID-19 and "not COVID-19" (other diseases, and healthy).
    Persons: those of the MetaInfo files. Slices that these do not name are guessed to be of one
      person if they are of one figure (`name%0.png`, `name%1.png`). That is often wrong: of the 289
      persons of the published training and validation lists it gets 146 right and tears 52 apart.
    Split: as published; none if there is no `Data-split`.
    Sites: none published.
    Cite: Yang X., He X., Zhao J., Zhang Y., Zhang S., Xie P., "COVID-CT-Dataset: A CT Scan Dataset
      about COVID-19" (2020), arXiv:2003.13865.
    Terms: the copyright is with the authors and publishers of the articles; see its page,
      https://github.com/UCSD-AI4H/COVID-CT.
    """
    scan = ScanResult(root, "COVID-CT")
    for images in (root / "Images-processed", root):
        if all(os.path.isdir(images / f"CT_{half}") for half in _HALVES):
            break
    else:
        if os.path.isfile(root / "manifest.csv"):
            raise InputError(
                f"--root={root} holds manifest.csv, a cohort file already; give it to prepare as "
                f"--cohort={root / 'manifest.csv'}."
            )
        raise scan.layout_error(
            root, "Images-processed/CT_COVID/ and CT_NonCOVID/ (unpacked from their zips)"
        )
    has_split = os.path.isdir(root / "Data-split")
    if not has_split:
        scan.notes.append(f"there is no Data-split in {root}: the published split cannot be kept.")
    for half in _HALVES:
        _add_half(scan, half, images / f"CT_{half}", has_split=has_split)
    scan.leave_out_contradictions()
    return scan


def _add_half(scan: ScanResult, half: str, folder: Path, *, has_split: bool) -> None:
    label, prefix = _HALVES[half]
    pictures = {picture.name: picture for picture in scan.files(folder, PICTURES)}
    splits = _splits(scan.root, half) if has_split else dict.fromkeys(pictures, "")
    patients = _patients(scan.root, half)
    guessed = []
    for name, picture in pictures.items():
        if name not in splits:
            scan.leave_out("slices in no list of Data-split", picture)
            continue
        # The table names some slices without their suffix.
        patient = patients.get(name) or patients.get(picture.stem)
        if patient is None:
            guessed.append(name)
            # With its suffix: 59.png and 59%0.jpg are of two patients.
            patient = re.sub(r"%\d+(?=\.\w+$)", "", name)
        scan.add(f"{prefix}_{patient}", picture, label, split=splits[name])
    for name in splits:
        if name not in pictures:
            scan.leave_out("slices of Data-split that are not there", f"CT_{half}/{name}")
    if guessed:
        scan.notes.append(
            f"the persons of {len(guessed)} slices in CT_{half} (the first: {guessed[0]}) are "
            f"guessed from file names, often wrongly; put {half}-CT-MetaInfo, which names "
            f"them, into {scan.root}."
        )


def _splits(root: Path, half: str) -> dict[str, str]:
    """The split of each slice that the published lists name."""
    splits: dict[str, str] = {}
    for name, split in _SPLITS.items():
        path = root / "Data-split" / half / f"{name}CT_{half}.txt"
        for line in filter(None, read_lines(path, "copy Data-split from COVID-CT's page")):
            if splits.setdefault(line, split) != split:
                raise InputError(
                    f"{path} names {line}, which is in the list for {splits[line]}, too; "
                    "take it out of one."
                )
    return splits


def _patients(root: Path, half: str) -> dict[str, str]:
    """The patient of each slice that the MetaInfo file names; none if there is no such file."""
    for suffix in (".csv", ".xlsx"):
        path = root / f"{half}-CT-MetaInfo{suffix}"
        if os.path.isfile(path):
            rows = read_table(path, [("file name", "image name"), ("patient id",)])
            return {name: re.sub(r"\s+", "_", patient.lower()) for name, patient in rows if patient}
    return {}
