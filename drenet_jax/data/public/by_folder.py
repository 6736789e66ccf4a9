"""Data sets in which a folder holds the patients of a label; see `public` for the docstrings."""

from __future__ import annotations

import collections
import os
from pathlib import Path

from drenet_jax.data.identities import person_key
from drenet_jax.data.public.scan import PICTURES, ScanResult, entries, holds_a_file
from drenet_jax.data.public.tables import read_table
from drenet_jax.errors import InputError


def covid_ct_md(root: Path) -> ScanResult:
    """COVID-CT-MD: DICOM series of COVID-19, community-acquired pneumonia (CAP) and healthy people.

    Layout: `COVID-19 subjects/`, `Cap Cases/`, `Normal Cases/` (or `COVID-19/`, `CAP/`, `Normal/`).
    Labels: COVID-19, CAP (cause not reported), healthy.
    Persons: a folder each.
    Split, sites: none published.
    Cite: Afshar P., Heidarian S., Enshaei N. et al., "COVID-CT-MD, COVID-19 computed tomography
      scan dataset applicable in machine learning and deep learning", Scientific Data 8, 121 (2021),
      doi:10.1038/s41597-021-00900-3.
    Terms: see its page, https://github.com/ShahinSHH/COVID-CT-MD.
    """
    # Its paper, its page and its archive each name the folders otherwise.
    labels = {
        "COVID-19": ("COVID-19 subjects", "COVID-19 cases", "COVID-19"),
        "CAP": ("Cap Cases", "CAP subjects", "CAP"),
        "healthy": ("Normal Cases", "Normal subjects", "Normal"),
    }
    scan = ScanResult(root, "COVID-CT-MD")
    for label, folder in scan.named_folders(labels):
        for patient in scan.filled_folders(folder):
            scan.add(patient.name, patient, label)
    return scan


def cc_ccii(root: Path) -> ScanResult:
    """CC-CCII (CNCB): PNG and JPEG series of COVID-19, common pneumonia and healthy people.

    Layout: `NCP/`, `CP/`, `Normal/`, in each a folder a patient, in that a folder a scan.
    Labels: COVID-19 (NCP), CP (common pneumonia, viral or bacterial), healthy.
    Persons: a row a scan; the id begins with the class, as in COVIDx-CT (`NCP_96`).
    Split, sites: none published.
    Cite: Zhang K., Liu X., Shen J. et al., "Clinically Applicable AI System for Accurate Diagnosis,
      Quantitative Measurements, and Prognosis of COVID-19 Pneumonia Using Computed Tomography",
      Cell 181, 1423 (2020), doi:10.1016/j.cell.2020.04.045.
    Terms: CC BY 3.0 CN, as COVIDx-CT states them; see its page, http://ncov-ai.big.ac.cn/download.
    """
    labels = {"NCP": "COVID-19", "CP": "CP", "Normal": "healthy"}
    scan = ScanResult(root, "CC-CCII")
    for name, folder in scan.named_folders({name: (name,) for name in labels}):
        for patient in scan.filled_folders(folder):
            for series in scan.filled_folders(patient):
                scan.add(f"{name}_{patient.name}", series, labels[name])
    return scan


def mosmed(root: Path) -> ScanResult:
    """MosMedData (COVID19_1110): 1110 NIfTI series, sorted by how much of the lungs is affected.

    Layout: `studies/CT-0/` to `studies/CT-4/` with `*.nii.gz`.
    Labels: healthy (CT-0, no findings), COVID-19 (CT-1 to CT-4, more and more severe; the cohort
      lists them in this order). They are radiologists' readings, not results of a test.
    Persons: a file each.
    Split, sites: none published.
    Cite: Morozov S.P., Andreychenko A.E., Pavlov N.A. et al., "MosMedData: Chest CT Scans with
      COVID-19 Related Findings Dataset", medRxiv (2020), doi:10.1101/2020.05.20.20100362.
    Terms: CC BY-NC-ND 3.0 (no commercial use, no sharing of what is derived from it), see
      https://mosmed.ai/datasets/covid19_1110.
    """
    labels = {**{f"CT-{n}": "COVID-19" for n in range(1, 5)}, "CT-0": "healthy"}
    scan = ScanResult(root, "MosMedData")
    candidates = (root / "studies", root / "COVID19_1110" / "studies")
    inside = next(filter(os.path.isdir, candidates), root)
    for name, folder in scan.named_folders({name: (name,) for name in labels}, inside):
        for series in scan.files(folder, (".nii.gz", ".nii")):
            scan.add(series.name.split(".nii")[0], series, labels[name])
    return scan


