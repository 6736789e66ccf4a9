"""The raw elements of a DICOM header, whatever the encoding that the file claims."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import pydicom
import pydicom.datadict
import pydicom.errors
import pydicom.filereader
import pydicom.uid
from pydicom.tag import BaseTag, Tag

from drenet_jax.ct.sources import HEAD_BYTES

# What pydicom and its decoders raise on damaged files.
ERRORS = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
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


class Elements(NamedTuple):
    """Raw elements of a file.

    Attributes:
      values: by tag; bytes in little-endian order, or what pydicom made of them.
      syntax: UID of the transfer syntax in which the file is really encoded.
    """

    values: dict[BaseTag, bytes | object]
    syntax: str


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


def read_elements(
    head: bytes, open_file: Callable[[], BinaryIO], tags: Iterable[BaseTag], last: int
) -> Elements:
    """Reads elements from a file's first bytes, or from the whole file where they are too few.

    Args:
      head: the file's first `HEAD_BYTES` bytes, or all of them.
      open_file: gives the whole file as a stream.
      tags: of the elements.
      last: no element after this tag is parsed.

    Raises:
      One of `ERRORS`: the header is damaged.
      NoSliceError: the file is too large.
    """
    # pydicom is faster in memory than in a file: it seeks and tells at every element.
    stream = as_stream(head)
    tags = list(tags)
    is_whole_file = len(head) < HEAD_BYTES
    try:
        elements = _parse(stream, tags, last)
    except ERRORS:
        if is_whole_file:
            raise
        return _parse_file(open_file, tags, last)
    is_complete = is_whole_file or stream.tell() < len(stream.getbuffer())
    return elements if is_complete else _parse_file(open_file, tags, last)


def _parse_file(open_file: Callable[[], BinaryIO], tags: list[BaseTag], last: int) -> Elements:
    with open_file() as stream:
        return _parse(stream, tags, last)


def _parse(stream: BinaryIO, tags: list[BaseTag], last: int) -> Elements:
    def is_behind(tag: int, vr: str | None, length: int) -> bool:
        # Not `>`, which pydicom overloads: this is asked of every element of every file.
        return int.__gt__(tag, last)

    claimed = _claimed_syntax(stream)
    encoding = None if claimed == DEFLATED else encoding_of_first_element(stream)
    if encoding is not None:
        # Most files by far; without the data set that pydicom builds of a file it takes half.
        is_implicit, is_little_endian = encoding
        raw = {
            element.tag: element.value
            for element in pydicom.filereader.data_element_generator(
                stream, is_implicit, is_little_endian, stop_when=is_behind, specific_tags=tags
            )
        }
    else:
        if claimed == DEFLATED:
            check_inflated(stream)
        header = pydicom.filereader.read_partial(stream, is_behind, force=True, specific_tags=tags)
        raw = {tag: element.value for tag, element in header.items()}
        encoding = header.original_encoding
    if encoding[1] is False:
        raw = {tag: _swapped(tag, value) for tag, value in raw.items()}
    is_encoding_known = None not in encoding
    if is_encoding_known and (not claimed or claimed in _UNCOMPRESSED):
        claimed = _SYNTAX_OF.get(tuple(encoding), claimed)
    return Elements(raw, claimed)


def _swapped(tag: BaseTag, value: bytes | object) -> bytes | object:
    """A big-endian value in little-endian order, if it is of 16-bit numbers."""
    is_short = isinstance(value, bytes) and pydicom.datadict.dictionary_VR(tag) in (
        "US",
        "US or SS",
    )
    return b"".join(value[i : i + 2][::-1] for i in range(0, len(value), 2)) if is_short else value


def _claimed_syntax(stream: BinaryIO) -> str:
    """UID of the transfer syntax that group 0002 names; '' if it names none."""
    start = stream.read(1024)
    stream.seek(0)
    at = start.find(b"\x02\x00\x10\x00UI")
    if at < 0:
        return ""
    length = int.from_bytes(start[at + 6 : at + 8], "little")
    return start[at + 8 : at + 8 + length].strip(b" \0").decode("latin-1")


def encoding_of_first_element(stream: BinaryIO) -> tuple[bool, bool] | None:
    """Moves behind group 0002; says whether group 0008 is implicit and little-endian there.

    Group 0002 may claim another encoding. Returns None, at the file's start, if group 0008 does
    not follow.
    """
    start = stream.read(_META_START)
    if start[_PREAMBLE_BYTES + 4 : _PREAMBLE_BYTES + 8] == b"\x02\x00\x00\x00":
        stream.seek(_META_START + int.from_bytes(start[-4:], "little"))
    elif start[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM":
        stream.seek(_PREAMBLE_BYTES + 4)
    else:
        stream.seek(0)
    first = stream.read(6)
    stream.seek(-len(first), io.SEEK_CUR)
    if first[:2] in (b"\x08\x00", b"\x00\x08") and len(first) == 6:
        # A length in these two bytes would be that of an element of more than 16 KiB.
        is_implicit = not first[4:6].isupper()
        is_little_endian = first[:2] == b"\x08\x00"
        if is_little_endian or not is_implicit:
            return is_implicit, is_little_endian
    stream.seek(0)
    return None


def check_inflated(stream: BinaryIO) -> None:
    """Refuses a deflated file that would unpack to more than memory should hold.

    Raises:
      NoSliceError: it would.
    """
    data = stream.read()
    stream.seek(0)
    # The first element of group 0002 gives the group's length, counted from behind itself.
    start = _META_START + int.from_bytes(data[:_META_START][-4:], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(data[start:], _MOST_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise NoSliceError(
            f"a DICOM file that unpacks to more than {_MOST_INFLATED_BYTES >> 20} MiB"
        )


def tags_of(keywords: Iterable[str]) -> dict[str, BaseTag]:
    return {keyword: Tag(keyword) for keyword in keywords}
