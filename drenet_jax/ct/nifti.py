"""NIfTI files, read by nibabel: the voxels, the order of the axes and the affine are nibabel's.

Not SimpleITK, which reads the other volumes: it prefers the qform where nibabel takes the sform,
refuses sheared axes and misnamed files, and adds `scl_inter` where a `scl_slope` of 0 says that
nothing is scaled.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from nibabel import Nifti1Header

_GZIP_MAGIC = b"\x1f\x8b"

# qform and sform are written in single precision; a larger angle between them is a contradiction.
_MOST_DISAGREEMENT_DEG = 1.0

_DAMAGED_HEADER = "a NIfTI file whose header is damaged"
_CUT_OFF = "a volume that was cut off or damaged"


class NiftiError(ValueError):
    """Why a file is no NIfTI volume that can be read."""


class NiftiHeader(NamedTuple):
    """What a header says of the voxels.

    Attributes:
      shape: voxels along the axes i, j, k and those beyond.
      dtype: of the voxels in the file.
      offset: bytes before the first voxel.
      scale: slope and intercept; 1 and 0 where the header gives none.
      axes_mm: [3, 3]; column `a` is the step in mm along the stored axis `a` in the patient's
        coordinates (x to the left, y to the back, z to the head).
      notes: what is odd about the orientation, in words.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    scale: tuple[float, float]
    axes_mm: np.ndarray
    notes: tuple[str, ...]


def is_nifti(head: bytes) -> bool:
    """Whether a file that begins so, packed by gzip or not, has a NIfTI header and its voxels."""
    if is_packed(head):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 1024)
        except zlib.error:
            return False
    return head[344:347] == b"n+1" or head[4:7] == b"n+2"


def is_packed(head: bytes) -> bool:
    """Whether a file that begins so is packed by gzip."""
    return head.startswith(_GZIP_MAGIC)


def open_unpacked(path: Path) -> io.BufferedIOBase:
    """The file's bytes, unpacked if it is a gzip file, whatever its name."""
    with path.open("rb") as stream:
        packed = is_packed(stream.read(2))
    return gzip.GzipFile(path) if packed else path.open("rb")


def read_header(stream: io.BufferedIOBase) -> NiftiHeader:
    """Reads the header.

    Args:
      stream: at the beginning of the file, unpacked.

    Raises:
      NiftiError: it is damaged.
    """
    # Half a second, which DICOM need not pay.
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        data = stream.read(Nifti2Header.sizeof_hdr)
        kind = Nifti2Header if data[4:7] == b"n+2" else Nifti1Header
        # nibabel's own check takes forms with unknown codes for missing ones.
        header = kind(data[: kind.sizeof_hdr], check=False)
        offset = header.get_data_offset() or kind.single_vox_offset
        if header["sizeof_hdr"] != kind.sizeof_hdr or offset < kind.sizeof_hdr:
            raise NiftiError(_DAMAGED_HEADER)
        pixdim = header["pixdim"]
        pixdim[0] = -1.0 if pixdim[0] < 0 else 1.0
        spacing_mm = np.abs(pixdim[1:4])
        pixdim[1:4] = np.where(np.isfinite(spacing_mm) & (spacing_mm > 0), spacing_mm, 1.0)
        slope, inter = header.get_slope_inter()
        axes_mm, notes = _axes_mm(header)
        return NiftiHeader(
            shape=header.get_data_shape(),
            dtype=header.get_data_dtype(),
            offset=offset,
            scale=(1.0, 0.0) if slope is None else (slope, inter),
            axes_mm=axes_mm,
            notes=notes,
        )
    except (EOFError, OSError, zlib.error) as error:  # by gzip
        raise NiftiError(_CUT_OFF) from error
    except (HeaderDataError, WrapStructError, KeyError, ValueError) as error:
        raise NiftiError(_DAMAGED_HEADER) from error


def _axes_mm(header: Nifti1Header) -> tuple[np.ndarray, tuple[str, ...]]:
    """The axes by the sform, else by the qform, as nibabel does; and notes."""
    notes = []
    sform, qform = header.get_sform(coded=True)[0], None
    if sform is not None and not _is_regular(sform[:3, :3]):
        sform = None
        notes.append("the sform of the NIfTI file spans no volume; it was not used")
    try:
        qform = header.get_qform(coded=True)[0]
    except ValueError:  # its quaternion is none
        if sform is None:
            raise
        notes.append("the qform of the NIfTI file is no rotation; the sform was taken")
    if sform is not None and qform is not None:
        angle_deg = _largest_angle_deg(sform[:3, :3], qform[:3, :3])
        if angle_deg > _MOST_DISAGREEMENT_DEG:
            notes.append(
                f"qform and sform of the NIfTI file disagree by {angle_deg:.0f} degrees; the sform "
                "was taken, as nibabel does"
            )
    affine = sform if sform is not None else qform
    if affine is None:
        affine = header.get_base_affine()
        notes.append("the NIfTI file gives no orientation; taken as its axes are by default")
    # NIfTI counts to the right and to the front.
    return np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3], tuple(notes)


def _is_regular(axes: np.ndarray) -> bool:
    if not np.isfinite(axes).all() or not axes.any(axis=0).all():
        return False
    return bool(abs(np.linalg.det(axes / np.linalg.norm(axes, axis=0))) > 1e-3)


def _largest_angle_deg(axes: np.ndarray, others: np.ndarray) -> float:
    axes, others = (array / np.linalg.norm(array, axis=0) for array in (axes, others))
    return float(np.degrees(np.arccos(np.clip((axes * others).sum(axis=0), -1, 1))).max())


def read_voxels(stream: io.BufferedIOBase, header: NiftiHeader) -> np.ndarray:
    """Reads the voxels [i, j, k, ...] as the file holds them, not scaled.

    Args:
      stream: of the whole file, unpacked, at any place.
      header: of the file.

    Raises:
      NiftiError: it was cut off or is damaged.
    """
    from nibabel.volumeutils import array_from_file

    try:
        voxels = array_from_file(header.shape, header.dtype, stream, header.offset, mmap=False)
        stream.read(1)  # at its end gzip compares the checksum
    except (EOFError, OSError, zlib.error) as error:
        raise NiftiError(_CUT_OFF) from error
    return voxels
