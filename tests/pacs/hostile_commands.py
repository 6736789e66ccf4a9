"""Hostile peers in an association: PDUs and commands."""

from __future__ import annotations

import random
import struct

from pacs import hostile_pdus as pdus
from pacs.hostile_pdus import (
    COMMAND,
    COMMITMENT,
    DATA_SET,
    ECHO,
    IMPLICIT,
    LAST_COMMAND,
    LAST_DATA_SET,
    ROOT,
)
from pacs.hostile_peer import ABORT_REQUEST, RELEASE_REQUEST, REQUEST, sends_in_association

# In an association: PDUs.

for _name, _content in {
    "a second request": REQUEST,
    "an acceptance": pdus.pdu(pdus.ACCEPT, pdus.request_body()),
    "a rejection": pdus.pdu(pdus.REJECT, bytes(4)),
    "a release that was not requested": pdus.pdu(pdus.RELEASED, bytes(4)),
    "a PDU of type 8": pdus.pdu(8, bytes(4)),
    "a PDU of type 255": pdus.pdu(0xFF, bytes(400)),
    "an abort of length 0": pdus.pdu(pdus.ABORT, b""),
    "an abort of length 9": pdus.pdu(pdus.ABORT, bytes(9)),
    "an abort of an unknown source": pdus.pdu(pdus.ABORT, b"\0\0\xff\xff"),
    "two aborts": ABORT_REQUEST * 2,
    "a release of length 0": pdus.pdu(pdus.RELEASE, b""),
    "a release of length 1000": pdus.pdu(pdus.RELEASE, bytes(1000)),
    "two releases": RELEASE_REQUEST * 2,
    "data after the release": RELEASE_REQUEST + pdus.command(ECHO, 0x0030) * 3,
    "garbage after the release": RELEASE_REQUEST + random.Random(4).randbytes(5000),
    "a request after the release": RELEASE_REQUEST + REQUEST,
    "data after the abort": ABORT_REQUEST + pdus.command(ECHO, 0x0030) * 3,
    "no PDV": pdus.data(),
    "a PDU of one byte": pdus.pdu(pdus.DATA, b"\0"),
    "a PDU of five bytes": pdus.pdu(pdus.DATA, bytes(5)),
    "a PDV of length 0": pdus.data(pdus.pdv(ECHO, 3, b"", length=0)),
    "a PDV of length 1": pdus.pdu(pdus.DATA, struct.pack(">IB", 1, ECHO)),
    "a PDV of length 2": pdus.data(pdus.pdv(ECHO, 3, b"")),
    "a PDV of length 2 with a data set": pdus.data(pdus.pdv(ECHO, 2, b"")),
    "a PDV longer than its PDU": pdus.data(pdus.pdv(ECHO, 3, bytes(50), length=90)),
    "a PDV shorter than its PDU": pdus.data(pdus.pdv(ECHO, 3, bytes(50), length=20)),
    "a PDV of two gigabytes": pdus.data(pdus.pdv(ECHO, 3, bytes(50), length=0x7FFFFFFF)),
    "a PDV of four gigabytes": pdus.data(pdus.pdv(ECHO, 3, bytes(50), length=0xFFFFFFFF)),
    "ten thousand small PDVs": pdus.data(*[pdus.pdv(ECHO, COMMAND, b"")] * 10000),
    "a PDU of four gigabytes": pdus.pdu(pdus.DATA, bytes(1 << 20), length=0xFFFFFFFF),
    "a PDU of a few bytes too many": pdus.pdu(pdus.DATA, bytes((256 << 10) + (1 << 16) + 1)),
    "a data set without a command": pdus.data(pdus.pdv(IMPLICIT, LAST_DATA_SET, bytes(100))),
    "control header 0xff": pdus.data(pdus.pdv(ECHO, 0xFF, bytes(20))),
    "a command of two megabytes": pdus.data(pdus.pdv(ECHO, COMMAND, bytes(16000))) * 130,
    "a data set of two megabytes without a command": pdus.data(
        pdus.pdv(IMPLICIT, DATA_SET, bytes(16000))
    )
    * 130,
}.items():
    sends_in_association(_name, _content)
for _context in (0, 2, 13, 99, 255):
    sends_in_association(
        f"presentation context {_context} that is not there", pdus.command(_context, 1)
    )
    sends_in_association(
        f"an instance in presentation context {_context}",
        pdus.store(pdus.image(f"{ROOT}.3"), sop_uid=f"{ROOT}.3", number=_context),
    )

# Commands.

