"""What a series costs on its way to the records."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2

from benchmarks.timing import Row, interleaved_timings, plain_row, ratio_row
from drenet_jax.ct import sampling
from drenet_jax.ct.discovery import open_series
from drenet_jax.ct.lungs import segmentation
from drenet_jax.ct.prepared_series import filled
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort_table import Person
from drenet_jax.data.transform import prepare_to_staging
from drenet_jax.phantoms.dicom import write_dicom
from drenet_jax.phantoms.phantom import make_phantom

SUITE = "ct"
PACKAGES = ("numpy", "opencv-python-headless", "pydicom", "python-gdcm")

# A series of a phantom, where the caller names none: the size of a scanner's matrix.
_PHANTOM_PX = 512


def run(series: Sequence[Path], settings: CtSettings, seed: int, rounds: int) -> list[Row]:
    """Times `prepare`'s transform of whole series, stage by stage, on one core.

    Args:
      series: paths of DICOM series; none: a phantom's is written for it.
      settings: of preprocessing.
      seed: of the fill and the phantom.
      rounds: how often everything is measured.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as in the workers of `prepare`
    try:
        with tempfile.TemporaryDirectory(prefix="drenet_jax_") as folder:
            if not series:
                series = [phantom_series(Path(folder) / "phantom", seed)]
            rows = []
            for path in series:
                rows += _rows(path, Path(folder) / "person.spool", settings, seed, rounds)
            return rows
    finally:
        cv2.setNumThreads(before)


def phantom_series(folder: Path, seed: int, least_lung_share: float = 0.0) -> Path:
    """Makes the folder and writes a phantom's DICOM series into it.

    Args:
      folder: to make.
      seed: of the phantom.
      least_lung_share: leaves out slices with less lung than this share of the largest.
    """
    folder.mkdir()
    phantom = make_phantom("COVID-19", seed, _PHANTOM_PX, "A")
    areas = phantom.lung_mask.sum(axis=(1, 2))
    is_in = areas >= least_lung_share * areas.max()
    phantom = dataclasses.replace(
        phantom,
        volume_hu=phantom.volume_hu[is_in],
        lung_mask=phantom.lung_mask[is_in],
        lesion_mask=phantom.lesion_mask[is_in],
    )
    write_dicom(phantom, folder, patient_id="phantom", seed=seed)
    return folder


def _rows(path: Path, staged: Path, settings: CtSettings, seed: int, rounds: int) -> list[Row]:
    opened = open_series(path)
    indices = sampling.sample_uniform(len(opened), settings.slices_per_person)
    images = [opened.read(index) for index in indices]
    prepared = prepare_person([path], settings)
    person = Person("benchmark", (path,), "none", "", "")
    times = interleaved_timings(
        {
            "decode": lambda: [opened.read(index) for index in indices],
            "all": lambda: prepare_to_staging(person, staged, settings, seed),
            "open": lambda: open_series(path),
            "lungs": lambda: segmentation.find_lungs_in_series(
                images, from_feet=not opened.are_pictures
            ),
            "person": lambda: prepare_person([path], settings),
            "fill": lambda: [filled(slice_, settings, seed) for slice_ in prepared.kept],
        },
        rounds,
    )
    name = path.name
    decoding = f"decoding {len(indices)} files"
    return [
        ratio_row(
            SUITE, f"{name}: the whole transform", times["all"], decoding, times["decode"], 2.5
        ),
        plain_row(SUITE, f"{name}: headers of {len(opened)} files, order", times["open"]),
        plain_row(SUITE, f"{name}: decoding {len(indices)} slices", times["decode"]),
        plain_row(SUITE, f"{name}: lungs in {len(images)} slices", times["lungs"]),
        plain_row(SUITE, f"{name}: all before the fill", times["person"]),
        plain_row(SUITE, f"{name}: fill of {len(prepared.kept)} slices", times["fill"]),
    ]
