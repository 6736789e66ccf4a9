"""Small CT slices and DICOM files for the tests of preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SERIES_UID = generate_uid(entropy_srcs=["the series"])


def draw_chest(size_px: int = 128, *, lung_scale: float = 1.0, trachea: bool = True) -> np.ndarray:
    """float32 [size, size]: a body with two lungs, spine and trachea, on a table."""
    s = size_px / 128

    def ellipse(image: np.ndarray, x: float, y: float, a: float, b: float, value: float) -> None:
        centre, axes = (round(x * s), round(y * s)), (round(a * s), round(b * s))
        cv2.ellipse(image, centre, axes, 0, 0, 360, value, cv2.FILLED)

    hu = np.full((size_px, size_px), -1000, np.float32)
    ellipse(hu, 64, 62, 56, 42, -90)
    ellipse(hu, 64, 62, 52, 38, 40)
    for x in (40, 88):
        ellipse(hu, x, 60, 18 * lung_scale, 27 * lung_scale, -860)
    ellipse(hu, 64, 86, 6, 7, 500)
    if trachea:
        ellipse(hu, 64, 56, 4, 4, -1000)
    hu[round(112 * s) : round(114 * s)] = 100
    return hu


def draw_lungs(size_px: int = 128, *, lung_scale: float = 1.0) -> np.ndarray:
    """bool [size, size]: the two lungs of `draw_chest`."""
    hu = draw_chest(size_px, lung_scale=lung_scale, trachea=False)
    return hu == -860


def write_dicom(path: Path, hu: np.ndarray, place_mm: float = 0.0, **tags: object) -> Path:
    """Writes one DICOM CT slice; `tags` replace elements, None removes one."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = SERIES_UID
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient = [-150, -150, place_mm]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = hu.astype(np.int16).tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def chest_hu() -> Callable[..., np.ndarray]:
    return draw_chest


@pytest.fixture
def chest_lungs() -> Callable[..., np.ndarray]:
    return draw_lungs


@pytest.fixture
def write_slice() -> Callable[..., Path]:
    return write_dicom


@pytest.fixture
def write_series(tmp_path: Path) -> Callable[[Sequence[float]], Path]:
    """Writes a folder of chests; lungs of the given scales, one a slice, from the feet up."""

    def write(lung_scales: Sequence[float]) -> Path:
        folder = tmp_path / "series"
        for i, scale in enumerate(lung_scales):
            write_dicom(folder / f"{i:03d}.dcm", draw_chest(lung_scale=scale), place_mm=5.0 * i)
        return folder

    return write
