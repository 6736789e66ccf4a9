"""Output folders that appear only when they are complete."""

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

# File systems without locks, as on some clusters.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that a file could not grow.

    TensorFlow and tensorstore raise other errors, which quote the system's message.
    """
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or cause in seen:
            continue
        seen.append(cause)
        if isinstance(cause, OSError):
            if cause.errno in _FULL:
                return True
        elif any(os.strerror(code) in str(cause) for code in _FULL):
            return True
        waiting += [cause.__cause__, cause.__context__, *getattr(cause, "exceptions", ())]
    return False


@contextlib.contextmanager
def locked_folder(folder: Path, *, name: str, use: str, flag: str = "--workdir") -> Iterator[None]:
    """Locks a folder that one process at a time may work in; makes it if needed.

    The lock ends with the process, however that ends; its file is removed at the end of the block,
    and the folder too if it was made here and is empty.

    Args:
      folder: to lock.
      name: of the lock file.
      use: what the folder is being used for, for messages: "trained".
      flag: the command-line flag that `folder` came from, for messages.

    Raises:
      InputError: another process holds the lock, or the folder cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        path = folder / name
        try:
            stack.enter_context(made_folder(folder.absolute()))
            lock = _lock(path, os.O_RDWR | os.O_CREAT)  # NFS locks only files opened for writing
        except BlockingIOError as error:
            raise InputError(
                f"{flag}={folder} is being {use} in by another process; wait for it, or name "
                "another folder."
            ) from error
        except OSError as error:
            raise InputError(
                f"{flag}={folder} cannot be written ({error.strerror}); name another folder."
            ) from error
        try:
            yield
        finally:
            # While it is locked: see `_lock`.
            path.unlink(missing_ok=True)
            os.close(lock)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, flag: str = "--out") -> Iterator[Path]:
    """Yields a scratch folder beside `path` that becomes `path` if the block ends well.

    A failure, an interrupt or a SIGTERM removes the scratch folder; a SIGKILL leaves a folder
    `.NAME.unfinished`, which the next call with the same `path` removes.

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
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(made_folder(path.absolute().parent))
            scratch.mkdir(exist_ok=True)
            stack.callback(os.close, _lock(scratch, os.O_RDONLY))
            for left_over in scratch.iterdir():
                shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        except BlockingIOError as error:
            raise InputError(
                f"{flag}={path} is being written by another call; wait for it, or name another "
                "folder."
            ) from error
        except OSError as error:
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
            if not isinstance(error, InputError) and is_disk_full(error):
                raise InputError(
                    f"{flag}={path}: the disk is full; free some space, or name another place."
                ) from error
            raise


def _lock(path: Path, open_flags: int) -> int:
    """Opens and locks a file or folder; returns a descriptor that programs do not inherit."""
    while True:
        descriptor = os.open(path, open_flags, 0o666)
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
def made_folder(folder: Path) -> Iterator[None]:
    """Makes `folder` and its parents; afterwards removes those made here that are empty."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()


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
