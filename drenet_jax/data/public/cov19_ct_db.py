"""COV19-CT-DB: JPEG series of COVID-19 and other persons, from the COV19D challenges.

Layout: `train/` and `val/` (or `validation/`), in each `covid/` and `non-covid/`, in these a folder
  `ct_scan_N` a scan.
Labels: COVID-19 and "not COVID-19".
Persons: not published. There are more scans than persons (6,600 of some 3,750, its page says), but
  each scan must be taken for a person; ids say which (`train_covid_ct_scan_1`).
Split: training and validation as published; the test scans have no labels and are left out.
Sites: none published.
Cite: Kollias D., Arsenos A., Soukissian L., Kollias S., "MIA-COV19D: COVID-19 Detection through 3-D
  Chest CT Image Analysis", ICCV Workshops (2021), arXiv:2106.07524.
Terms: its authors give it to academics on request, see
  https://sites.google.com/view/dimitrioskollias/databases/cov19-ct-db.
"""

from __future__ import annotations

import os
from pathlib import Path

from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tree import entries, filled_folders, named_folders

_TITLE = "COV19-CT-DB"
_SPLITS = {"train": ("train",), "validation": ("val", "validation")}
_LABELS = {"COVID-19": ("covid",), "not COVID-19": ("non-covid",)}


def find_persons(root: Path) -> ScanResult:
    scanned = ScanResult(root)
    scanned.notes.append(
        "each scan is taken for a person: scans of one person may be in two splits, and intervals "
        "over persons come out too narrow."
    )
    scans: dict[str, list[tuple[str, Path, str]]] = {label: [] for label in _LABELS}
    splits = named_folders(scanned, _TITLE, _SPLITS)
    for split, folder in splits:
        for label, of_label in named_folders(scanned, _TITLE, _LABELS, inside=folder):
            for scan in filled_folders(scanned, of_label):
                scans[label].append((f"{folder.name}_{of_label.name}_{scan.name}", scan, split))
    for label, rows in scans.items():
        for patient_id, scan, split in rows:
            scanned.add(patient_id, scan, label, split=split)
    read = {folder for _, folder in splits}
    for entry in entries(root):
        if entry not in read and os.path.isdir(entry):
            scanned.leave_out("folders that are neither training nor validation", entry)
    return scanned