_ECHO_BYTES = pdus.command_bytes(pdus.command_elements(0x0030, sop_class=b"1.2.840.10008.1.1"))
_STORE_ELEMENTS = pdus.command_elements(0x0001, sop_uid=f"{ROOT}.4".encode(), data_set=1)
for _end in (1, 3, 4, 7, 8, 11, 12, 14, 20, 30, 44, len(_ECHO_BYTES) - 1):
    sends_in_association(
        f"a command cut at {_end}", pdus.data(pdus.pdv(ECHO, LAST_COMMAND, _ECHO_BYTES[:_end]))
    )
for _tag in _STORE_ELEMENTS:
    _rest = {tag: value for tag, value in _STORE_ELEMENTS.items() if tag != _tag}
    sends_in_association(
        f"an instance whose command has no {_tag:08x}",
        pdus.data(pdus.pdv(IMPLICIT, LAST_COMMAND, pdus.command_bytes(_rest)))
        + pdus.data(pdus.pdv(IMPLICIT, LAST_DATA_SET, pdus.image(f"{ROOT}.4"))),
    )
    _twice = pdus.command_bytes(_STORE_ELEMENTS) + pdus.element(_tag, _STORE_ELEMENTS[_tag])
    sends_in_association(
        f"a command with two {_tag:08x}", pdus.data(pdus.pdv(IMPLICIT, LAST_COMMAND, _twice))
    )
    for _name, _value in {
        "nothing": b"",
        "a thousand bytes": b"1" * 1000,
        "ones": b"\xff" * 8,
    }.items():
        sends_in_association(
            f"a command with {_name} as {_tag:08x}",
            pdus.data(
                pdus.pdv(
                    IMPLICIT, LAST_COMMAND, pdus.command_bytes({**_STORE_ELEMENTS, _tag: _value})
                )
            )
            + pdus.data(pdus.pdv(IMPLICIT, LAST_DATA_SET, pdus.image(f"{ROOT}.4"))),
        )
for _name, _content in {
    "a group length of 0": pdus.element(0, bytes(4)) + _ECHO_BYTES[12:],
    "a group length of four gigabytes": pdus.element(0, b"\xff" * 4) + _ECHO_BYTES[12:],
    "no group length": _ECHO_BYTES[12:],
    "an element of undefined length": pdus.element(0x00000002, b"1.2", length=0xFFFFFFFF),
    "a length of two gigabytes": pdus.element(0x00000002, b"1.2", length=0x7FFFFFFF),
    "no element": b"",
    "garbage": random.Random(5).randbytes(200),
    "elements of other groups": pdus.image(f"{ROOT}.5"),
    "the elements backwards": b"".join(
        pdus.element(tag, value) for tag, value in sorted(_STORE_ELEMENTS.items(), reverse=True)
    ),
}.items():
    sends_in_association(
        f"a command with {_name}", pdus.data(pdus.pdv(ECHO, LAST_COMMAND, _content))
    )
for _field in (0x0000, 0x0002, 0x7777, 0xFFFF, 0x8001, 0x8030, 0x8100, 0x8020):
    sends_in_association(f"command {_field:04x}", pdus.command(IMPLICIT, _field))
for _name, _field in {
    "C-FIND": 0x0020,
    "C-GET": 0x0010,
    "C-MOVE": 0x0021,
    "C-ECHO": 0x0030,
    "C-CANCEL": 0x0FFF,
    "N-GET": 0x0110,
    "N-SET": 0x0120,
    "N-ACTION": 0x0130,
    "N-CREATE": 0x0140,
    "N-DELETE": 0x0150,
    "N-EVENT-REPORT": 0x0100,
}.items():
    sends_in_association(
        f"{_name} where instances belong",
        pdus.command(IMPLICIT, _field, data_set=1)
        + pdus.data(pdus.pdv(IMPLICIT, LAST_DATA_SET, pdus.image(f"{ROOT}.6"))),
    )
    sends_in_association(f"{_name} without a data set", pdus.command(COMMITMENT, _field))
sends_in_association(
    "a query of two megabytes",
    pdus.command(IMPLICIT, 0x0020, data_set=1)
    + pdus.data(pdus.pdv(IMPLICIT, DATA_SET, bytes(16000))) * 130,
)
sends_in_association(
    "300 echos at once", pdus.command(ECHO, 0x0030, sop_class=b"1.2.840.10008.1.1") * 300
)
sends_in_association("a thousand cancels", pdus.command(ECHO, 0x0FFF) * 1000)
