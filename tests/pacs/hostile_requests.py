"""Hostile peers until an association is accepted."""

from __future__ import annotations

import random
import struct

from pacs import hostile_pdus as pdus
from pacs.hostile_pdus import ECHO, ROOT
from pacs.hostile_peer import ABORT_REQUEST, RELEASE_REQUEST, REQUEST, sends

# No association request at all.

for _seed, _size in enumerate((1, 3, 5, 6, 7, 20, 74, 500, 5000, 70000)):
    sends(f"garbage of {_size} bytes", random.Random(_seed).randbytes(_size))
sends("no bytes", b"")
sends("zeros", bytes(100))
sends("ones", b"\xff" * 100)
sends("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
sends("TLS", bytes.fromhex("16030100c8010000c40303") + random.Random(1).randbytes(194))
sends("SSH", b"SSH-2.0-OpenSSH_9.6\r\n")
for _type in (0, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x7F, 0xFF):
    sends(f"first PDU of type {_type}", pdus.pdu(_type, bytes(4)))
sends("a type that is unknown, then a large PDU", pdus.pdu(9, b"") + pdus.pdu(4, bytes(1 << 22)))
sends(
    "a type that is unknown, then a PDU of four gigabytes",
    pdus.pdu(9, b"") + pdus.pdu(4, bytes(1 << 22), length=0xFFFFFFFF),
)
sends("data before the request", pdus.command(ECHO, 0x0030) + pdus.request())

# Association requests.

_BODY = pdus.request_body()
for _length in (0, 1, 67, 68, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(_BODY) - 1, len(_BODY) + 1):
    sends(f"request of length {_length}", pdus.pdu(pdus.REQUEST, _BODY, length=_length))
for _end in (1, 2, 5, 6, 7, 10, 26, 42, 73, 74, 75, 78, 80, 100, 120, len(REQUEST) - 1):
    sends(f"request cut at {_end}", REQUEST[:_end])
for _version in (0, 2, 0xFFFF):
    sends(f"protocol version {_version}", pdus.request(version=_version))
for _name, _title in {
    "another": b"ANOTHER",
    "of spaces": b" " * 16,
    "of zeros": bytes(16),
    "that is no ASCII": "GEHÄIM".encode(),
    "that is no text": b"\xff\xfe\x80\x81" * 4,
    "of a path": b"../../../etc/pas",
    "with line ends": b"A\r\n2026 fake log",
    "with control characters": b"\x1b[2J\x07\x08",
    "with a backslash": b"A\\B",
}.items():
    sends(f"called AE title {_name}", pdus.request(called=_title))
    sends(f"calling AE title {_name}", pdus.request(calling=_title))

_UIDS = {
    "empty": b"",
    "of garbage": b"\xff\x00\x80garbage",
    "of 65 characters": b"1." * 32 + b"1",
    "of 1000 characters": b"1." * 500,
    "of a path": b"../../x",
    "with zeros": b"1.2\x003",
    "that is no ASCII": "1.2.é".encode(),
    "unknown": f"{ROOT}.9".encode(),
}
for _name, _uid in _UIDS.items():
    sends(
        f"application context {_name}",
        pdus.request(application=pdus.item(0x10, _uid)),
    )
    sends(f"abstract syntax {_name}", pdus.request(contexts=(pdus.context(1, _uid),)))
    sends(
        f"transfer syntax {_name}",
        pdus.request(contexts=(pdus.context(1, b"1.2.840.10008.5.1.4.1.1.2", _uid),)),
    )
    sends(f"role of a class {_name}", pdus.request(information=pdus.user(pdus.role(_uid))))
    sends(
        f"implementation {_name}",
        pdus.request(information=pdus.user(pdus.item(0x52, _uid))),
    )
for _name, _parts in {
    "no application context": {"application": b""},
    "two application contexts": {"application": pdus.item(0x10, pdus.APPLICATION_CONTEXT) * 2},
    "a huge application context": {"application": pdus.item(0x10, b"1" * 60000)},
    "no presentation context": {"contexts": ()},
    "200 presentation contexts": {
        "contexts": tuple(pdus.context(i % 256) for i in range(1, 400, 2))
    },
    "the same presentation context twice": {"contexts": (pdus.context(1), pdus.context(1))},
    "an even presentation context": {"contexts": (pdus.context(2),)},
    "presentation context 0": {"contexts": (pdus.context(0),)},
    "a context with a thousand transfer syntaxes": {
        "contexts": (pdus.context(1, b"1.2.3", *[b"1.2.3.%d" % i for i in range(1000)]),)
    },
    "a context without items": {"contexts": (pdus.item(0x20, bytes([1, 0, 0, 0])),)},
    "a context without abstract syntax": {
        "contexts": (pdus.item(0x20, bytes([1, 0, 0, 0]) + pdus.item(0x40, b"1.2.840.10008.1.2")),)
    },
    "a context without transfer syntax": {
        "contexts": (pdus.item(0x20, bytes([1, 0, 0, 0]) + pdus.item(0x30, b"1.2.3")),)
    },
    "a context with two abstract syntaxes": {
        "contexts": (
            pdus.item(0x20, bytes([1, 0, 0, 0]) + pdus.item(0x30, b"1.2.3") * 2),
            pdus.context(3),
        )
    },
    "a context longer than the request": {"contexts": (pdus.item(0x20, bytes(8), length=0xFFFF),)},
    "a context of length 0": {"contexts": (pdus.item(0x20, b""), pdus.context(3))},
    "an item in a context longer than it": {
        "contexts": (pdus.item(0x20, bytes([1, 0, 0, 0]) + pdus.item(0x30, b"1.2", length=500)),)
    },
    "tens of thousands of empty items": {"contexts": (pdus.item(0x20, b"") * 60000,)},
    "an unknown item": {"contexts": (pdus.item(0x77, b"abc"), pdus.context(1))},
    "no user information": {"information": b""},
    "user information twice": {"information": pdus.user() * 2},
    "user information of length 0": {"information": pdus.item(0x50, b"")},
    "user information with a lie": {"information": pdus.item(0x50, bytes(9), length=2000)},
    "user information with unknown items": {
        "information": pdus.user(pdus.item(0x60, b"x"), pdus.item(0xFF, b"x" * 100))
    },
    "a maximum length of three bytes": {"information": pdus.item(0x50, pdus.item(0x51, b"abc"))},
    "a role whose UID is longer than it": {
        "information": pdus.user(pdus.item(0x54, struct.pack(">H", 900) + b"1.2\x01\x01"))
    },
    "a role that is neither": {"information": pdus.user(pdus.role(scu=0, scp=0))},
    "a role that is no number": {"information": pdus.user(pdus.role(scu=255, scp=7))},
    "a role that is cut": {"information": pdus.user(pdus.item(0x54, b"\x00"))},
    "asynchronous operations": {"information": pdus.user(pdus.item(0x53, b"\xff" * 4))},
    "asynchronous operations that are cut": {"information": pdus.user(pdus.item(0x53, b"\xff"))},
    "extended negotiation": {
        "information": pdus.user(pdus.item(0x56, struct.pack(">H", 5) + b"1.2.3" + b"x" * 99))
    },
    "extended negotiation with a lie": {
        "information": pdus.user(pdus.item(0x56, struct.pack(">H", 5000) + b"1.2.3"))
    },
    "common extended negotiation with a lie": {
        "information": pdus.user(pdus.item(0x57, struct.pack(">HHH", 3, 9000, 7) + b"1.2"))
    },
}.items():
    sends(_name, pdus.request(**_parts))
for _longest in (0, 1, 5, 6, 7, 8, 0xFFFFFFFF):
    sends(
        f"answers of at most {_longest} bytes",
        pdus.request(information=pdus.user(longest=_longest)) + pdus.command(ECHO, 0x0030),
    )
for _identity in (0, 1, 2, 3, 5, 9):
    sends(
        f"user identity {_identity}",
        pdus.request(
            information=pdus.user(
                pdus.item(0x58, bytes([_identity, 1]) + struct.pack(">H", 6) + b"GEHEIM\0\0")
            )
        ),
    )
sends(
    "user identity with a lie",
    pdus.request(information=pdus.user(pdus.item(0x58, b"\x02\x01\xff\xffGEHEIM\xff\xff"))),
)
sends("two requests", REQUEST * 2)
sends("a request and garbage", REQUEST + random.Random(3).randbytes(300))
sends("a request and data at once", REQUEST + pdus.command(ECHO, 0x0030))
sends("a request and its release at once", REQUEST + RELEASE_REQUEST)
sends("a request and its abort at once", REQUEST + ABORT_REQUEST)
