"""Hostile instances, and answers to storage commitment."""

from __future__ import annotations

import random
import struct
import zlib

from pacs import hostile_pdus as pdus
from pacs.hostile_pdus import (
    COMMITMENT,
    DEFLATED,
    EXPLICIT,
    JPEG,
    LAST_COMMAND,
    LAST_DATA_SET,
    ROOT,
)
from pacs.hostile_peer import (
    ABORT_REQUEST,
    KINDS,
    RELEASE_REQUEST,
    Peer,
    kind,
    many_instances,
    new_uid,
    play,
    sends_in_association,
)

# Instances.


def _instance(name: str, **parts: object) -> None:
    """A C-STORE, with the same UID in the command unless another one is given."""

    def content() -> bytes:
        uid = new_uid()
        given = dict(parts)
        sent = {key: given.pop(key) for key in ("number", "sop_class") if key in given}
        raw = given.pop("raw", None)
        command_uid = given.pop("command_uid", uid)
        if "sop_class" in sent:
            given["sop_class"] = sent["sop_class"]
        given.setdefault("study_uid", f"{uid}.7")
        data_set = raw if raw is not None else pdus.image(given.pop("sop_uid", uid), **given)
        return pdus.store(data_set, sop_uid=command_uid, **sent)

    sends_in_association(name, content)


_instance("an instance of another UID", command_uid=f"{ROOT}.8")
_instance("an instance without pixels")
_instance("an empty data set", raw=b"")
_instance("a data set of garbage", raw=random.Random(6).randbytes(20000))
_instance("a data set of zeros", raw=bytes(20000))
_instance("a data set that is cut", raw=pdus.image(f"{ROOT}.4")[:31])
_instance(
    "a data set with a length of four gigabytes",
    raw=pdus.element(0x00080016, b"", length=0xFFFFFFFE),
)
for _name, _uid in {
    "of a path": "../../x",
    "of an absolute path": "/etc/cron.d/x",
    "with zeros": "1.2\x00.3",
    "of 65 characters": "1." * 32 + "1",
    "of ten thousand characters": "1." * 5000,
    "that is no ASCII": "1.2.é٣",
    "that is empty": "",
    "of two values": f"{ROOT}.1\\{ROOT}.2",
    "of letters": "ABC",
    "of dots": "...",
    "with markup": "<b>1.2</b>",
    "with SQL": "1'); DROP TABLE studies; --",
}.items():
    _instance(f"a study UID {_name}", study_uid=_uid)
    _instance(f"an instance UID {_name}", sop_uid=_uid, command_uid=_uid)
_instance("another class than its context", sop_class="1.2.840.10008.5.1.4.1.1.4")
_instance("a class of a path", sop_class="../../x")
_SEQUENCE = struct.pack("<HHI", 0x0008, 0x1110, 0xFFFFFFFF)
_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
_instance("sequences nested ten thousand times", before=(_SEQUENCE + _ITEM) * 10000)
_instance(
    "sequences nested behind the UIDs",
    after=(struct.pack("<HHI", 0x0040, 0x0275, 0xFFFFFFFF) + _ITEM) * 10000,
)
_instance(
    "a sequence of 30000 items", before=_SEQUENCE + struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 30000
)
_instance(
    "private elements of a megabyte",
    before=pdus.element(0x00070010, b"X") + pdus.element(0x00071000, bytes(1 << 20)),
)
_instance(
    "a private sequence of undefined length",
    after=struct.pack("<HHI", 0x0021, 0x1001, 0xFFFFFFFF) + b"x" * 500,
)
_instance("a wrong length of group 0008", before=pdus.element(0x00080000, b"\xff\xff\xff\x7f"))
_instance("elements of group 0002 in the data set", before=pdus.element(0x00020010, b"1.2.3"))
_instance("elements of group 0000 in the data set", before=pdus.element(0x00000100, b"\x01\x00"))
_instance(
    "pixels with a lie about their length",
    after=pdus.element(0x7FE00010, bytes(100), length=0x7FFFFFFF),
)
_instance(
    "ten thousand rows",
    after=pdus.element(0x00280010, pdus.short(65535))
    + pdus.element(0x00280011, pdus.short(65535))
    + pdus.element(0x7FE00010, bytes(100)),
)
_instance(
    "an unknown VR",
    number=EXPLICIT,
    is_explicit=True,
    before=pdus.explicit(0x00080005, b"ZZ", b"x"),
)
_instance(
    "a VR of no letters",
    number=EXPLICIT,
    is_explicit=True,
    before=pdus.explicit(0x00080005, b"\0\0", b"x"),
)
_instance("explicit VR where implicit VR was negotiated", is_explicit=True)
_instance("implicit VR where explicit VR was negotiated", number=EXPLICIT)
_instance(
    "an unknown character set",
    number=EXPLICIT,
    is_explicit=True,
    before=pdus.explicit(0x00080005, b"CS", b"ISO_IR 999\\\\x"),
)
_instance("JPEG without pixels", number=JPEG, is_explicit=True)
_instance(
    "JPEG of garbage",
    number=JPEG,
    is_explicit=True,
    after=pdus.explicit(0x7FE00010, b"OB", b"", length=0xFFFFFFFF)
    + random.Random(7).randbytes(3000),
)
_instance("what is not deflated where it should be", number=DEFLATED, is_explicit=True)


