"""Received files: UIDs, read without the pixels, the digest, and writing through to disk."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
from pydicom.tag import BaseTag, Tag

from drenet_jax.ct.dicom.elements import DEFLATED, without_warnings

_TAGS = {keyword: Tag(keyword) for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")}
_LAST = max(_TAGS.values())

# What comes before the study's UID has some KiB: references, and private elements of scanners. A
# hostile data set may have sequences of millions of items there, or unpack to gigabytes.
_START_BYTES = 1 << 18

# Group 0002 begins with its own length, behind the preamble.
_META_START = 144


class InstanceHeader(NamedTuple):
    """UIDs of an instance, and its transfer syntax."""

    study_uid: str
    sop_uid: str
    sop_class: str
    syntax: str


def read_instance_header(path: Path) -> InstanceHeader:
    """The UIDs in a DICOM file.

    Raises:
      ValueError: it is damaged, or has not all of them.
    """
    try:
        with without_warnings():
            syntax, dataset = _read_start(path)
            uids = {keyword: str(dataset.get(keyword) or "") for keyword in _TAGS}
    # pydicom raises many kinds of errors on damaged files; deep nesting is a RecursionError.
    except Exception as error:
        raise ValueError("a damaged data set") from error
    for keyword, uid in uids.items():
        if not uid or len(uid) > 64 or not uid.replace(".", "").isdecimal():
            raise ValueError(f"a data set without a valid {keyword}")
    return InstanceHeader(
        uids["StudyInstanceUID"], uids["SOPInstanceUID"], uids["SOPClassUID"], syntax
    )


def _read_start(path: Path) -> tuple[str, pydicom.Dataset]:
    """The transfer syntax, and the elements up to the last one that is needed."""
    syntax = str(read_file_meta_info(path).TransferSyntaxUID)
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    tags: list[BaseTag | int] = list(_TAGS.values())
    if syntax != DEFLATED:
        return syntax, read_partial(io.BytesIO(start), _is_behind, specific_tags=tags)
    place = _META_START + int.from_bytes(start[_META_START - 4 : _META_START], "little")
    unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(start[place:], _START_BYTES)
    return syntax, read_dataset(
        io.BytesIO(unpacked), False, True, stop_when=_is_behind, specific_tags=tags
    )


def _is_behind(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag > _LAST


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
