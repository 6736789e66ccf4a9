"""Local stand-ins for addresses in buckets, for commands that work on local files.

A command reads and writes local paths. Where a flag names an address, what it names is copied to a
local folder first, or what the command has made is copied to the bucket at its end.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from drenet_jax.errors import InputError, StorageError
from drenet_jax.storage import folders, lease, mirror, objects

# Local path -> the address that it stands for.
_ADDRESSES: dict[str, str] = {}


def shown(text: object) -> str:
    """A text for the user, with addresses in place of the paths that stand for them."""
    result = str(text)
    for path, address in _ADDRESSES.items():
        result = result.replace(path, address)
    return result


def stand_for(local: Path, address: str) -> None:
    """Shows `address` for `local` from now on: an error may be shown when the copy is gone."""
    _ADDRESSES[str(local)] = address.rstrip("/")


@contextlib.contextmanager
def output(address: str, *, flag: str) -> Iterator[Path]:
    """Yields the path of a file or folder to make, which is copied if the block ends well.

    Raises:
      InputError: something is there already, or another call is writing it.
      StorageError: the bucket cannot be used.
    """
    folders.require_free(address, flag)
    with (
        tempfile.TemporaryDirectory(prefix="drenet-jax-") as scratch,
        lease.hold(address, use="written", flag=flag) as held,
    ):
        local = Path(scratch) / folders.last_name(address)
        stand_for(local, address)
        yield local
        if local.is_dir():
            folders.remove_left_over(address)
            try:
                folders.upload_folder(local, address, held)
            except BaseException:
                # If the store is away: the lease stays too, by which the next call knows them.
                with contextlib.suppress(StorageError):
                    folders.remove_left_over(address)
                raise
        elif local.is_file():
            held.check()
            if not objects.create(address, local.read_bytes()):
                raise InputError(f"{flag}={address} exists already; name a new file.")


@contextlib.contextmanager
def run(address: str, *, flag: str) -> Iterator[Path]:
    """Yields a copy of the folder of a run, for reading.

    Raises:
      InputError: there is none.
      StorageError: the bucket cannot be used.
    """
    if not objects.exists(address):
        raise InputError(f"{flag}={address} is not there; check the address.")
    if objects.is_object(objects.child(address, folders.COMPLETE)):
        # Converted weights, which were written at once.
        with copied(address, flag=flag) as local:
            yield local
        return
    with mirror.open_mirror(address, writes=False, use="read", flag=flag) as copy:
        stand_for(copy.local, address)
        yield copy.local


@contextlib.contextmanager
def growing(address: str, *, name: str) -> Iterator[Path]:
    """Yields a copy of a folder of files that never change; new ones are copied to it at the end.

    Nothing needs to be there. Several processes may use one address at once. A store that is away
    at the end costs the new files.

    Args:
      address: of the folder.
      name: of the setting that it came from, for messages.

    Raises:
      StorageError: the bucket cannot be read.
    """
    with folders.cache_folder(address) as local:
        there = objects.sizes(address)
        missing = {file: n_bytes for file, n_bytes in there.items() if not (local / file).is_file()}
        folders.download_files(address, missing, local, flag=name)
        try:
            yield local
        finally:
            new = [path for path in local.iterdir() if path.name not in there]
            with contextlib.suppress(StorageError):
                objects.each(
                    objects.upload, new, [objects.child(address, path.name) for path in new]
                )


@contextlib.contextmanager
def copied(address: str, *, flag: str) -> Iterator[Path]:
    """Yields a copy of a file, or of all files of a folder.

    Raises:
      InputError: there is nothing.
      StorageError: the bucket cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="drenet-jax-") as scratch:
        local = Path(scratch) / folders.last_name(address)
        files = {
            name: size for name, size in objects.sizes(address).items() if not lease.is_lease(name)
        }
        if folders.COMPLETE in files:
            files = folders.read_contents(address, flag=flag).files
        if files:
            folders.download_files(address, files, local, flag=flag)
        else:
            try:
                objects.download(address, local)
            except FileNotFoundError as error:
                raise InputError(f"{flag}={address} is not there; check the address.") from error
        stand_for(local, address)
        yield local
