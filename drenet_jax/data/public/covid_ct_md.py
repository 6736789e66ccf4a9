"""COVID-CT-MD: DICOM series of COVID-19, community-acquired pneumonia (CAP) and healthy persons.

Layout: `COVID-19 subjects/`, `Cap Cases/`, `Normal Cases/` (or `COVID-19/`, `CAP/`, `Normal/`).
Labels: COVID-19, CAP (cause not reported), healthy.
Persons: a folder each.
Split, sites: none published.
Cite: Afshar P., Heidarian S., Enshaei N. et al., "COVID-CT-MD, COVID-19 computed tomography scan
  dataset applicable in machine learning and deep learning", Scientific Data 8, 121 (2021),
  doi:10.1038/s41597-021-00900-3.
Terms: see its page, https://github.com/ShahinSHH/COVID-CT-MD.
"""

from __future__ import annotations

from pathlib import Path

from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tree import filled_folders, named_folders

# Its paper, its page and its archive each name the folders otherwise.
_FOLDERS = {
    "COVID-19": ("COVID-19 subjects", "COVID-19 cases", "COVID-19"),
    "CAP": ("Cap Cases", "CAP subjects", "CAP"),
    "healthy": ("Normal Cases", "Normal subjects", "Normal"),
}


def find_persons(root: Path) -> ScanResult:
    scanned = ScanResult(root)
    for label, folder in named_folders(scanned, "COVID-CT-MD", _FOLDERS):
        for person in filled_folders(scanned, folder):
            scanned.add(person.name, person, label)
    return scanned
