"""Received files: UIDs, read without the pixels, the digest, and writing through to disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import pydicom

from drenet_jax.ct.dicom.elements import without_warnings

_TAGS = ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID")


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
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
            uids = {keyword: str(dataset.get(keyword) or "") for keyword in _TAGS}
            syntax = str(dataset.file_meta.TransferSyntaxUID)
    # pydicom raises many kinds of errors on damaged files; deep nesting is a RecursionError.
    except Exception as error:
        raise ValueError("a damaged data set") from error
    for keyword, uid in uids.items():
        if not uid or len(uid) > 64 or not uid.replace(".", "").isdecimal():
            raise ValueError(f"a data set without a valid {keyword}")
    return InstanceHeader(
        uids["StudyInstanceUID"], uids["SOPInstanceUID"], uids["SOPClassUID"], syntax
    )


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
