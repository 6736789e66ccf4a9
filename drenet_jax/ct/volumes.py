"""NIfTI, MetaImage and NRRD volumes, of any orientation, as axial slices of their own voxels.

A volume's users index its array as it is stored: nibabel's `array[i, j, k]`, SimpleITK's
`image[i, j, k]`, with i the axis that runs fastest in the file. Whatever the patient's orientation
in it, the axial slices are perpendicular to the stored axis that lies closest to the patient's
long axis. `FileAxes` says which axis that is and how a slice's rows and columns lie in the array.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np

from drenet_jax.ct import nifti
from drenet_jax.ct.arrays import GreySlice, HuSlice
from drenet_jax.ct.hu_checks import volume_hu
from drenet_jax.ct.orientation import FileAxes, orientation_of

# A volume of 512 x 512 x 4000 voxels in 16 bits.
_MOST_BYTES = 2 << 30

# Voxels may be this much longer in the plane than the other way; beyond, the axial slices would be
# those of a coronal or sagittal scan.
_MOST_ANISOTROPY = 2.5

# The cosine of a stored axis and of its axis of the patient, at least: 45 degrees, as for DICOM.
_LEAST_COSINE = 0.7

_TILTED_DEG = 3.0

# Axes of an axial slice that are not perpendicular distort it; a little does no harm. Slices that
# are shifted against each other, as a tilted gantry leaves them, are not distorted themselves.
_SHEARED_DEG = 1.0
_MOST_SHEAR_DEG = 5.0


class VolumeError(ValueError):
    """Why a file is no CT volume."""


def is_volume(name: str, head: bytes) -> bool:
    """Whether a file of this name that begins so is NIfTI, MetaImage or NRRD.

    NIfTI is known by what it holds, packed or not, since both are saved under either name.
    """
    name = name.lower()
    if nifti.is_nifti(head):
        return True
    if name.endswith((".nii", ".nii.gz")):
        return nifti.is_packed(head)  # which may be damaged
    if name.endswith((".mha", ".mhd")):
        return b"ElementDataFile" in head[:8192]
    return name.endswith(".nrrd") and head.startswith(b"NRRD")


class Volume:
    """A CT volume in memory.

    Attributes:
      n_slices: number of axial slices.
      axes: which axes of the stored array `index`, y and x of a slice count along.
      orientation: how a slice as stored becomes upright.
      spacing_mm: between columns of a slice, between its rows, and between slices.
      bits: of a voxel.
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
        if nifti.is_nifti(head) or nifti.is_packed(head):
            self._voxels, axes_mm, notes, self._scale = _read_nifti(path)
        else:
            _check_data_inside(path.name.lower(), head)
            # The voxels are a view of the image.
            self._voxels, axes_mm, self._image = _read_by_itk(path)
            self._scale, notes = (1.0, 0.0), ()
        spacing_mm = np.linalg.norm(axes_mm, axis=0)
        directions = axes_mm / spacing_mm
        self.axes, is_reversed = _file_axes(directions)
        self._along = 2 - self.axes.index  # NumPy counts axes from the other end.
        self.n_slices = self._voxels.shape[self._along]
        self._is_reversed = is_reversed
        self.orientation = orientation_of(directions[:, self.axes.x], directions[:, self.axes.y])
        _check_spacing(directions, spacing_mm, self.axes)
        self.spacing_mm = tuple(
            float(spacing_mm[axis]) for axis in (self.axes.x, self.axes.y, self.axes.index)
        )
        self.bits = 8 * self._voxels.dtype.itemsize
        self.notes = (*notes, *_notes(directions, self.axes))

    def file_index(self, index: int) -> int:
        """Where a slice lies along the stored slice axis, from 0.

        Args:
          index: its place from the feet to the head, from 0.
        """
        return self.n_slices - 1 - index if self._is_reversed else index

    def read(self, index: int) -> GreySlice | HuSlice:
        """One axial slice as stored; NaN is air.

        Args:
          index: its place from the feet to the head, from 0.
        """
        at: list[slice | int] = [slice(None)] * 3
        at[self._along] = self.file_index(index)
        voxels = self._voxels[tuple(at)]
        if voxels.dtype == np.uint8 and self._scale == (1.0, 0.0):
            return np.ascontiguousarray(voxels)
        slope, inter = self._scale
        # In double precision: values of 32 bits with a large offset lose the HU otherwise.
        return volume_hu(voxels * np.float64(slope) + inter)


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[float, float]]:
    """Voxels [k, j, i], the axes' steps in mm [3, 3], notes, slope and inter."""
    try:
        with nifti.open_unpacked(path) as stream:
            header = nifti.read_header(stream)
            size = _size(header.shape)
            if header.dtype.kind not in "iuf" or header.dtype.itemsize > 8:
                raise VolumeError("no grey volume of three dimensions")
            voxels = nifti.read_voxels(stream, header)
    except nifti.NiftiError as error:
        raise VolumeError(str(error)) from error
    except MemoryError as error:
        raise VolumeError("a volume that cannot be read") from error
    return voxels.reshape(size, order="F").T, header.axes_mm, header.notes, header.scale


