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

# No space, no quota, or a limit on the size of a file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Where a file system knows no locks, as some of clusters do not.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a file could not grow.

    TensorFlow and tensorstore have errors of their own for it, which quote the system's text.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        result = waiting.pop()
        if result is None or id(result) in seen:
            continue
        seen.add(id(result))
        if isinstance(result, OSError) and result.errno in _FULL:
            return True
        if not isinstance(result, OSError) and any(
            os.strerror(code) in str(result) for code in _FULL
        ):
            return True
        waiting += [result.__cause__, result.__context__, *getattr(result, "exceptions", ())]
    return False


@contextlib.contextmanager
def only_one(folder: Path, *, name: str, message: str) -> Iterator[None]:
    """Locks a folder that one process at a time may work in; makes it if needed.

    The lock ends with the process, however that ends; its file goes at the end of the block. A
    folder that was made here and has nothing else in it goes, too.

    Args:
      folder: to lock.
      name: of the file of the lock.
      message: of the InputError if another process holds the lock.

    Raises:
      InputError: another process holds it.
      OSError: the folder cannot be made or written.
    """
    made = _make_parents(folder.absolute())
    path = folder / name
    lock = None
    try:
        lock = _lock_file(path)
        yield
    except BlockingIOError as error:
        if lock is not None:
            raise
        raise InputError(message) from error
    finally:
        if lock is not None:
            # While it is locked: another process may have opened it, and looks whether it is still
            # the file of this name.
            path.unlink(missing_ok=True)
            os.close(lock)
        _remove_empty(made)


def _lock_file(path: Path) -> int:
    """Opens and locks a file, which is there when this returns; not inherited by programs."""
    while True:
        # For writing: NFS grants no exclusive lock otherwise.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            os.close(descriptor)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        # The process that held the lock has removed the file meanwhile.
        os.close(descriptor)


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
        if not isinstance(error, InputError) and is_disk_full(error):
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
