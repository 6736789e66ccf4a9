"""PNG and JPEG slices: already in the lung window, or HU in 16 bits."""

from __future__ import annotations

import io

import cv2
import numpy as np

from drenet_jax.ct import hu_checks
from drenet_jax.ct.arrays import GreySlice, HuSlice
from drenet_jax.ct.orientation import Orientation

# A pixel is coloured if its channels lie further apart than this: JPEG blurs colour, and scans of
# print are tinted.
_GREY_SPREAD = 40
_COLOURED_SHARE = 0.1

# Larger pictures are no CT slices.
_LARGEST_PX = 8192

# How HU are kept in 16 bits without a sign: from 0 with the scanner's offset, as DICOM does, or
# from the middle (DeepLesion). The largest value that CT numbers in 12 or 13 bits reach.
_DICOM_OFFSET_HU = 1024
_MOST_DICOM = 8191
_MIDDLE_OFFSET_HU = 32768
_MIDDLE = (28_000, 45_000)
# The grey of air in the lung window (level -600 HU, width 1500 to 1800 HU) is 0.23 to 0.28.
_LEAST_LOW = 0.3


_ORIENTATION_TAG = 0x0112


# Of 16 bits, but as no CT is kept.
NEITHER = "a picture of 16 bits that is neither HU nor in a window"


class PictureError(ValueError):
    """Why a picture is no slice."""


def is_picture(head: bytes) -> bool:
    """Whether a file that begins so is a PNG or a JPEG."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"))


def read_picture(data: bytes) -> GreySlice | HuSlice:
    """Decodes a slice.

    Args:
      data: the file.

    Returns:
      The slice in the lung window (uint8); or, of 16 bits that hold HU, in HU (float32).

    Raises:
      PictureError: it is damaged, in colour, or of 16 bits that are neither.
    """
    if data.startswith(b"\x89PNG"):
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        if max(width, height) > _LARGEST_PX:
            raise PictureError(f"a picture with more than {_LARGEST_PX} rows or columns")
    # A JPEG without its end marker was cut off; OpenCV would make up the rest.
    cut_off = data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < 0
    try:
        image = None if cut_off else cv2.imdecode(np.frombuffer(data, np.uint8), -1)
    except cv2.error as error:  # larger than OpenCV allows
        raise PictureError("a picture that cannot be decoded") from error
    if image is None:
        raise PictureError("a picture that cannot be decoded")
    if max(image.shape[:2]) > _LARGEST_PX:
        raise PictureError(f"a picture with more than {_LARGEST_PX} rows or columns")
    if image.ndim == 3:
        image = _grey(image)
    if image.dtype == np.uint16:
        return _from_16_bits(image)
    if image.dtype != np.uint8:
        raise PictureError("a picture that is neither of 8 nor of 16 bits")
    return image


# What EXIF's orientation 1 to 8 says is to be done with the stored rows and columns.
_TURN_OF_ORIENTATION = (
    Orientation(False, False, False),
    Orientation(False, False, True),
    Orientation(False, True, True),
    Orientation(False, True, False),
    Orientation(True, False, False),
    Orientation(True, False, True),
    Orientation(True, True, True),
    Orientation(True, True, False),
)


def read_orientation(data: bytes) -> Orientation:
    """How a picture as stored becomes upright by what its EXIF says, if it has any.

    `read_picture` gives the rows and columns as the file stores them, which is what boxes refer to;
    most viewers show the picture turned.

    Args:
      data: the file.
    """
    if b"Exif" not in data and b"eXIf" not in data:
        return Orientation()
    from PIL import Image  # few pictures have EXIF

    try:
        with Image.open(io.BytesIO(data)) as picture:
            orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # whatever damaged EXIF makes of the parser: then there is none
        return Orientation()
    known = isinstance(orientation, int) and 1 <= orientation <= len(_TURN_OF_ORIENTATION)
    return _TURN_OF_ORIENTATION[orientation - 1] if known else Orientation()


def _grey(image: np.ndarray) -> np.ndarray:
    colour = image[..., :3]
    # Arrows and letters of a reader are coloured, too, but small.
    spread = colour.max(axis=2) - colour.min(axis=2)
    most = _GREY_SPREAD * (257 if image.dtype == np.uint16 else 1)
    if np.mean(spread > most) > _COLOURED_SHARE:
        raise PictureError("a colour picture, no CT slice")
    return cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY)


def _from_16_bits(image: np.ndarray) -> np.ndarray:
    signed = hu_checks.unwrapped(image.astype(np.float32))
    if signed.min() < 0:
        return signed
    low, high = (int(value) for value in np.percentile(image, (1, 99)))
    if _MIDDLE[0] <= low and high <= _MIDDLE[1]:
        return image.astype(np.float32) - _MIDDLE_OFFSET_HU
    if int(image.max()) <= _MOST_DICOM:
        return image.astype(np.float32) - _DICOM_OFFSET_HU
    if low < _LEAST_LOW * 65535 and high > 0.6 * 65535:
        return (image / 257 + 0.5).astype(np.uint8)
    raise PictureError(NEITHER)
