"""Names of uploaded files become safe, recognizable, unique paths."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drenet_jax.serving.uploads import safe_name, unique_paths


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("IM_0001.dcm", ("IM_0001.dcm",)),
        ("P001/series 2/IM1", ("P001", "series 2", "IM1")),
        ("../../etc/passwd", ("etc", "passwd")),
        ("/etc/passwd", ("etc", "passwd")),
        ("C:\\Users\\me\\a.dcm", ("C:", "Users", "me", "a.dcm")),
        ("a/./b//c", ("a", "b", "c")),
        ("a\x00b\n.dcm", ("a_b_.dcm",)),
        ("\u202egnp.exe", ("_gnp.exe",)),
        ("", ("file",)),
        ("../..", ("file",)),
        ("<script>.dcm", ("<script>.dcm",)),
        ("Lungen-Übersicht.dcm", ("Lungen-Übersicht.dcm",)),
    ],
)
def test_a_name_becomes_safe_path_parts(given_name, expected):
    assert safe_name(given_name) == expected


@given(st.text(max_size=400))
def test_any_name_becomes_valid_path_parts(name):
    parts = safe_name(name)
    assert 1 <= len(parts) <= 12
    for part in parts:
        assert part not in ("", ".", "..")
        assert not set(part) & {"/", "\\", "\x00"}
        assert len(part.encode()) <= 255
        assert all(unicodedata.category(sign) not in ("Cc", "Cf", "Cs") for sign in part)


def test_a_long_name_keeps_its_end():
    (name,) = safe_name("ä" * 300 + ".nii.gz")
    assert name.endswith(".nii.gz")
    assert len(name.encode()) <= 200


def test_a_common_top_folder_is_removed_as_in_predict():
    assert unique_paths([("P1", "a"), ("P1", "s", "b")]) == [("a",), ("s", "b")]
    assert unique_paths([("P1", "a"), ("P2", "a")]) == [("P1", "a"), ("P2", "a")]
    assert unique_paths([("P1", "a")]) == [("a",)]


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "a.dcm", "a~2", ".a"]), min_size=1, max_size=3).map(
            tuple
        ),
        min_size=1,
        max_size=30,
    )
)
def test_paths_are_unique_and_no_file_is_a_folder(tmp_path_factory, paths):
    unique = unique_paths(paths)
    assert len(set(unique)) == len(paths)
    folders = {path[:depth] for path in unique for depth in range(1, len(path))}
    assert not folders & set(unique)


def test_many_equal_names_are_fast(tmp_path):
    unique = unique_paths([("same.dcm",)] * 5000)
    assert unique[:3] == [("same.dcm",), ("same~2.dcm",), ("same~3.dcm",)]
    assert len({Path(*path) for path in unique}) == 5000
