"""Folders in buckets that are complete or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from drenet_jax.errors import InputError
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


def download_files(address: str, names: Iterable[str], local: Path, *, flag: str) -> None:
    """Copies some files of a complete folder.

    Raises:
      InputError: one of them is gone.
    """
    names = list(names)
    try:
        objects.each(
            objects.download,
            [objects.child(address, name) for name in names],
            [local / name for name in names],
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{flag}={address}: {error.filename} is gone; make the folder anew."
        ) from error


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


def cache_folder(address: str) -> Path:
    """Where the local copy of an address is kept: under $DRENET_JAX_CACHE."""
    root = os.environ.get("DRENET_JAX_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "drenet_jax", "buckets"
    )
    return Path(root) / f"{last_name(address)}-{hashlib.sha256(address.encode()).hexdigest()[:16]}"


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
