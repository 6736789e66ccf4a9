"""What a process and its children hold, from /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple


class Held(NamedTuple):
    """Resident memory in MiB, threads, and open file descriptors."""

    rss_mib: float
    n_threads: int
    n_files: int


def held_by(pid: int) -> Held:
    """Of a process; memory includes its children."""
    rss_mib = sum(map(_rss_mib, [pid, *children(pid)]))
    n_threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    n_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Held(rss_mib, n_threads, n_files)


def children(pid: int) -> list[int]:
    pids = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += map(int, file.read_text().split())
    return pids


def _rss_mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    return 0.0


def disk_mib(folder: Path) -> float:
    """What the files of a folder take on disk; files may vanish meanwhile."""
    blocks = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            blocks += path.lstat().st_blocks
    return blocks * 512 / (1 << 20)
