"""Objects of buckets, by fsspec: gs:// with gcsfs, s3:// with s3fs (the extra `cloud`).

An address is `gs://bucket/name` or `s3://bucket/name`. What fails for a reason that passes (a
server error, throttling, a dropped connection) is tried again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

from etils import epath

from drenet_jax.errors import InputError, StorageError, one_line

_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}

# gcsfs and s3fs repeat failed requests for half a minute; what they do not repeat, as answers that
# are cut off, is repeated here. The pause after each attempt is a random share of this, so that
# many workers do not come back at once.
_ATTEMPTS = 3
_LONGEST_PAUSE_S = 4.0

# Objects that are copied at once: buckets answer after some 50 ms each.
_COPIES_AT_ONCE = 16

# On a disk, or an address in a bucket.
AnyPath: TypeAlias = Path | epath.Path

_Result = TypeVar("_Result")

# Classes of google.auth and botocore, which need not be installed.
_NO_CREDENTIALS = {
    "DefaultCredentialsError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "RefreshError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}
_DENIED = (401, 403)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of an object or of a folder in a bucket."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in _PACKAGES))


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """A path that keeps an address as it is, where `Path` would take `//` for `/`.

    Of a remote one only the parts of the name may be used, as `name`, `parent` and `/`.
    """
    return epath.Path(path) if is_remote(path) else Path(path)


def child(address: str, name: str) -> str:
    """The address of `name` in a folder."""
    return f"{address.rstrip('/')}/{name}"


def read(address: str) -> bytes:
    """The content of an object.

    Raises:
      FileNotFoundError: there is none.
      StorageError: the bucket cannot be read.
    """
    return _call(address, lambda files, path: files.cat_file(path))


def open_text(path: str | os.PathLike[str], *, encoding: str) -> IO[str]:
    """Opens a file, or a copy of an object, for reading; ends of lines stay as they are.

    Raises:
      OSError: there is none, or it cannot be read.
      StorageError: the bucket cannot be read.
    """
    if is_remote(path):
        return io.TextIOWrapper(io.BytesIO(read(os.fspath(path))), encoding=encoding, newline="")
    return open(path, encoding=encoding, newline="")


def read_range(address: str, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of an object."""
    return _call(address, lambda files, path: files.cat_file(path, start=start, end=stop))


def write(address: str, content: bytes) -> None:
    """Writes an object, in place of what is there."""
    _call(address, lambda files, path: files.pipe_file(path, content))


def create(address: str, content: bytes) -> bool:
    """Writes an object unless there is one; returns whether it did.

    The store decides (`if-generation-match`, `If-None-Match`): of two callers at once one wins.
    """
    try:
        _call(address, lambda files, path: files.pipe_file(path, content, mode="create"))
    except FileExistsError:
        # An answer that got lost looks as if somebody else had been faster.
        return read(address) == content
    return True


def exists(address: str) -> bool:
    """Whether there is such an object, or a folder that holds some."""
    return bool(_call(address, lambda files, path: files.exists(path)))


def path_exists(path: str | os.PathLike[str]) -> bool:
    """Whether a path is there, on a disk or in a bucket."""
    return exists(os.fspath(path)) if is_remote(path) else os.path.exists(path)


def is_object(address: str) -> bool:
    """Whether there is an object of exactly this name."""
    return bool(_call(address, lambda files, path: files.isfile(path)))


def size(address: str) -> int:
    """Bytes of an object."""
    return int(_call(address, lambda files, path: files.size(path)))


def sizes(folder: str, prefix: str = "") -> dict[str, int]:
    """Name -> bytes of all objects under a folder.

    Args:
      folder: its address.
      prefix: which names, relative to the folder, begin with.
    """

    def find(files: Any, path: str) -> dict[str, int]:
        found = files.find(path, prefix=prefix, detail=True)
        return {
            name[len(path.rstrip("/")) + 1 :]: int(info["size"])
            for name, info in found.items()
            if len(name) > len(path.rstrip("/"))
        }

    return _call(folder, find)


def modified_s(address: str) -> float:
    """When an object was written, in seconds of the store's clock."""
    return float(_call(address, lambda files, path: files.modified(path)).timestamp())


def download(address: str, path: Path) -> None:
    """Copies an object to a file, which appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        _call(address, lambda files, name: files.get_file(name, os.fspath(unfinished)))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def upload(path: Path, address: str) -> None:
    """Copies a file to an object, in place of what is there."""
    _call(address, lambda files, name: files.put_file(os.fspath(path), name))


def remove(address: str) -> None:
    """Removes an object, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        _call(address, lambda files, path: files.rm_file(path))


def each(action: Callable[..., _Result], *arguments: Any) -> list[_Result]:
    """Calls `action` of each item of the lists `arguments`, several at once.

    Raises:
      The first error; what has not begun then is not begun.
    """
    with ThreadPoolExecutor(_COPIES_AT_ONCE) as pool:
        futures = [pool.submit(action, *items) for items in zip(*arguments, strict=True)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@functools.cache
def _files(scheme: str) -> Any:
    try:
        import fsspec

        # They log the errors that they raise, with tracebacks.
        for name in ("gcsfs", "s3fs", "google.auth"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # What another process has written must be seen at once.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise InputError(
            f"{scheme}:// needs the package {_PACKAGES[scheme]}; install it with "
            "pip install 'drenet_jax[cloud]'."
        ) from error


def _call(address: str, action: Callable[[Any, str], Any]) -> Any:
    """Calls `action(file system, path)`, again where the error passes.

    Raises:
      FileNotFoundError, FileExistsError: as the store says.
      StorageError: it cannot be used.
    """
    scheme, _, path = address.partition("://")
    with _translated(address):
        files = _files(scheme)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return action(files, path)
            except FileNotFoundError as error:
                raise FileNotFoundError(errno.ENOENT, "No such object", address) from error
            except FileExistsError:
                raise
            except Exception as error:
                if attempt == _ATTEMPTS or _is_refusal(error):
                    raise
                time.sleep(random.uniform(0, _LONGEST_PAUSE_S))
    raise AssertionError("unreachable")


def _is_refusal(error: BaseException) -> bool:
    """Whether the store will not let this caller in, however often it comes."""
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ in _NO_CREDENTIALS
        or getattr(error, "code", None) in _DENIED
        # Of gcsfs.
        or (type(error) is OSError and str(error).startswith("Forbidden"))
    )


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
    try:
        yield
    except (InputError, FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        if type(error).__name__ in _NO_CREDENTIALS:
            why = "there are no credentials"
            fix = (
                "log in with gcloud auth application-default login, or set "
                "GOOGLE_APPLICATION_CREDENTIALS"
                if address.startswith("gs:")
                else "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        elif _is_refusal(error):
            why, fix = "access is denied", "ask for the rights to read and write there"
        else:
            why, fix = one_line(error), "check the network and call again"
        raise StorageError(f"{address} cannot be used ({why}); {fix}.") from error
