"""Folders that exist only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from drenet_jax.errors import InputError


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, *, flag: str = "--out") -> Iterator[Path]:
    """Yields a scratch folder beside `path` that becomes `path` if the block ends well.

    A failure, an interrupt or a SIGTERM removes the scratch folder; a SIGKILL leaves a folder whose
    name says that it is unfinished, which the next call with the same `path` removes.

    Args:
      path: the folder to make. It must not exist yet; its parents are made.
      flag: the command-line flag that `path` came from, for messages.

    Raises:
      InputError: `path` exists already, cannot be written, or is being written by another call; or
        the disk gets full.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise InputError(
            f"{flag}={path} exists already; name a new folder, or remove that one first."
        )
    scratch = path.with_name(f".{path.name}.unfinished")
    made: list[Path] = []
    lock = None
    try:
        made = _make_parents(path.absolute().parent)
        lock = _lock(scratch)
        for left_over in scratch.iterdir():
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
    except BlockingIOError as error:
        raise InputError(
            f"{flag}={path} is being written by another call; wait for it, or name another folder."
        ) from error
    except OSError as error:
        if lock is not None:
            os.close(lock)
        _remove_empty(made)
        raise InputError(
            f"{flag}={path} cannot be written ({error.strerror}); "
            "name a folder in a place where you may write."
        ) from error
    try:
        with _sigterm_raises():
            yield scratch
        os.rename(scratch, path)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        _remove_empty(made)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise InputError(
                f"{flag}={path}: the disk is full; free some space, or name another place."
            ) from error
        raise
    finally:
        os.close(lock)


def _lock(scratch: Path) -> int:
    """Makes the folder if needed and locks it; the lock goes when the descriptor is closed."""
    scratch.mkdir(exist_ok=True)
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _make_parents(folder: Path) -> list[Path]:
    """Makes `folder` and its parents; returns those that were not there, deepest first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for parent in reversed(missing):
            parent.mkdir()
            made.insert(0, parent)
    except OSError:
        _remove_empty(made)
        raise
    return made


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turns SIGTERM into SystemExit, so that scratch folders are removed on `kill` too."""

    def leave(signum, frame):
        raise SystemExit(128 + signum)

    try:
        previous = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: signals are the caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
