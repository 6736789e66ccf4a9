"""MosMedData (COVID19_1110): 1110 series as NIfTI, sorted by how much of the lungs is affected.

Layout: `studies/CT-0/` to `studies/CT-4/` with `*.nii.gz`.
Labels: healthy (CT-0, no findings), COVID-19 (CT-1 to CT-4, more and more severe; the cohort has
  the persons in this order). They are what radiologists saw, not results of a test.
Persons: a file each.
Split, sites: none published.
Cite: Morozov S.P., Andreychenko A.E., Pavlov N.A. et al., "MosMedData: Chest CT Scans with COVID-19
  Related Findings Dataset", medRxiv (2020), doi:10.1101/2020.05.20.20100362.
Terms: CC BY-NC-ND 3.0 (no commercial use, no sharing of what is derived from it), see
  https://mosmed.ai/datasets/covid19_1110.
"""

from __future__ import annotations

import os
from pathlib import Path

from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tree import files, named_folders

_LABELS = {
    "CT-1": "COVID-19",
    "CT-2": "COVID-19",
    "CT-3": "COVID-19",
    "CT-4": "COVID-19",
    "CT-0": "healthy",
}


def find_persons(root: Path) -> ScanResult:
    scanned = ScanResult(root)
    places = (root / "studies", root / "COVID19_1110" / "studies")
    inside = next((place for place in places if os.path.isdir(place)), root)
    names = {name: (name,) for name in _LABELS}
    for name, folder in named_folders(scanned, "MosMedData", names, inside=inside):
        for study in files(scanned, folder, (".nii.gz", ".nii")):
            scanned.add(study.name.split(".nii")[0], study, _LABELS[name])
    return scanned