def stoic2021(root: Path) -> ScanResult:
    """STOIC2021: the 2,000 public training series of the STOIC study as MetaImage.

    Layout: `data/mha/<PatientID>.mha`, `metadata/reference.csv` (PatientID, probCOVID, probSevere).
    Labels: COVID-19 and "not COVID-19", by RT-PCR. The latter are not healthy: all had been
      suspected of COVID-19.
    Persons: a file each.
    Split, sites: none published.
    Cite: Revel M.-P., Boussouar S., de Margerie-Mellon C. et al., "Study of Thoracic CT in
      COVID-19: The STOIC Project", Radiology 301, E361 (2021), doi:10.1148/radiol.2021210384.
    Terms: CC BY-NC 4.0, see https://stoic2021.grand-challenge.org.
    """
    labels = {"1": "COVID-19", "0": "not COVID-19"}
    scan = ScanResult(root, "STOIC2021")
    folder, table = root / "data" / "mha", root / "metadata" / "reference.csv"
    if not os.path.isdir(folder) or not os.path.isfile(table):
        raise scan.layout_error(root, "data/mha/ and metadata/reference.csv")
    series = {file.stem: file for file in scan.files(folder, (".mha",))}
    label_of: dict[str, str] = {}
    for patient_id, value in read_table(table, [("patientid",), ("probcovid",)]):
        value = value.removesuffix(".0")
        if value not in labels:
            raise InputError(
                f"{table} has probCOVID {value!r} for PatientID {patient_id!r}, where 0 or 1 was "
                "looked for; download it again."
            )
        label_of[patient_id] = labels[value]
    for label in labels.values():
        for patient_id, file in series.items():
            if label_of.get(patient_id) == label:
                scan.add(patient_id, file, label)
    for patient_id, file in series.items():
        if patient_id not in label_of:
            scan.leave_out("series that reference.csv does not name", file)
    for patient_id in label_of:
        if patient_id not in series:
            scan.leave_out("persons of reference.csv whose series are not there", patient_id)
    return scan


def cov19_ct_db(root: Path) -> ScanResult:
    """COV19-CT-DB: JPEG series of COVID-19 and other patients, from the COV19D challenges.

    Layout: `train/` and `val/` (or `validation/`), in each `covid/` and `non-covid/`, in these a
      folder `ct_scan_N` a scan.
    Labels: COVID-19 and "not COVID-19".
    Persons: not published. There are more scans than persons (6,600 of some 3,750, its page says),
      but each scan must be taken for a person; ids say which (`train_covid_ct_scan_1`).
    Split: training and validation as published; the test scans have no labels and are left out.
    Sites: none published.
    Cite: Kollias D., Arsenos A., Soukissian L., Kollias S., "MIA-COV19D: COVID-19 Detection through
      3-D Chest CT Image Analysis", ICCV Workshops (2021), arXiv:2106.07524.
    Terms: its authors give it to academics on request, see
      https://sites.google.com/view/dimitrioskollias/databases/cov19-ct-db.
    """
    labels = {"COVID-19": ("covid",), "not COVID-19": ("non-covid",)}
    scan = ScanResult(root, "COV19-CT-DB")
    scan.notes.append(
        "each scan is taken for a person: scans of one person may be in two splits, and intervals "
        "over persons come out too narrow."
    )
    splits = scan.named_folders({"train": ("train",), "validation": ("val", "validation")})
    for split, folder in splits:
        for label, of_label in scan.named_folders(labels, folder):
            for series in scan.filled_folders(of_label):
                name = f"{folder.name}_{of_label.name}_{series.name}"
                scan.add(name, series, label, split=split)
    order = list(labels)
    scan.rows.sort(key=lambda row: order.index(row.label))
    read = {folder for _, folder in splits}
    for entry in entries(root):
        if entry not in read and os.path.isdir(entry):
            scan.leave_out("folders that are neither training nor validation", entry)
    return scan