def _deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


_BOMB = _deflated(pdus.explicit(0x00080005, b"CS", b"") + bytes(64 << 20))
_instance("a deflated bomb", number=DEFLATED, raw=_BOMB)
_instance("a deflated data set that is cut", number=DEFLATED, raw=_BOMB[:1000])


@kind
def a_deflated_bomb_behind_the_uids(peer: Peer) -> None:
    uid = new_uid()
    start = pdus.image(uid, study_uid=f"{uid}.7", is_explicit=True)
    content = _deflated(start + pdus.explicit(0x7FE00010, b"OW", bytes(64 << 20)))
    peer.send_in_association(pdus.store(content, sop_uid=uid, number=DEFLATED))


@kind
def the_same_instance_with_other_bytes(peer: Peer) -> None:
    uid = new_uid()
    first, second = (
        pdus.image(uid, study_uid=f"{uid}.7", after=pdus.element(0x00280010, pdus.short(rows)))
        for rows in (1, 2)
    )
    peer.send_in_association(pdus.store(first, sop_uid=uid) + pdus.store(second, sop_uid=uid))


@kind
def instances_that_do_not_wait_for_answers(peer: Peer) -> None:
    with peer.associated() as connection:
        play(connection, many_instances(100), wait_s=1)


for _name, _end in {
    "an abort": ABORT_REQUEST,
    "a release": RELEASE_REQUEST,
    "nothing": b"",
}.items():
    sends_in_association(
        f"instances without waiting, then {_name}", lambda end=_end: many_instances(20) + end
    )


@kind
def instances_that_break_off_everywhere(peer: Peer) -> None:
    uid = new_uid()
    whole = pdus.store(pdus.image(uid, after=pdus.element(0x00090010, bytes(40000))), sop_uid=uid)
    for end in (20, 100, 200, 230, 500, 16000, 17000, len(whole) - 1):
        with peer.associated() as connection:
            connection.sendall(whole[:end])


# Answers to storage commitment.


def _report(name: str, content: bytes, *, event: bytes = b"\x01\x00") -> None:
    elements = {
        **pdus.command_elements(
            0x0100,
            sop_class=b"1.2.840.10008.1.20.1",
            sop_uid=b"1.2.840.10008.1.20.1.1",
            data_set=1,
        ),
        0x00001002: event,
    }
    del elements[0x00000700]
    sends_in_association(
        name,
        pdus.data(pdus.pdv(COMMITMENT, LAST_COMMAND, pdus.command_bytes(elements)))
        + pdus.data(pdus.pdv(COMMITMENT, LAST_DATA_SET, content)),
    )


_TRANSACTION = pdus.element(0x00081195, f"{ROOT}.5".encode())
_REFERENCE = pdus.element(0xFFFEE000, pdus.element(0x00081155, f"{ROOT}.6".encode()))
_report("a report on an unknown commitment", _TRANSACTION)
_report("a report without a transaction", b"")
_report("a report of garbage", random.Random(8).randbytes(300))
_report(
    "a report on ten thousand failures",
    _TRANSACTION + pdus.element(0x00081198, _REFERENCE * 10000),
    event=b"\x02\x00",
)
_report("a report on a failure of nothing", _TRANSACTION, event=b"\x02\x00")
_report("a report with a path", pdus.element(0x00081195, b"../../x"))
_report("a report with an empty transaction", pdus.element(0x00081195, b""))
_report("a report with SQL", pdus.element(0x00081195, b"1' OR '1'='1"))
for _event in (b"\0\0", b"\x03\0", b"\xff\xff", b""):
    _report(f"a report of event {_event.hex() or 'nothing'}", _TRANSACTION, event=_event)
KINDS["a hundred reports at once"] = lambda peer: _many_reports(peer)


def _many_reports(peer: Peer) -> None:
    elements = pdus.command_elements(
        0x0100, sop_class=b"1.2.840.10008.1.20.1", sop_uid=b"1.2.840.10008.1.20.1.1", data_set=1
    )
    del elements[0x00000700]
    elements[0x00001002] = b"\x01\x00"
    one = pdus.data(pdus.pdv(COMMITMENT, LAST_COMMAND, pdus.command_bytes(elements)))
    one += pdus.data(pdus.pdv(COMMITMENT, LAST_DATA_SET, _TRANSACTION))
    peer.send_in_association(one * 100)
