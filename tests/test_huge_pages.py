"""Commands ask glibc for huge pages, by starting anew once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from drenet_jax import cli

_SCRIPT = """
import os, sys
from drenet_jax import cli
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
cli.use_huge_pages()
print("goes on")
"""


def _lines(tunables: str | None) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, "-c", _SCRIPT, "--name=a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(not cli._grants_huge_pages(), reason="this Linux does not grant huge pages")
def test_a_command_starts_anew_once_with_the_same_arguments_in_the_same_process():
    first, second, last = _lines("glibc.malloc.perturb=0")
    pid = first.split()[0]
    assert first == f"{pid} ['--name=a b'] glibc.malloc.perturb=0"
    assert second == f"{pid} ['--name=a b'] glibc.malloc.perturb=0:glibc.malloc.hugetlb=1"
    assert last == "goes on"


def test_who_has_decided_about_huge_pages_is_left_alone():
    assert len(_lines("glibc.malloc.hugetlb=0")) == 2
