"""NIfTI files as nibabel reads them: the same voxels, the same order of axes, the same affine.

SimpleITK would do for most files. It prefers the qform where nibabel takes the sform, refuses
sheared axes and misnamed files, and adds `scl_inter` where a `scl_slope` of 0 says that nothing is
scaled.
"""

from __future__ import annotations

import dataclasses
import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

GZIP_MAGIC = b"\x1f\x8b"

# The type of the voxels by the code in the header; complex and colour types are left out.
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}

# Fields of the two versions of the header: NumPy type, offset in bytes, count.
_FIELDS = {
    348: {
        "dim": ("i2", 40, 8),
        "datatype": ("i2", 70, 1),
        "pixdim": ("f4", 76, 8),
        "vox_offset": ("f4", 108, 1),
        "scl": ("f4", 112, 2),
        "codes": ("i2", 252, 2),
        "quatern": ("f4", 256, 6),
        "srow": ("f4", 280, 12),
    },
    540: {
        "datatype": ("i2", 12, 1),
        "dim": ("i8", 16, 8),
        "pixdim": ("f8", 104, 8),
        "vox_offset": ("i8", 168, 1),
        "scl": ("f8", 176, 2),
        "codes": ("i4", 344, 2),
        "quatern": ("f8", 352, 6),
        "srow": ("f8", 400, 12),
    },
}

# qform and sform are written in single precision; a larger angle between them is a contradiction.
_MOST_DISAGREEMENT_DEG = 1.0

_CHUNK_BYTES = 1 << 20


class NiftiError(ValueError):
    """Why a file is no NIfTI volume that can be read."""


@dataclasses.dataclass(frozen=True)
class NiftiHeader:
    """What a header says of the voxels.

    Attributes:
      shape: voxels along the axes i, j, k and those beyond.
      dtype: of the voxels in the file; None for types that are not grey.
      offset: bytes before the first voxel.
      slope, inter: a value is `slope * voxel + inter`; 1 and 0 where the header gives no scale.
      axes: [3, 3]; column `a` is the step in mm along the stored axis `a` in the patient's
        coordinates (x to the left, y to the back, z to the head).
      notes: what is odd about the orientation, in words.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    offset: int
    slope: float
    inter: float
    axes: np.ndarray
    notes: tuple[str, ...]


def is_nifti(head: bytes) -> bool:
    """Whether a file that begins so, unpacked, is a NIfTI file with its voxels inside."""
    return head[344:347] == b"n+1" or head[4:7] == b"n+2"


def unpacked_head(head: bytes) -> bytes:
    """What a gzip file that begins with `head` unpacks to, as far as that goes; b'' for others."""
    if not head.startswith(GZIP_MAGIC):
        return b""
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 1024)
    except zlib.error:
        return b""


def open_unpacked(path: Path) -> BinaryIO:
    """The file's bytes, unpacked if it is a gzip file, whatever its name."""
    with path.open("rb") as stream:
        is_packed = stream.read(2) == GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path)) if is_packed else path.open("rb")


def read_header(stream: BinaryIO) -> NiftiHeader:
    """Reads the header.

    Args:
      stream: at the beginning of the file, unpacked.

    Raises:
      NiftiError: it is damaged.
    """
    data = stream.read(540)
    order, fields = _layout(data)

    def field(name: str) -> np.ndarray:
        kind, offset, count = fields[name]
        return np.frombuffer(data, order + kind, count, offset)

    dim = field("dim").astype(int)
    if not 1 <= dim[0] <= 7 or (dim[1 : dim[0] + 1] < 1).any():
        raise NiftiError("a NIfTI file whose header is damaged")
    kind = _DTYPES.get(int(field("datatype")[0]))
    offset = float(field("vox_offset")[0])
    least = 348 if fields is _FIELDS[348] else 540
    if not (offset == 0 or least <= offset < 1 << 30):
        raise NiftiError("a NIfTI file whose header is damaged")
    slope, inter = (float(value) for value in field("scl"))
    # By the standard a slope of 0 means no scaling; inter is ignored then.
    if slope == 0 or not np.isfinite(slope):
        slope, inter = 1.0, 0.0
    if not np.isfinite(inter):
        raise NiftiError("a NIfTI file whose scl_inter is no number")
    axes, notes = _axes(
        field("pixdim").astype(float),
        [int(code) for code in field("codes")],
        field("quatern").astype(float),
        field("srow").astype(float).reshape(3, 4)[:, :3],
    )
    return NiftiHeader(
        shape=tuple(int(size) for size in dim[1 : dim[0] + 1]),
        dtype=np.dtype(kind).newbyteorder("<" if order == "<" else ">") if kind else None,
        offset=int(offset) or least + 4,
        slope=slope,
        inter=inter,
        axes=axes,
        notes=notes,
    )


