"""CC-CCII (CNCB): PNG and JPEG series of COVID-19, common pneumonia and healthy persons.

Layout: `NCP/`, `CP/`, `Normal/`, in each a folder a person, in that a folder a scan.
Labels: COVID-19 (NCP), CP (common pneumonia, viral or bacterial), healthy.
Persons: a row a scan; the id begins with the class, as in COVIDx-CT (`NCP_96`).
Split, sites: none published.
Cite: Zhang K., Liu X., Shen J. et al., "Clinically Applicable AI System for Accurate Diagnosis,
  Quantitative Measurements, and Prognosis of COVID-19 Pneumonia Using Computed Tomography", Cell
  181, 1423 (2020), doi:10.1016/j.cell.2020.04.045.
Terms: CC BY 3.0 CN, as COVIDx-CT states them; see its page, http://ncov-ai.big.ac.cn/download.
"""

from __future__ import annotations

from pathlib import Path

from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tree import filled_folders, named_folders

_LABELS = {"NCP": "COVID-19", "CP": "CP", "Normal": "healthy"}


def find_persons(root: Path) -> ScanResult:
    scanned = ScanResult(root)
    for name, folder in named_folders(scanned, "CC-CCII", {name: (name,) for name in _LABELS}):
        for person in filled_folders(scanned, folder):
            for scan in filled_folders(scanned, person):
                scanned.add(f"{name}_{person.name}", scan, _LABELS[name])
    return scanned
