"""DICOM pixels in HU."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import pydicom
import pydicom.uid
from pydicom.pixels import pixel_array
from pydicom.pixels.decoders import gdcm

from drenet_jax.ct.dicom import DEFLATED, DicomSlice, check_inflated, without_warnings

# Left alone, pydicom asks one decoder after the other, and of a file that is cut off the next one
# makes up what is missing. GDCM knows only the 8 bits of the extended JPEG.
_BY_GDCM = frozenset(gdcm.DECODER_DEPENDENCIES) - {pydicom.uid.JPEGExtended12Bit}

# The HU of air outside the scanned field. Some scanners write -2000 or -3024 there.
PADDING_HU = -1024.0


def read_dataset(stream: BinaryIO) -> pydicom.Dataset:
    """A whole file with several frames, which would take long to parse for each of them."""
    with without_warnings():
        return pydicom.dcmread(stream, force=True)


def read_hu(one: DicomSlice, source: BinaryIO | pydicom.Dataset) -> np.ndarray:
    """Decodes a slice.

    Args:
      one: the slice.
      source: its file, seekable, or what `read_dataset` made of it.

    Returns:
      float32 [H, W] in HU as stored, at least -1024 (padding is air).

    Raises:
      One of `ERRORS`: it cannot be decoded; `why_undecodable` has the reason.
    """
    options = {
        "correct_unused_bits": True,
        "decoding_plugin": "gdcm" if one.syntax in _BY_GDCM else "",
    }
    with without_warnings():
        if not isinstance(source, pydicom.Dataset) and one.syntax == DEFLATED:
            check_inflated(source)
            source = pydicom.dcmread(source)
        if isinstance(source, pydicom.Dataset):
            dataset = source
            stored = pixel_array(source, index=one.frame or 0, **options)
        else:
            dataset = pydicom.Dataset()
            stored = pixel_array(source, ds_out=dataset, index=0, **options)
        padding = dataset.get("PixelPaddingValue")
        limit = dataset.get("PixelPaddingRangeLimit", padding)
    if stored.ndim != 2:
        raise ValueError("not one grey picture")
    hu = np.multiply(stored, one.slope, dtype=np.float32)
    hu += np.float32(one.intercept)
    if padding is not None:
        low, high = sorted((int(padding), int(limit)))
        hu[(stored >= low) & (stored <= high)] = PADDING_HU
    return np.maximum(hu, PADDING_HU, out=hu)


def why_undecodable(error: BaseException, transfer_syntax: str) -> str:
    """In words, without the error's text, which may quote a tag's value."""
    syntax = pydicom.uid.UID(transfer_syntax)
    if isinstance(error, MemoryError):
        return "a DICOM file that needs more memory than it may have"
    if syntax.is_transfer_syntax and syntax.is_compressed:
        return f"a DICOM file that cannot be decoded (compressed as {syntax.name})"
    return f"a DICOM file that cannot be decoded ({type(error).__name__})"