def sars_cov_2_ct_scan(root: Path) -> ScanResult:
    """SARS-CoV-2 CT-scan dataset: 2,482 single slices as PNG from hospitals in Sao Paulo.

    Layout: `COVID/Covid (N).png`, `non-COVID/Non-Covid (N).png`.
    Labels: COVID-19 and "not COVID-19".
    Persons: not published, not in file names either. Each slice must be taken for a person, so
      slices of one person get into training and test, and results come out too good.
    Split, sites: none published.
    Cite: Soares E., Angelov P., Biaso S., Froes M.H., Abe D.K., "SARS-CoV-2 CT-scan dataset: A
      large dataset of real patients CT scans for SARS-CoV-2 identification", medRxiv (2020),
      doi:10.1101/2020.04.24.20078584.
    Terms: see its page, https://www.kaggle.com/plameneduardo/sarscov2-ctscan-dataset.
    """
    scan = ScanResult(root, "SARS-CoV-2 CT-scan")
    scan.notes.append(
        "each slice is taken for a person, since nothing tells which are of one person: a split by "
        "person cannot be had, and results come out too good."
    )
    labels = {"COVID-19": ("COVID",), "not COVID-19": ("non-COVID",)}
    for label, folder in scan.named_folders(labels):
        for picture in scan.files(folder, PICTURES):
            scan.add(f"{folder.name}_{picture.stem}", picture, label)
    return scan


_SUFFIXES = (
    *(".zip", ".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".dcm", ".dicom", ".ima"),
    *PICTURES,
)
# The voxels that belong to a .mhd.
_VOXELS = (".raw", ".zraw")


def own_folders(root: Path) -> ScanResult:
    """Your own data: a folder a label, and in it a folder or a file a person.

    Layout: `<label>/<person>`, where a person is a folder (with whatever is below it) or a file: a
      zip, NIfTI (.nii, .nii.gz), MetaImage (.mha, .mhd), NRRD, DICOM (.dcm, .dicom, .ima), PNG or
      JPEG.
    Labels: the folders' names.
    Persons: the names without suffix. If a name is under two labels, these are two persons, and all
      ids begin with the label.
    Split, sites: none; add the columns by hand.
    """
    scan = ScanResult(root, "a cohort of folders")
    labels = [entry for entry in entries(root) if os.path.isdir(entry)]
    if len(labels) < 2:
        raise scan.layout_error(root, "two or more folders, one for each label")
    for entry in entries(root):
        if entry not in labels:
            scan.leave_out("files beside the labels' folders", entry)

    persons = {label: _patients_of_label(scan, label) for label in labels}
    names = dict.fromkeys(name for of_label in persons.values() for name in of_label)
    n_labels = collections.Counter(
        key for of_label in persons.values() for key in set(map(person_key, of_label))
    )
    twice = [name for name in names if n_labels[person_key(name)] > 1]
    if twice:
        scan.notes.append(
            f"{len(twice)} names (the first: {twice[0]}) are under two labels; they are taken for "
            "different persons, and each id begins with its label."
        )
    for label, of_label in persons.items():
        for name, path in of_label.items():
            scan.add(f"{label.name}_{name}" if twice else name, path, label.name)
    return scan


def _patients_of_label(scan: ScanResult, label: Path) -> dict[str, Path]:
    persons: dict[str, Path] = {}
    for entry in entries(label):
        name = entry.name
        if os.path.isdir(entry):
            if not holds_a_file(entry):
                scan.leave_out("folders without a file that may be read", entry)
                continue
        else:
            suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), None)
            if suffix is None:
                is_voxels = entry.suffix.lower() in _VOXELS
                if not (is_voxels and os.path.exists(entry.with_suffix(".mhd"))):
                    scan.leave_out("files of a kind that holds no CT", entry)
                continue
            name = name[: -len(suffix)]
        if name in persons:
            raise InputError(
                f"{persons[name]} and {entry} would be one person, {name!r}; remove one, or put "
                "them into one folder."
            )
        persons[name] = entry
    return persons
