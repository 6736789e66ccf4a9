"""DICOM pixels in HU."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom
import pydicom.uid
from pydicom.pixels import pixel_array
from pydicom.pixels.decoders import gdcm
from pydicom.tag import BaseTag, Tag

from drenet_jax.ct.arrays import PADDING_HU, HuSlice
from drenet_jax.ct.dicom import elements
from drenet_jax.ct.dicom.headers import DicomSlice

# Left alone, pydicom tries one decoder after the other, and of a file that is cut off the next one
# makes up what is missing. GDCM knows only the 8 bits of the extended JPEG.
_BY_GDCM = frozenset(gdcm.DECODER_DEPENDENCIES) - {pydicom.uid.JPEGExtended12Bit}

# Stored values of CT without a sign: 12 or 13 bits; negative ones in 16 bits begin here.
_LARGEST_STORED = 8191
_NEGATIVE_FROM = 57_344
# With this intercept or a lower one air is 0 or more, so that no stored value is negative.
_USUAL_INTERCEPT_HU = -1000.0

_PIXEL_TAGS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PlanarConfiguration",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
        "FloatPixelData",
        "DoubleFloatPixelData",
        "PixelData",
    )
]


def read_dataset(data: bytes, *, is_whole: bool) -> pydicom.Dataset:
    """What decoding needs of a file.

    Args:
      data: the file.
      is_whole: all elements, rather than those that describe the pixels: of a file with several
        frames, which is parsed once for all of them.

    Raises:
      One of `ERRORS`, or NoSliceError: it cannot be read.
    """
    with elements.without_warnings():
        dataset = elements.read_dataset(data, None if is_whole else _PIXEL_TAGS)
        for keyword, value in (
            ("SamplesPerPixel", 1),
            ("PhotometricInterpretation", "MONOCHROME2"),
            ("BitsStored", dataset.get("BitsAllocated")),
        ):
            if dataset.get(keyword) in (None, "") and value is not None:
                setattr(dataset, keyword, value)
        return dataset


def read_hu(dicom_slice: DicomSlice, dataset: pydicom.Dataset) -> HuSlice:
    """Decodes a slice.

    Args:
      dicom_slice: the slice.
      dataset: its file, as `read_dataset` returns it.

    Returns:
      The slice as stored, in HU, at least -1024 (padding is air).

    Raises:
      One of `ERRORS`: it cannot be decoded, or has more or less pixels than it claims;
        `reason_undecodable` has the reason.
    """
    with elements.without_warnings():
        # pydicom drops what is too much: it would hide pixels that are read from a wrong place.
        warnings.filterwarnings("error", message="The pixel data is .* bytes of excess padding")
        stored = pixel_array(
            dataset,
            index=dicom_slice.frame or 0,
            allow_excess_frames=False,
            correct_unused_bits=True,
            decoding_plugin="gdcm" if dicom_slice.syntax in _BY_GDCM else "",
        )
    if stored.ndim != 2:
        raise ValueError("not one grey picture")
    padding = _padding_range(dataset, stored.dtype)
    is_padding = np.zeros((), bool)
    if padding is not None:
        is_padding = (stored >= padding[0]) & (stored <= padding[1])
    stored = _with_right_sign(stored, is_padding, dataset, dicom_slice.intercept)
    hu = np.multiply(stored, dicom_slice.slope, dtype=np.float32)
    hu += np.float32(dicom_slice.intercept)
    if padding is not None:
        hu[is_padding] = PADDING_HU
    return np.maximum(hu, PADDING_HU, out=hu)


def _padding_range(dataset: pydicom.Dataset, dtype: np.dtype) -> tuple[int, int] | None:
    """The stored values that are padding, from the lowest to the highest.

    PixelPaddingValue is often written with the VR of the other sign, or as text.
    """
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = dataset.get(keyword)
        if isinstance(value, bytes) and len(value) == dtype.itemsize:
            value = int.from_bytes(value, "little")
        try:
            ends.append(int(str(value)))
        except ValueError:
            continue
    if not ends:
        return None
    bits = 8 * dtype.itemsize
    stored = np.array([end % (1 << bits) for end in ends], f"u{dtype.itemsize}").astype(dtype)
    return int(stored.min()), int(stored.max())


def _with_right_sign(
    stored: np.ndarray, is_padding: np.ndarray, dataset: pydicom.Dataset, intercept: float
) -> np.ndarray:
    """Stored values as they were meant, where PixelRepresentation is wrong.

    `hu_checks.unwrapped` does the same for volumes, which have neither BitsStored nor padding to
    decide by.
    """
    if stored.dtype == np.uint16:
        # Negative numbers that are called unsigned leave a wide gap in the middle.
        if stored.max() < _NEGATIVE_FROM:
            return stored
        is_high = stored >= _NEGATIVE_FROM
        is_split = not np.any((stored > _LARGEST_STORED) & ~is_high)
        # Metal that reaches the end of the scale is there alone.
        is_saturated = stored[is_high].min() == np.iinfo(np.uint16).max
        return stored.view(np.int16) if is_split and not is_saturated else stored
    bits = int(dataset.get("BitsStored", 16))
    if stored.dtype == np.int16 and bits < 16 and intercept <= _USUAL_INTERCEPT_HU:
        # Unsigned numbers that are called signed: bone wraps to values far below air.
        negative = (stored < 0) & ~is_padding
        values = stored[negative]
        # Noise around air is a little below 0, bone that wrapped far below.
        if values.size and np.ptp(values) > 0 and np.median(values) < -(1 << bits) / 4:
            if _has_sign_bits(dataset, bits):
                return stored
            return np.where(negative, stored.astype(np.int32) + (1 << bits), stored)
    return stored


def _has_sign_bits(dataset: pydicom.Dataset, bits: int) -> bool:
    """Whether the bits above the stored ones are set somewhere, as writers of signed values do."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return False
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    words = np.frombuffer(dataset.PixelData, f"{order}u2", count=len(dataset.PixelData) // 2)
    return bool((words >> bits).any())


def reason_undecodable(error: BaseException, transfer_syntax: str) -> str:
    """In words, without the error's text, which may quote a tag's value."""
    syntax = pydicom.uid.UID(transfer_syntax)
    if isinstance(error, MemoryError):
        return "a DICOM file that needs more memory than it may have"
    if isinstance(error, UserWarning):
        return "a DICOM file that cannot be decoded (more pixels than rows and columns say)"
    if syntax.is_transfer_syntax and syntax.is_compressed:
        return f"a DICOM file that cannot be decoded (compressed as {syntax.name})"
    return f"a DICOM file that cannot be decoded ({type(error).__name__})"
