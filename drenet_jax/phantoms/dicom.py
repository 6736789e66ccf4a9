"""Phantoms as DICOM series."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from drenet_jax.phantoms.phantom import FILE_NAMES_STREAM, Phantom, random_stream


def write_dicom(
    phantom: Phantom,
    folder: Path,
    *,
    patient_id: str,
    seed: int | np.random.SeedSequence,
) -> list[str]:
    """Writes one CT Image Storage file a slice, as a hospital's export might look.

    InstanceNumber runs from head to feet, against the slice normal, and the file names are in no
    order: both are common in real exports (data/README.md), and only the position can be trusted.

    Args:
      phantom: what to write.
      folder: an existing, empty folder.
      patient_id: goes into PatientID and PatientName.
      seed: decides the file names and, with the pixels, all UIDs.

    Returns:
      File names in anatomical order (along the slice normal, feet to head).
    """
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    n, height, width = phantom.volume_hu.shape
    spacing_z, spacing_y, spacing_x = phantom.spacing_mm
    stored = (phantom.volume_hu.astype(np.int32) + 1024).astype("<u2")
    source = [patient_id, str(root.entropy), str(root.spawn_key), str(zlib.crc32(stored.data))]

    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*source, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*source, "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[*source, "frame"])
    ds.PositionReferenceIndicator = ""
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    ds.Modality = "CT"
    ds.Manufacturer = "drenet_jax"
    ds.StudyDescription = "synthetic chest phantom"
    ds.PatientID = patient_id
    ds.PatientName = patient_id
    ds.PatientBirthDate = ""
    ds.PatientSex = ""
    ds.PatientPosition = "HFS"
    ds.StudyDate = "20200101"
    ds.StudyTime = "000000"
    ds.StudyID = "1"
    ds.AccessionNumber = ""
    ds.ReferringPhysicianName = ""
    ds.SeriesNumber = 1
    ds.AcquisitionNumber = 1
    ds.KVP = 120
    ds.SliceThickness = round(spacing_z, 4)
    ds.PixelSpacing = [round(spacing_y, 6), round(spacing_x, 6)]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.Rows, ds.Columns = height, width
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = -600, 1500

    corner_x = round(-spacing_x * (width - 1) / 2, 4)
    corner_y = round(-spacing_y * (height - 1) / 2, 4)
    numbers = random_stream(root, FILE_NAMES_STREAM).permutation(n) + 1
    names = [f"IM_{number:04d}.dcm" for number in numbers]
    for i, name in enumerate(names):
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[*source, str(i)])
        ds.InstanceNumber = n - i
        ds.ImagePositionPatient = [corner_x, corner_y, round(i * spacing_z, 4)]
        ds.SliceLocation = round(i * spacing_z, 4)
        ds.PixelData = stored[i].tobytes()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(folder / name, ds, enforce_file_format=True)
    return names