def _layout(data: bytes) -> tuple[str, dict[str, tuple[str, int, int]]]:
    """Byte order and fields of a header."""
    for order in "<>":
        size = int(np.frombuffer(data[:4].ljust(4, b"\0"), order + "i4")[0])
        if size in _FIELDS and len(data) >= size:
            return order, _FIELDS[size]
    raise NiftiError("a NIfTI file whose header is damaged")


def _axes(
    pixdim: np.ndarray, codes: list[int], quatern: np.ndarray, srow: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The axes in the patient's coordinates by the sform, else by the qform, as nibabel does."""
    spacing_mm = np.abs(pixdim[1:4])
    spacing_mm = np.where(np.isfinite(spacing_mm) & (spacing_mm > 0), spacing_mm, 1.0)
    by_qform = _rotation(quatern[:3]) * spacing_mm
    if pixdim[0] < 0:
        by_qform[:, 2] *= -1
    notes: list[str] = []
    has_qform, has_sform = codes[0] > 0, codes[1] > 0
    if has_sform and not _is_regular(srow):
        has_sform = False
        notes.append("the sform of the NIfTI file spans no volume; it was not used")
    if has_sform:
        axes = srow
        angle_deg = _largest_angle_deg(srow, by_qform)
        if has_qform and angle_deg > _MOST_DISAGREEMENT_DEG:
            notes.append(
                f"qform and sform of the NIfTI file disagree by {angle_deg:.0f} degrees; the sform "
                "was taken, as nibabel does"
            )
    elif has_qform:
        axes = by_qform
    else:
        # As nibabel: the first axis to the left, the second to the front, the third to the head.
        axes = np.diag([-1.0, 1.0, 1.0]) * spacing_mm
        notes.append("the NIfTI file gives no orientation; taken as its axes are by default")
    # NIfTI counts to the right and to the front.
    return np.diag([-1.0, -1.0, 1.0]) @ axes, tuple(notes)


def _rotation(quatern: np.ndarray) -> np.ndarray:
    b, c, d = np.nan_to_num(quatern)
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < 1e-7:
        b, c, d = np.array([b, c, d]) / np.sqrt(b * b + c * c + d * d)
        rest = 0.0
    a = np.sqrt(rest)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _is_regular(axes: np.ndarray) -> bool:
    if not np.isfinite(axes).all() or not axes.any(axis=0).all():
        return False
    return abs(np.linalg.det(axes / np.linalg.norm(axes, axis=0))) > 1e-3


def _largest_angle_deg(array: np.ndarray, other: np.ndarray) -> float:
    array, other = array / np.linalg.norm(array, axis=0), other / np.linalg.norm(other, axis=0)
    return float(np.degrees(np.arccos(np.clip((array * other).sum(axis=0), -1, 1))).max())


def read_voxels(stream: BinaryIO, header: NiftiHeader) -> np.ndarray:
    """Reads the voxels as the file holds them, not scaled.

    Args:
      stream: of the whole file, unpacked, at any place.
      header: of the file; of a grey type.

    Returns:
      [..., k, j, i]: the axes of `header.shape` in reverse, as NumPy counts them.

    Raises:
      NiftiError: it was cut off or is damaged.
    """
    assert header.dtype is not None
    n_bytes = int(np.prod(header.shape, dtype=np.int64)) * header.dtype.itemsize
    data = np.empty(n_bytes, np.uint8)
    try:
        stream.seek(header.offset)
        done = 0
        while done < n_bytes:
            count = stream.readinto(data.data[done : done + _CHUNK_BYTES])  # type: ignore[attr-defined]
            if not count:
                raise NiftiError("a volume that was cut off or damaged")
            done += count
        # At its end gzip compares the checksum.
        stream.read(1)
    except (EOFError, OSError, zlib.error) as error:
        raise NiftiError("a volume that was cut off or damaged") from error
    return data.view(header.dtype).reshape(header.shape[::-1])
