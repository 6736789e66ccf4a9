"""Hostile uploads: each kind makes the bytes of one HTTP request."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from serving.servers import multipart

EVIL_NAMES = (
    b"../../../../etc/passwd",
    b"..\\..\\windows\\win.ini",
    b"/etc/cron.d/x",
    b"<script>alert(1)</script>.dcm",
    b"<img src=x onerror=alert(1)>.png",
    b"%3Cscript%3E",
    b"a\x00b.dcm",
    b"\xff\xfe\xfd.dcm",
    b"\xe2\x80\xaegnp.mcd",
    b"CON",
    b"." * 300,
    b"x" * 3000,
    b"a/" * 500 + b"b",
    b"{{7*7}}.dcm",
    b"$(reboot).dcm",
    b"",
)

Kind = Callable[[np.random.Generator], bytes]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    KINDS[make.__name__] = make
    return make


def request(
    body: bytes,
    *,
    path: str = "/api/predict",
    headers: Mapping[str, str] | None = None,
    length: int | None = None,
) -> bytes:
    lines = {
        "Host": "localhost",
        "Content-Type": "multipart/form-data; boundary=x",
        "Content-Length": str(len(body) if length is None else length),
        "Connection": "close",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def zip_of(members: Mapping[str, bytes], level: int = 1) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def overlapping_bomb(n_members: int, member_mib: int, name: str = "%d.dcm") -> bytes:
    """A zip of many members that share one compressed stream, so it is small."""
    size = member_mib << 20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(size)) + packer.flush()
    check = zlib.crc32(bytes(size))
    fields = struct.pack("<5HI2I", 20, 0, 8, 0, 0x21, check, len(packed), size)
    local = b"PK\x03\x04" + fields + struct.pack("<2H", 5, 0) + b"0.dcm" + packed
    directory = b""
    for i in range(n_members):
        file_name = (name % i).encode()
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + fields
        directory += struct.pack("<5H2I", len(file_name), 0, 0, 0, 0, 0, 0) + file_name
    end = struct.pack("<4H2IH", 0, 0, n_members, n_members, len(directory), len(local), 0)
    return local + directory + b"PK\x05\x06" + end


def nifti_header(shape: tuple[int, ...]) -> bytes:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *([1] * (7 - len(shape))))
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    return bytes(header)


# Made once, for many requests.
_BOMBS = {
    "far_too_much": overlapping_bomb(200, 40),
    "just_allowed": overlapping_bomb(90, 40),
    "not_named": overlapping_bomb(60, 40, name="x%d"),
    "many_members": zip_of({f"{i}": b"" for i in range(6000)}),
    "nested": zip_of({"a.zip": zip_of({"b.zip": zip_of({"c.dcm": bytes(1 << 20)})})}),
    "gzip": gzip.compress(nifti_header((512, 512, 900)) + bytes(64 << 20), 9),
    "gzip_large": gzip.compress(nifti_header((30000, 30000, 30000)) + bytes(1 << 20), 9),
}
_GIVEN: dict[str, list[bytes]] = {"dicom": []}


def use_slices(folder: Path) -> None:
    """The files that are damaged and cut."""
    _GIVEN["dicom"] = [path.read_bytes() for path in sorted(folder.iterdir())]


def _pick(rng: np.random.Generator, of):
    return of[int(rng.integers(len(of)))]


def _damaged(rng: np.random.Generator, data: bytes) -> bytes:
    damaged = bytearray(data)
    for at in rng.integers(len(damaged), size=int(rng.integers(1, 40))):
        damaged[at] = int(rng.integers(256))
    return bytes(damaged)


@kind
def zip_bombs(rng):
    return request(multipart((b"a.zip", _BOMBS[_pick(rng, sorted(_BOMBS)[2:])])))


@kind
def gzip_bombs(rng):
    return request(multipart((b"a.nii.gz", _BOMBS[_pick(rng, ["gzip", "gzip_large"])])))


@kind
def evil_names(rng):
    files = [(_pick(rng, EVIL_NAMES), rng.bytes(50)) for _ in range(int(rng.integers(1, 6)))]
    return request(multipart(*files))


@kind
def evil_names_of_slices(rng):
    slices = _GIVEN["dicom"]
    start = int(rng.integers(len(slices) - 3))
    files = [(_pick(rng, EVIL_NAMES), slice_) for slice_ in slices[start : start + 3]]
    return request(multipart(*files), path="/api/jobs")


@kind
def evil_names_in_zips(rng):
    names = [name.decode("latin-1") for name in EVIL_NAMES if name and b"\0" not in name]
    members = {_pick(rng, names): slice_ for slice_ in _GIVEN["dicom"][5:8]}
    return request(multipart((b"a.zip", zip_of(members))), path="/api/jobs")


@kind
def huge_headers(rng):
    if rng.random() < 0.5:
        return request(b"", headers={"X-Large": "y" * int(rng.integers(20_000, 200_000))})
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\n--x--\r\n'
    return request(part % (b"z" * int(rng.integers(5_000, 100_000))))


@kind
def wrong_types(rng):
    name = _pick(rng, (b"a.dcm", b"a.png", b"a.jpg", b"a.nii", b"a.nii.gz", b"a.mha", b"a.nrrd"))
    start = _pick(
        rng,
        (
            b"",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff",
            b"\xff\xd8\xff\xe0",
            bytes(128) + b"DICM",
            b"PK\x03\x04",
            b"PK\x05\x06",
            nifti_header((30000, 30000, 3)),
            b"ObjectType = Image\nNDims = 3\nDimSize = 9999 9999 9999\nElementDataFile = LOCAL\n",
            b"NRRD0004\ntype: short\ndimension: 3\nsizes: 99999 99999 99\nencoding: raw\n\n",
            b"MZ\x90\0",
            b"%PDF-1.7",
            b"<html><script>alert(1)</script>",
        ),
    )
    return request(multipart((name, start + rng.bytes(int(rng.integers(0, 3000))))))


@kind
def empty(rng):
    return request(
        _pick(rng, (b"", b"--x--\r\n", multipart((b"a.dcm", b"")), multipart((b"", b""))))
    )


@kind
def truncated_forms(rng):
    body = multipart((b"a.dcm", _pick(rng, _GIVEN["dicom"])))
    cut = int(rng.integers(len(body)))
    # The body is shorter than its Content-Length, or as long.
    return request(body[:cut], length=None if rng.random() < 0.5 else len(body))


@kind
def damaged_slices(rng):
    files = [
        (b"%d.dcm" % i, _damaged(rng, slice_) if rng.random() < 0.7 else slice_)
        for i, slice_ in enumerate(_GIVEN["dicom"][4:10])
    ]
    return request(multipart(*files))


@kind
def damaged_zips(rng):
    data = zip_of({f"{i}.dcm": slice_ for i, slice_ in enumerate(_GIVEN["dicom"][4:8])})
    data = _damaged(rng, data)[: int(rng.integers(len(data) // 2, len(data) + 1))]
    return request(multipart((b"a.zip", data)))


@kind
def many_files(rng):
    return request(multipart(*[(b"a", b"")] * int(rng.integers(5001, 5500))))


@kind
def no_http(rng):
    return _pick(
        rng,
        (
            rng.bytes(300),
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /api/predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /static/..%2f..%2fapp.py HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /api/jobs/<script>alert(1)</script> HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ),
    )


@kind
def other_sites(rng):
    headers = _pick(
        rng, ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Host": "[::1"})
    )
    return request(multipart((b"a.dcm", b"1")), headers=headers)


@kind
def slow_bodies(rng):
    return request(b"--x\r\nContent-Disposition: form-data", length=10_000)
