"""DICOM files of slices, opened when their pixels or their instance are needed."""

from __future__ import annotations

import contextlib
import functools
import hashlib

import pydicom

from drenet_jax.ct.arrays import HuSlice
from drenet_jax.ct.dicom import elements, pixels
from drenet_jax.ct.dicom.headers import DicomSlice
from drenet_jax.ct.dicom.instances import NoInstanceError, SourceInstance, read_instance
from drenet_jax.ct.file_facts import FileFacts
from drenet_jax.ct.sources import Guard, Source, TooLargeError, UnreadableSlice
from drenet_jax.storage.objects import AnyPath


class DicomFiles:
    """The files of a source, of which the headers are known."""

    def __init__(self, source: Source, guard: Guard):
        self._source = source
        self._guard = guard
        # A file of several frames is parsed once for all of them.
        self._read_frames = functools.lru_cache(maxsize=1)(
            lambda name: pixels.read_dataset(source.read(name), is_whole=True)
        )

    def decode(self, dicom_slice: DicomSlice) -> HuSlice:
        """The slice in HU, as stored.

        Raises:
          UnreadableSlice: the file cannot be decoded.
        """
        place = self._source.place(dicom_slice.name)
        try:
            self._ask_guard(place, "pixels")
            return pixels.read_hu(dicom_slice, self._dataset(dicom_slice))
        except OSError as error:
            why = f"a file that cannot be opened ({error.strerror or 'damaged'})"
            raise UnreadableSlice.of(place, why, "check its permissions") from error
        except (TooLargeError, elements.NoSliceError) as error:
            raise UnreadableSlice.of(place, str(error), "export it again") from error
        except (UserWarning, *elements.ERRORS) as error:
            why = pixels.reason_undecodable(error, dicom_slice.syntax)
            raise UnreadableSlice.of(place, why, "export it again") from error

    def facts(self, dicom_slice: DicomSlice) -> FileFacts:
        """Facts of the file of a slice."""
        attributes = dicom_slice.attributes

        def number(keyword: str, place: int = 0) -> float | None:
            with contextlib.suppress(ValueError, IndexError):
                return float(attributes[keyword][place])
            return None

        bits = number("BitsStored")
        return FileFacts(
            format=f"DICOM, {pydicom.uid.UID(dicom_slice.syntax).name}",
            n_bytes=self._source.size(dicom_slice.name),
            bits=None if bits is None else int(bits),
            spacing_mm=number("PixelSpacing", 1),
            row_spacing_mm=number("PixelSpacing", 0),
            thickness_mm=number("SliceThickness"),
            kernel="/".join(attributes["ConvolutionKernel"]),
        )

    def digest(self, dicom_slice: DicomSlice) -> object:
        """The same for slices whose files are equal byte by byte."""
        try:
            content = hashlib.sha256(self._source.read(dicom_slice.name)).digest()
        except (OSError, ValueError):  # which decoding will report
            return dicom_slice.label
        return content, dicom_slice.frame

    def instance(self, dicom_slice: DicomSlice) -> SourceInstance:
        """The DICOM instance of a slice, which identifies the patient.

        Raises:
          UnreadableSlice: the file cannot be read, or nothing can refer to it.
        """
        place = self._source.place(dicom_slice.name)
        try:
            self._ask_guard(place, "header")
            if dicom_slice.frame is not None:
                return read_instance(dicom_slice, self._dataset(dicom_slice))
            return read_instance(dicom_slice, self._source.read(dicom_slice.name))
        except (NoInstanceError, elements.NoSliceError) as error:
            raise UnreadableSlice.of(place, str(error), "export it again") from error
        except elements.ERRORS as error:
            # Not the error's text, nor the error itself: they may quote what a tag holds.
            why = f"a DICOM file whose header cannot be read ({type(error).__name__})"
            raise UnreadableSlice.of(place, why, "export it again") from None

    def _dataset(self, dicom_slice: DicomSlice) -> pydicom.Dataset:
        if dicom_slice.frame is not None:
            return self._read_frames(dicom_slice.name)
        return pixels.read_dataset(self._source.read(dicom_slice.name), is_whole=False)

    def _ask_guard(self, place: AnyPath, what: str) -> None:
        why = self._guard(str(place), what)
        if why:
            raise elements.NoSliceError(why)
