"""DICOM's upper layer (PS3.8) and commands (PS3.7) as bytes, correct unless a part is replaced."""

from __future__ import annotations

import struct

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel, Verification

APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"

# Nothing of these may be found in a log.
ROOT = "1.2.826.0.1.3680043.666"
CALLING = b"EVILSENDER"
PATIENT = "GEHEIM^NAME"

# Of the presentation contexts that `request` has: deflated, implicit and so on.
IMPLICIT, EXPLICIT, DEFLATED, JPEG, ECHO, COMMITMENT = 1, 3, 5, 7, 9, 11

REQUEST, ACCEPT, REJECT, DATA, RELEASE, RELEASED, ABORT = range(1, 8)
COMMAND, LAST_COMMAND, DATA_SET, LAST_DATA_SET = 1, 3, 0, 2

NO_DATA_SET = 0x0101


def pdu(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    return struct.pack(">BxI", kind, len(body) if length is None else length) + body


def item(kind: int, body: bytes, *, length: int | None = None) -> bytes:
    return struct.pack(">BxH", kind, len(body) if length is None else length) + body


def context(
    number: int,
    abstract: bytes = CTImageStorage.encode(),
    *syntaxes: bytes,
) -> bytes:
    """A presentation context item."""
    parts = item(0x30, abstract)
    for syntax in syntaxes or (ImplicitVRLittleEndian.encode(),):
        parts += item(0x40, syntax)
    return item(0x20, struct.pack(">BBBB", number, 0, 0, 0) + parts)


def role(uid: bytes = StorageCommitmentPushModel.encode(), scu: int = 0, scp: int = 1) -> bytes:
    return item(0x54, struct.pack(">H", len(uid)) + uid + bytes([scu, scp]))


def user(*more: bytes, longest: int = 16384) -> bytes:
    """A user information item."""
    parts = item(0x51, struct.pack(">I", longest)) + item(0x52, b"1.2.3.4") + b"".join(more)
    return item(0x50, parts)


CONTEXTS = (
    context(IMPLICIT),
    context(EXPLICIT, CTImageStorage.encode(), ExplicitVRLittleEndian.encode()),
    context(DEFLATED, CTImageStorage.encode(), DeflatedExplicitVRLittleEndian.encode()),
    context(JPEG, CTImageStorage.encode(), JPEGBaseline8Bit.encode()),
    context(ECHO, Verification.encode()),
    context(COMMITMENT, StorageCommitmentPushModel.encode()),
)


def request_body(
    *,
    contexts: tuple[bytes, ...] = CONTEXTS,
    application: bytes = item(0x10, APPLICATION_CONTEXT),
    information: bytes = user(role()),
    version: int = 1,
    called: bytes = b"DRENET",
    calling: bytes = CALLING,
) -> bytes:
    titles = called.ljust(16)[:16] + calling.ljust(16)[:16]
    head = struct.pack(">HH", version, 0) + titles + bytes(32)
    return head + application + b"".join(contexts) + information


def request(**parts: object) -> bytes:
    """An association request."""
    return pdu(REQUEST, request_body(**parts))


def pdv(number: int, header: int, data: bytes, *, length: int | None = None) -> bytes:
    body = bytes([number, header]) + data
    return struct.pack(">I", len(body) if length is None else length) + body


def data(*pdvs: bytes) -> bytes:
    return pdu(DATA, b"".join(pdvs))


def element(tag: int, value: bytes, *, length: int | None = None) -> bytes:
    """An element in implicit VR, little-endian."""
    value += b"\0" * (len(value) % 2)
    size = len(value) if length is None else length
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, size) + value


def short(number: int) -> bytes:
    return struct.pack("<H", number)


def command_elements(
    field: int,
    *,
    sop_class: bytes = CTImageStorage.encode(),
    sop_uid: bytes = b"",
    data_set: int = NO_DATA_SET,
    message: int = 1,
) -> dict[int, bytes]:
    elements = {
        0x00000002: sop_class,
        0x00000100: short(field),
        0x00000110: short(message),
        0x00000700: short(0),
        0x00000800: short(data_set),
    }
    if sop_uid:
        elements[0x00001000] = sop_uid
    return elements


def command_bytes(elements: dict[int, bytes]) -> bytes:
    body = b"".join(element(tag, value) for tag, value in sorted(elements.items()))
    return element(0x00000000, struct.pack("<I", len(body))) + body


def command(number: int, field: int, **parts: object) -> bytes:
    """A whole command in one PDU."""
    return data(pdv(number, LAST_COMMAND, command_bytes(command_elements(field, **parts))))


def explicit(tag: int, vr: bytes, value: bytes, *, length: int | None = None) -> bytes:
    """An element in explicit VR, little-endian."""
    value += b"\0" * (len(value) % 2)
    size = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return head + struct.pack("<xxI", size) + value
    return head + struct.pack("<H", size & 0xFFFF) + value


def image(
    sop_uid: str,
    *,
    study_uid: str = f"{ROOT}.1",
    sop_class: str = CTImageStorage,
    before: bytes = b"",
    after: bytes = b"",
    is_explicit: bool = False,
) -> bytes:
    """A data set that has what the node reads, and no pixels."""
    values = {
        0x00080016: (b"UI", sop_class),
        0x00080018: (b"UI", sop_uid),
        0x00080060: (b"CS", "CT"),
        0x00100010: (b"PN", PATIENT),
        0x0020000D: (b"UI", study_uid),
        0x0020000E: (b"UI", f"{study_uid}.1"),
    }
    parts = []
    for tag, (vr, text) in values.items():
        value = text.encode("utf-8", "surrogateescape")
        parts.append(explicit(tag, vr, value) if is_explicit else element(tag, value))
    return b"".join([before, *parts, after])


def store(
    data_set: bytes,
    *,
    sop_uid: str,
    number: int = IMPLICIT,
    sop_class: str = CTImageStorage,
    message: int = 1,
    most: int = 16000,
) -> bytes:
    """A C-STORE request with its data set."""
    parts = [
        command(
            number,
            0x0001,
            sop_class=sop_class.encode(),
            sop_uid=sop_uid.encode("utf-8", "surrogateescape"),
            data_set=1,
            message=message,
        )
    ]
    for start in range(0, max(len(data_set), 1), most):
        piece = data_set[start : start + most]
        is_last = start + most >= len(data_set)
        parts.append(data(pdv(number, LAST_DATA_SET if is_last else DATA_SET, piece)))
    return b"".join(parts)
