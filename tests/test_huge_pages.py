"""The launchers enable huge pages in glibc."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("policy", "tunables", "expected"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("always [madvise] never", "", ""),
        ("[always] madvise never", None, "unset"),
        ("always madvise [never]", None, "unset"),
    ],
)
def test_huge_pages_are_used_where_linux_grants_them(policy, tunables, expected, tmp_path):
    (tmp_path / "enabled").write_text(policy + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    script = (
        f". launch/_environment.sh; use_huge_pages {tmp_path}/enabled; "
        'echo "${GLIBC_TUNABLES-unset}"'
    )
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected
