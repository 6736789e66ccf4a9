"""What a zip says of itself is read within bounds."""

from __future__ import annotations

import errno
import io
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drenet_jax.ct import opening
from drenet_jax.ct.opening import open_source, zip_members
from drenet_jax.ct.sources import CtError, natural


def written(tmp_path, names):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"12345")
    return path


def test_members_are_listed_without_folders(tmp_path):
    path = written(tmp_path, ["b/", "b/2.dcm", "b/10.dcm"])
    assert [(member.filename, member.file_size) for member in zip_members(path)] == [
        ("b/2.dcm", 5),
        ("b/10.dcm", 5),
    ]
    assert open_source(path).names == ("b/2.dcm", "b/10.dcm")


def test_a_directory_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, [f"{i:0100}" for i in range(200)])
    assert len(open_source(path).names) == 200
    monkeypatch.setattr(opening, "_MOST_DIRECTORY_BYTES", 20_000)
    with pytest.raises(CtError) as refused:
        open_source(path)
    assert refused.value.why == "a damaged zip"


def test_a_directory_that_claims_gigabytes_is_refused(tmp_path):
    data = bytearray(written(tmp_path, ["a"]).read_bytes())
    end = data.rfind(b"PK\x05\x06")
    struct.pack_into("<2I", data, end + 12, 0xFFFFFFF0, 0)
    path = tmp_path / "b.zip"
    path.write_bytes(data)
    with pytest.raises(CtError, match="cannot be opened"):
        zip_members(path)


def test_a_member_that_unpacks_to_more_than_the_directory_says_is_damaged(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(1 << 20))
    data = bytearray(stream.getvalue())
    # It says 100 bytes, and unpacks to a MiB.
    struct.pack_into("<I", data, data.find(b"PK\x01\x02") + 24, 100)
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    assert [member.file_size for member in zip_members(path)] == [100]
    with pytest.raises(ValueError, match="damaged member"):
        open_source(path).read("a.dcm")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), UnicodeDecodeError("utf-8", b"", 0, 1, "")]
)
def test_a_member_that_cannot_be_opened_is_damaged_and_costs_no_other(tmp_path, error, monkeypatch):
    source = open_source(written(tmp_path, ["a.dcm", "b.dcm"]))
    open_member = zipfile.ZipFile.open

    def fail(archive, member, *args, **options):
        if member.filename == "a.dcm":
            raise error
        return open_member(archive, member, *args, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", fail)
    for read in (source.head, source.read):
        with pytest.raises(ValueError, match=r"^a damaged member of the zip$"):
            read("a.dcm")
        assert read("b.dcm") == b"12345"


@pytest.mark.parametrize(
    "names",
    [
        ("IM1", "IM2", "IM10"),
        ("IM-1", "IM-2", "IM-10"),
        ("a2b", "a2c", "a10a"),
        ("1.2.3", "1.2.10"),
        ("z=\u221210", "z=\u22125", "z=0", "z=5", "z=10"),
        ("z_-10.png", "z_-5.png", "z_0.png", "z_5.png"),
        ("-10", "-9", "0", "1", "a"),
        ("s\u0662", "s\u0661\u0660", "s\u0662\u0660"),  # Arabic-Indic 2, 10, 20
        ("s\u0967", "s2", "s\u0967\u0966"),  # Devanagari 1 and 10 around a Latin 2
        ("x\u00b2", "x\u00b3"),  # superscripts are no decimal digits
        ("a1" + "0" * 5000, "a" + "9" * 5001),
        ("", "0", "00", "1"),
    ],
)
def test_names_are_in_natural_order(names):
    assert sorted(set(names), key=natural) == list(names)


@given(st.lists(st.text("-_=ab01259\u2212\u0663\u00b2\u00bd. ", max_size=6), max_size=6))
def test_natural_order_is_one_order_for_all_names(names):
    keys = [natural(name) for name in names]
    in_order = sorted(names, key=natural)
    assert in_order == sorted([*names[1:], *names[:1]], key=natural)
    assert len({str(key) for key in keys}) == len(set(names))


@given(st.lists(st.integers(-(10**6), 10**6), unique=True))
def test_natural_order_of_numbers_is_theirs(numbers):
    names = [f"z={number}.dcm".replace("-", "\u2212") for number in sorted(numbers)]
    assert sorted(set(names), key=natural) == names
