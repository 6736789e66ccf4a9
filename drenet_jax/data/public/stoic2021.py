"""STOIC2021: the 2,000 public training series of the STOIC study as MetaImage.

Layout: `data/mha/<PatientID>.mha`, `metadata/reference.csv` (PatientID, probCOVID, probSevere).
Labels: COVID-19 and "not COVID-19", by RT-PCR. The latter are no healthy persons: all had been
  suspected of COVID-19.
Persons: a file each.
Split, sites: none published.
Cite: Revel M.-P., Boussouar S., de Margerie-Mellon C. et al., "Study of Thoracic CT in COVID-19:
  The STOIC Project", Radiology 301, E361 (2021), doi:10.1148/radiol.2021210384.
Terms: CC BY-NC 4.0, see https://stoic2021.grand-challenge.org.
"""

from __future__ import annotations

import os
from pathlib import Path

from drenet_jax.data.public.scan import ScanResult
from drenet_jax.data.public.tables import read_table
from drenet_jax.data.public.tree import files, layout_error
from drenet_jax.errors import InputError

_LABELS = {"1": "COVID-19", "0": "not COVID-19"}


def find_persons(root: Path) -> ScanResult:
    scanned = ScanResult(root)
    folder, table = root / "data" / "mha", root / "metadata" / "reference.csv"
    if not os.path.isdir(folder) or not os.path.isfile(table):
        raise layout_error(root, "STOIC2021", "data/mha/ and metadata/reference.csv")
    series = {file.stem: file for file in files(scanned, folder, (".mha",))}
    label_of: dict[str, str] = {}
    for patient_id, value in read_table(table, [("patientid",), ("probcovid",)]):
        value = value.removesuffix(".0")
        if value not in _LABELS:
            raise InputError(
                f"{table} has probCOVID {value!r} for PatientID {patient_id!r}, where 0 or 1 was "
                "looked for; download it again."
            )
        label_of[patient_id] = _LABELS[value]
    for label in _LABELS.values():
        for patient_id, file in series.items():
            if label_of.get(patient_id) == label:
                scanned.add(patient_id, file, label)
    for patient_id, file in series.items():
        if patient_id not in label_of:
            scanned.leave_out("series that reference.csv does not name", file)
    for patient_id in label_of:
        if patient_id not in series:
            scanned.leave_out("persons of reference.csv whose series are not there", patient_id)
    return scanned
