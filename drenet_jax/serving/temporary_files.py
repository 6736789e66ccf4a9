"""The server's temporary folder, which goes with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "drenet_jax_serve."


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields a folder below the system's for temporary files (TMPDIR), and removes it in the end.

    Folders of servers that were killed are removed first: those without a held lock.
    """
    above = Path(tempfile.gettempdir())
    for left_over in above.glob(f"{_PREFIX}*"):
        _remove_if_left(left_over)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=above))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another server that starts may have taken it for a left one before the lock.
        if folder.is_dir():
            break
        os.close(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_if_left(folder: Path) -> None:
    # The system's folder is everybody's: no links are followed, others' folders cannot be opened.
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        finally:
            os.close(lock)
