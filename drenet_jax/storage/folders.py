"""Folders in buckets that are complete or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from drenet_jax.errors import InputError, StorageError
from drenet_jax.storage import lease, objects

# Written last: the names and sizes of all objects of a complete folder, and an identifier that no
# other folder has, even at the same address.
COMPLETE = ".complete.json"


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a complete folder holds.

    Attributes:
      id: of what was written there at once.
      files: name -> bytes.
    """

    id: str
    files: dict[str, int]


def upload_folder(local: Path, address: str, held: lease.Lease) -> None:
    """Copies all files of a folder, and then commits them.

    Raises:
      LeaseLost: another process has taken over, and nothing is committed.
      StorageError: the bucket cannot be written, or holds something else than what was copied.
    """
    files = {
        path.relative_to(local).as_posix(): path.stat().st_size
        for path in sorted(local.rglob("*"))
        if path.is_file()
    }
    objects.each(
        objects.upload,
        [local / name for name in files],
        [objects.child(address, name) for name in files],
    )
    there = objects.sizes(address)
    for name, size in files.items():
        if there.get(name) != size:
            raise StorageError(
                f"{objects.child(address, name)} has {there.get(name, 'no')} bytes instead of the "
                f"{size} that were copied there; call again."
            )
    held.check()
    contents = Contents(uuid.uuid4().hex, files)
    objects.write(
        objects.child(address, COMPLETE), json.dumps(dataclasses.asdict(contents)).encode()
    )


def download_folder(address: str, local: Path, *, flag: str) -> None:
    """Copies a complete folder.

    Raises:
      InputError: it is not there, is not complete, or an object of it is gone.
    """
    download_files(address, read_contents(address, flag=flag).files, local, flag=flag)


def download_files(address: str, files: Mapping[str, int], local: Path, *, flag: str) -> None:
    """Copies some files of a folder.

    Args:
      address: of the folder.
      files: name -> bytes.
      local: the folder to copy them to.
      flag: the command-line flag that `address` came from, for messages.

    Raises:
      InputError: one of them is gone, or has another size.
    """
    try:
        objects.each(
            download_file,
            [objects.child(address, name) for name in files],
            [local / name for name in files],
            files.values(),
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{flag}={address}: {error.filename} is gone; make the folder anew."
        ) from error


def download_file(address: str, local: Path, n_bytes: int) -> None:
    """Copies an object of so many bytes.

    Raises:
      InputError: it has another size.
      FileNotFoundError: it is gone.
    """
    objects.download(address, local)
    if local.stat().st_size != n_bytes:
        size = local.stat().st_size
        local.unlink()
        raise InputError(
            f"{address} is damaged: it has {size} bytes instead of {n_bytes}; restore it from a "
            "copy, or make its folder anew."
        )


def read_contents(address: str, *, flag: str) -> Contents:
    """What a complete folder holds.

    Raises:
      InputError: it is not there, is not complete, or its list is damaged.
    """
    try:
        return Contents(**json.loads(objects.read(objects.child(address, COMPLETE))))
    except FileNotFoundError as error:
        why = "was not written to its end" if objects.sizes(address) else "is not there"
        raise InputError(
            f"{flag}={address} {why} (it has no {COMPLETE}); make it anew, or check the address."
        ) from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{flag}={address}: {COMPLETE} is damaged; make it anew.") from error


def last_name(address: str) -> str:
    """The last part of an address."""
    return address.rstrip("/").rpartition("/")[2]


def remove_left_over(address: str) -> None:
    """Removes what a copy left that was cut off; the lease must be held."""
    names = [name for name in objects.sizes(address) if not lease.is_lease(name)]
    objects.each(objects.remove, [objects.child(address, name) for name in names])


@contextlib.contextmanager
def cache_folder(address: str) -> Iterator[Path]:
    """Yields a folder under $DRENET_JAX_CACHE for local copies of what an address names.

    It is what an earlier block has left there, and no other block's at the same time: processes
    that use one address at once have copies of their own.

    Raises:
      InputError: it cannot be made.
    """
    root = os.environ.get("DRENET_JAX_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "drenet_jax", "buckets"
    )
    name = f"{last_name(address)}-{hashlib.sha256(address.encode()).hexdigest()[:16]}"
    with contextlib.ExitStack() as stack:
        try:
            for copy in itertools.count():
                folder = Path(root, name, str(copy))
                folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(open(f"{folder}.lock", "w"))
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
        except OSError as error:
            raise InputError(
                f"{root}, where copies of {address} are kept, cannot be written "
                f"({error.strerror}); set DRENET_JAX_CACHE to another folder."
            ) from error
        yield folder


def require_free(address: str, flag: str) -> None:
    """Raises InputError unless nothing is at an address but what an ended call has left there."""
    if objects.is_object(address):
        raise InputError(
            f"{flag}={address} exists already; name a new one, or remove that one first."
        )
    names = list(objects.sizes(address))
    if COMPLETE in names:
        raise InputError(
            f"{flag}={address} exists already; name a new folder, or remove that one first."
        )
    if names and not any(map(lease.is_lease, names)):
        raise InputError(
            f"{flag}={address} holds objects that drenet_jax did not write; name a new folder."
        )
