"""SARS-CoV-2 CT-scan dataset: 2,482 single slices as PNG from hospitals in Sao Paulo.

Layout: `COVID/Covid (N).png`, `non-COVID/Non-Covid (N).png`.
Labels: COVID-19 and "not COVID-19".
Persons: not published, not in file names either. Each slice must be taken for a person, so slices
  of one person get into training and test, and results come out too good.
Split, sites: none published.
Cite: Soares E., Angelov P., Biaso S., Froes M.H., Abe D.K., "SARS-CoV-2 CT-scan dataset: A large
  dataset of real patients CT scans for SARS-CoV-2 identification", medRxiv (2020),
  doi:10.1101/2020.04.24.20078584.
Terms: see its page, https://www.kaggle.com/plameneduardo/sarscov2-ctscan-dataset.
"""

from __future__ import annotations

from pathlib import Path

from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tree import PICTURES, files, named_folders

_FOLDERS = {"COVID-19": ("COVID",), "not COVID-19": ("non-COVID",)}


def find_persons(root: Path) -> ScanResult:
    scanned = ScanResult(root)
    scanned.notes.append(
        "each slice is taken for a person, since nothing tells which are of one person: a split by "
        "person cannot be had, and results come out too good."
    )
    for label, folder in named_folders(scanned, "SARS-CoV-2 CT-scan", _FOLDERS):
        for picture in files(scanned, folder, PICTURES):
            scanned.add(f"{folder.name}_{picture.stem}", picture, label)
    return scanned
