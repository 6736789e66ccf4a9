"""DICOM files read by the encoding that they have, which need not be the one that they claim."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple, cast

import pydicom
import pydicom.errors
import pydicom.filereader
import pydicom.uid
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag

from drenet_jax.ct.sources import HEAD_BYTES

# What pydicom and its decoders raise on damaged files.
ERRORS = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    pydicom.errors.BytesLengthException,
    pydicom.errors.InvalidDicomError,
)

DEFLATED = pydicom.uid.DeflatedExplicitVRLittleEndian
_UNCOMPRESSED = {
    pydicom.uid.ImplicitVRLittleEndian: (True, True),
    pydicom.uid.ExplicitVRLittleEndian: (False, True),
    pydicom.uid.ExplicitVRBigEndian: (False, False),
}
_SYNTAX_OF = {encoding: uid for uid, encoding in _UNCOMPRESSED.items()}

_PREAMBLE_BYTES = 128
# Preamble, magic, and the element that gives the length of what is left of group 0002.
_META_START = 144
# What a deflated file may unpack to.
_MOST_INFLATED_BYTES = 256 << 20


class NoSliceError(Exception):
    """Why a file is no CT slice."""


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps pydicom from warning of each oddity of each file: what matters raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins so is DICOM, with or without preamble and group 0002."""
    if head[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM":
        return True
    return _is_first_element(head) or _has_preamble_alone(head)


def _is_first_element(start: bytes) -> bool:
    # Old files begin with an element of group 0002 or 0008.
    return start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"


def _has_preamble_alone(data: bytes) -> bool:
    """Whether 128 zeros stand before the first element, without the magic "DICM"."""
    return not any(data[:_PREAMBLE_BYTES]) and _is_first_element(
        data[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4]
    )


def as_stream(data: bytes) -> io.BytesIO:
    """A file's bytes as pydicom reads them."""
    return io.BytesIO(data[_PREAMBLE_BYTES:] if _has_preamble_alone(data) else data)


class Elements(NamedTuple):
    """Elements of a file, as they are encoded in it.

    Attributes:
      values: by tag; raw bytes, or what pydicom made of them.
      is_big_endian: the byte order of the raw bytes.
      syntax: UID of the transfer syntax that the file really has; '' if unknown.
    """

    values: dict[int, bytes | object]
    is_big_endian: bool
    syntax: str


def read_header_elements(
    head: bytes, read_file: Callable[[], bytes], tags: Collection[int]
) -> Elements:
    """Reads elements from a file's first bytes, or from the whole file where they are too few.

    Args:
      head: the file's first `HEAD_BYTES` bytes, or all of them.
      read_file: gives the whole file.
      tags: of the elements; what comes after the last one is not parsed.

    Raises:
      One of `ERRORS`: the header is damaged.
      NoSliceError: the file is too large.
    """
    is_whole_file = len(head) < HEAD_BYTES
    with contextlib.suppress(*(() if is_whole_file else ERRORS)):
        elements, has_rest = _read_elements(head, tags)
        if is_whole_file or has_rest:
            return elements
    return _read_elements(read_file(), tags)[0]


def _read_elements(data: bytes, tags: Collection[int]) -> tuple[Elements, bool]:
    """The elements, and whether anything comes after them."""
    last = max(tags)

    def is_behind(tag: BaseTag, vr: str | None, length: int) -> bool:
        return int.__gt__(tag, last)  # pydicom's own `>` is slow

    claimed, encoding, stream = _find_encoding(data)
    # Integers: pydicom's tags are compared in Python.
    wanted: list[BaseTag | int] = list(tags)
    elements: Iterable[RawDataElement | DataElement]
    if encoding is None:
        dataset = pydicom.filereader.read_partial(
            stream, is_behind, force=True, specific_tags=wanted
        )
        encoding = cast(tuple[bool, bool], dataset.original_encoding)
        elements = dataset.values()
    else:
        # Not `pydicom.filereader.read_dataset`, which returns what comes before a damaged element.
        elements = pydicom.filereader.data_element_generator(
            stream, *encoding, stop_when=is_behind, specific_tags=wanted
        )
    values = {int(element.tag): element.value for element in elements}
    syntax = _actual_syntax(claimed, encoding)
    has_rest = stream.tell() < len(stream.getbuffer())
    return Elements(values, encoding[1] is False, syntax), has_rest


def read_dataset(data: bytes, tags: list[BaseTag | int] | None) -> pydicom.Dataset:
    """Reads a file by the encoding that it has; `pydicom.dcmread` believes what group 0002 claims.

    Args:
      data: the file.
      tags: of the elements; None: all.

    Returns:
      The elements as far as the file goes. `file_meta` has the transfer syntax that the file really
      has.

    Raises:
      One of `ERRORS`: the file is damaged.
      NoSliceError: the file is too large.
    """
    claimed, encoding, stream = _find_encoding(data)
    dataset: pydicom.Dataset
    if encoding is None:
        dataset = pydicom.dcmread(stream, force=True, specific_tags=tags)
        encoding = cast(tuple[bool, bool], dataset.original_encoding)
    else:
        dataset = pydicom.filereader.read_dataset(stream, *encoding, specific_tags=tags)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(_actual_syntax(claimed, encoding))
    return dataset


def _find_encoding(data: bytes) -> tuple[str, tuple[bool, bool] | None, io.BytesIO]:
    """Finds how the elements behind group 0002 are encoded, which may claim otherwise.

    Returns:
      The UID of the transfer syntax that group 0002 claims; whether group 0008 is implicit and
      little-endian; the file at group 0008. (None, and at its start, if pydicom must find out.)
    """
    claimed = _claimed_syntax(data)
    stream = as_stream(data)
    if claimed == DEFLATED:
        check_inflated(data)
        return claimed, None, stream
    start = stream.read(_META_START)
    place = 0
    if start[_PREAMBLE_BYTES + 4 : _PREAMBLE_BYTES + 8] == b"\x02\x00\x00\x00":
        place = _META_START + int.from_bytes(start[-4:], "little")
    elif start[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM":
        place = _PREAMBLE_BYTES + 4
    stream.seek(place)
    first = stream.read(6)
    is_little_endian = first[:2] == b"\x08\x00"
    # A length in these two bytes would be that of an element of more than 16 KiB.
    is_explicit = first[4:6].isupper()
    is_known = is_little_endian or (first[:2] == b"\x00\x08" and is_explicit)
    if len(first) < 6 or not is_known:
        stream.seek(0)
        return claimed, None, stream
    stream.seek(place)
    return claimed, (not is_explicit, is_little_endian), stream


def _actual_syntax(claimed: str, encoding: tuple[bool, bool]) -> str:
    is_uncompressed = not claimed or claimed in _UNCOMPRESSED
    return _SYNTAX_OF.get(encoding, claimed) if is_uncompressed else claimed


def _claimed_syntax(data: bytes) -> str:
    """UID of the transfer syntax that group 0002 names; '' if it names none."""
    at = data.find(b"\x02\x00\x10\x00UI", 0, 1024)
    if at < 0:
        return ""
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    return data[at + 8 : at + 8 + length].strip(b" \0").decode("latin-1")


def check_inflated(data: bytes) -> None:
    """Refuses a deflated file that would unpack to more than memory should hold.

    Raises:
      NoSliceError: it would.
    """
    # The first element of group 0002 gives the group's length, counted from behind itself.
    start = _META_START + int.from_bytes(data[:_META_START][-4:], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(data[start:], _MOST_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise NoSliceError(
            f"a DICOM file that unpacks to more than {_MOST_INFLATED_BYTES >> 20} MiB"
        )
