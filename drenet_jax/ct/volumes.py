"""NIfTI, MetaImage and NRRD volumes, of any orientation, as axial slices (by SimpleITK)."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np

# A volume of 512 x 512 x 4000 voxels in 16 bits.
_MOST_BYTES = 2 << 30

_NIFTI_HEADER_BYTES = 348

# Voxels may be this much longer in the plane than the other way; beyond, the axial slices would be
# those of a coronal or sagittal scan.
_MOST_ANISOTROPY = 2.5


class VolumeError(ValueError):
    """Why a file is no CT volume."""


def is_volume(name: str, head: bytes) -> bool:
    """Whether a file of this name that begins so is NIfTI, MetaImage or NRRD."""
    name = name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return head[:2] == b"\x1f\x8b" or head[344:347] == b"n+1" or head[4:7] == b"n+2"
    if name.endswith((".mha", ".mhd")):
        return b"ElementDataFile" in head[:8192]
    return name.endswith(".nrrd") and head.startswith(b"NRRD")


class Volume:
    """A CT volume in memory.

    Attributes:
      n_slices: number of axial slices.
      notes: what is odd about it.
    """

    def __init__(self, path: Path, head: bytes):
        """Reads the file.

        Args:
          path: on disk.
          head: its first bytes.

        Raises:
          VolumeError: it cannot be read, is no grey volume, or is too large.
        """
        import SimpleITK as sitk  # a tenth of a second, which DICOM need not pay

        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        _check_data_inside(path.name.lower(), head)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
            self._check(reader)
            _check_length(path, reader)
            image = reader.Execute()
        except (RuntimeError, MemoryError) as error:
            # Not the error's text, which quotes the path.
            raise VolumeError("a volume that cannot be read") from error
        # A view that keeps the image alive: [slices, rows, columns] as stored.
        self._voxels = sitk.GetArrayViewFromImage(image)
        self._image = image
        if image.GetDimension() == 4:
            self._voxels = self._voxels[0]
        directions = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:3, :3]
        self._to_axial(directions)
        self.n_slices = self._voxels.shape[0]
        self.notes = self._notes(reader, directions)

    def _check(self, reader) -> None:
        size = reader.GetSize()
        if len(size) == 4 and size[3] == 1:
            size = size[:3]
        if len(size) != 3 or reader.GetNumberOfComponents() != 1 or min(size) < 1:
            raise VolumeError("no grey volume of three dimensions")
        if np.prod(size, dtype=np.float64) * 2 > _MOST_BYTES:
            raise VolumeError(f"a volume of more than {_MOST_BYTES >> 30} GiB")
        directions = np.reshape(reader.GetDirection(), (len(reader.GetSize()),) * 2)[:3, :3]
        spacing_mm = np.array(reader.GetSpacing()[:3])
        along = int(np.argmax(np.abs(directions[2])))
        in_plane_mm = np.delete(spacing_mm, along)
        if in_plane_mm.max() > _MOST_ANISOTROPY * min(in_plane_mm.min(), spacing_mm[along]):
            thick = int(np.argmax(spacing_mm))
            is_coronal = int(np.argmax(np.abs(directions[:, thick]))) == 1
            raise VolumeError(f"a {'coronal' if is_coronal else 'sagittal'} volume of thick slices")

    def _to_axial(self, directions: np.ndarray) -> None:
        """Turns the view: slices from the feet up, rows to the back, columns to the left."""
        # directions[p, i]: how far the patient's axis p goes along the image's axis i.
        axes = [int(np.argmax(np.abs(directions[p]))) for p in range(3)]
        if sorted(axes) != [0, 1, 2]:
            raise VolumeError("a volume between all orientations")
        # NumPy counts axes from the other end.
        view = self._voxels.transpose([2 - axes[p] for p in (2, 1, 0)])
        steps = [1 if directions[p, axes[p]] > 0 else -1 for p in (2, 1, 0)]
        self._voxels = view[:: steps[0], :: steps[1], :: steps[2]]

    def _notes(self, reader, directions: np.ndarray) -> tuple[str, ...]:
        notes = []
        tilt = np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0).min(), 0, 1)))
        if tilt > 3:
            notes.append(f"the volume is tilted by {tilt:.0f} degrees")
        codes = [
            reader.GetMetaData(key)
            for key in ("qform_code", "sform_code")
            if reader.HasMetaDataKey(key)
        ]
        if codes and all(int(float(code)) == 0 for code in codes):
            notes.append("the NIfTI file gives no orientation; taken as its axes are by default")
        return tuple(notes)

    def read(self, index: int) -> np.ndarray:
        """One axial slice as stored: uint8 [H, W], or float32 [H, W]; NaN is air."""
        voxels = self._voxels[index]
        if voxels.dtype == np.uint8:
            return np.ascontiguousarray(voxels)
        return np.nan_to_num(voxels.astype(np.float32), nan=-np.inf, neginf=-1e6, posinf=1e6)


def _check_length(path: Path, reader) -> None:
    """Refuses a NIfTI file that was cut off: its reader would take zeros for the rest."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    bits = int(reader.GetMetaData("bitpix"))
    needed = _NIFTI_HEADER_BYTES + np.prod(reader.GetSize(), dtype=np.float64) * bits / 8
    found = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        try:
            with gzip.open(path) as stream:
                found = 0
                while found < needed and (chunk := stream.read(1 << 20)):
                    found += len(chunk)
        except (EOFError, OSError, zlib.error) as error:
            raise VolumeError("a volume that was cut off or damaged") from error
    if found < needed:
        raise VolumeError("a volume that was cut off or damaged")


def _check_data_inside(name: str, head: bytes) -> None:
    """Refuses headers whose voxels lie in another file, except LUNA16's way (.mhd beside .raw)."""
    if name.endswith((".mha", ".mhd")):
        at = head.find(b"ElementDataFile")
        line = head[at : at + 300].split(b"\n")[0]
        where = line.partition(b"=")[2].strip()
        beside = name.endswith(".mhd") and where and not set(where) & set(b"/\\ ")
        if where != b"LOCAL" and not beside:
            raise VolumeError("a MetaImage whose voxels are in another place")
    if name.endswith(".nrrd") and re.search(rb"(?im)^data ?file:", head[:8192]):
        raise VolumeError("a NRRD whose voxels are in another file")