def _read_by_itk(path: Path) -> tuple[np.ndarray, np.ndarray, object]:
    """Voxels [k, j, i], the axes' steps in mm [3, 3] and the image of a MetaImage or a NRRD."""
    import SimpleITK as sitk  # a tenth of a second, which DICOM need not pay

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = _size(reader.GetSize())
        if reader.GetNumberOfComponents() != 1:
            raise VolumeError("no grey volume of three dimensions")
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        # Not the error's text, which quotes the path.
        raise VolumeError("a volume that cannot be read") from error
    n = image.GetDimension()
    directions = np.reshape(image.GetDirection(), (n, n))[:3, :3]
    voxels = sitk.GetArrayViewFromImage(image).reshape(size[::-1])
    return voxels, directions * image.GetSpacing()[:3], image


def _size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The three sizes of a volume; further axes of length 1 are dropped."""
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or min(shape) < 1:
        raise VolumeError("no grey volume of three dimensions")
    if np.prod(shape, dtype=np.float64) * 2 > _MOST_BYTES:
        raise VolumeError(f"a volume of more than {_MOST_BYTES >> 30} GiB")
    return shape[0], shape[1], shape[2]


def _file_axes(directions: np.ndarray) -> tuple[FileAxes, bool]:
    """Which stored axes are which, and whether the slices are stored from the head to the feet.

    Args:
      directions: [3, 3]; column `a` is the direction of the stored axis `a` in the patient.
    """
    if not np.isfinite(directions).all():
        raise VolumeError("a volume whose axes have no direction")
    # The stored axis of each of the patient's.
    axes = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(directions[p, axes[p]]) for p in range(3)),
    )
    if min(abs(directions[p, axes[p]]) for p in range(3)) < _LEAST_COSINE:
        raise VolumeError("a volume between all orientations")
    along = axes[2]
    x, y = sorted(axes[:2])
    return FileAxes(along, y, x), bool(directions[2, along] < 0)


def _check_spacing(directions: np.ndarray, spacing_mm: np.ndarray, axes: FileAxes) -> None:
    in_plane_mm = np.delete(spacing_mm, axes.index)
    if in_plane_mm.max() > _MOST_ANISOTROPY * min(in_plane_mm.min(), spacing_mm[axes.index]):
        thick = int(np.argmax(spacing_mm))
        is_coronal = int(np.argmax(np.abs(directions[:, thick]))) == 1
        raise VolumeError(f"a {'coronal' if is_coronal else 'sagittal'} volume of thick slices")


def _notes(directions: np.ndarray, axes: FileAxes) -> list[str]:
    along, y, x = directions[:, axes.index], directions[:, axes.y], directions[:, axes.x]
    in_plane_deg = _degrees_off_square(x, y)
    if in_plane_deg > _MOST_SHEAR_DEG:
        raise VolumeError(
            f"a volume whose axes are sheared by {in_plane_deg:.0f} degrees in the axial slices "
            "(resample it to perpendicular axes)"
        )
    notes = []
    if in_plane_deg > _SHEARED_DEG:
        notes.append(f"the axial slices of the volume are sheared by {in_plane_deg:.0f} degrees")
    normal = np.cross(x, y)
    normal /= np.linalg.norm(normal)
    shift_deg = np.degrees(np.arccos(np.clip(abs(normal @ along), 0, 1)))
    if shift_deg > _SHEARED_DEG:
        notes.append(
            f"the slices of the volume are shifted against each other by {shift_deg:.0f} degrees "
            "(sheared axes, as a tilted gantry gives)"
        )
    nearest = np.abs(directions).max(axis=0)
    if shift_deg > _SHEARED_DEG:
        nearest = np.delete(nearest, axes.index)
    tilt_deg = np.degrees(np.arccos(np.clip(nearest.min(), 0, 1)))
    if tilt_deg > _TILTED_DEG:
        notes.append(f"the volume is tilted by {tilt_deg:.0f} degrees")
    return notes


def _degrees_off_square(array: np.ndarray, other: np.ndarray) -> float:
    return float(np.degrees(np.arcsin(np.clip(abs(array @ other), 0, 1))))


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
