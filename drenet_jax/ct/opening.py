"""Opens what a path names, on a disk or in a bucket: a folder, a zip or one file."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

from drenet_jax.ct.sources import (
    HEAD_BYTES,
    MOST_FILE_BYTES,
    CtError,
    Entry,
    Excluded,
    File,
    Source,
    natural,
    printable,
)
from drenet_jax.storage import objects
from drenet_jax.storage.objects import AnyPath

# One person's CT has a few thousand files; a larger folder is a whole archive, named by mistake.
MOST_FILES = 20_000
# Of a zip: four times what so many files with long names need. A larger one would fill the memory.
_MOST_DIRECTORY_BYTES = 32 << 20

# Heads of objects that are fetched together; they stay in memory until the next are.
_HEADS_AT_ONCE = 256


def open_source(path: AnyPath) -> Source:
    """The files of a folder, the members of a zip, or the one file that `path` is.

    Args:
      path: on a disk, or in a bucket (from `objects.as_path`).

    Raises:
      CtError: `path` does not exist, is a damaged or locked zip, or holds too many files.
      StorageError: the bucket cannot be read.
    """
    if objects.is_remote(path):
        return _open_remote(path)
    # os.path's, for which a path that may not be read does not exist.
    if not os.path.exists(path):
        raise _missing(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CtError(
            f"{path} is neither a file nor a folder; name a CT series.", "neither a file nor folder"
        )
    if is_zip(path):
        return _open_zip(path, path)
    return Source({printable(path.name): File(path)}, is_file=True)


def is_zip(path: AnyPath) -> bool:
    with contextlib.suppress(OSError):
        if objects.is_remote(path):
            return _begins_like_zip(objects.read_range(str(path), 0, 4))
        with path.open("rb") as stream:
            return _begins_like_zip(stream.read(4))
    return False


def _begins_like_zip(head: bytes) -> bool:
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def _open_folder(folder: Path) -> Source:
    files: list[Path] = []
    excluded: list[Excluded] = []
    seen: set[tuple[int, int]] = set()

    def exclude(error: OSError) -> None:
        name = printable(os.path.relpath(error.filename, folder))
        excluded.append(Excluded(name, f"a folder that cannot be opened ({error.strerror})"))

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=exclude):
        status = os.stat(parent)
        # A link to a folder above would be followed round and round.
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        files += [Path(parent, name) for name in names]
        if len(files) > MOST_FILES:
            raise _too_many(folder)
    by_name = {printable(file.relative_to(folder).as_posix()): file for file in files}
    regular = {}
    for name in sorted(by_name, key=natural):
        try:
            is_regular = stat.S_ISREG(os.stat(by_name[name]).st_mode)
        except OSError as error:
            excluded.append(Excluded(name, f"a file that cannot be opened ({error.strerror})"))
            continue
        if is_regular:
            regular[name] = File(by_name[name])
        else:  # reading from a pipe would wait forever
            excluded.append(Excluded(name, "a pipe, socket or device"))
    return Source(regular, excluded)


def _open_remote(address: AnyPath) -> Source:
    sizes = objects.sizes(str(address))
    # Consoles make an empty object for each folder.
    names = [name for name in sizes if name and not name.endswith("/")]
    if len(names) > MOST_FILES:
        raise _too_many(address)
    if not names:
        if not sizes and not objects.is_object(str(address)):
            raise _missing(address)
        if sizes:
            return Source({})
        if is_zip(address):
            # The file stays open, and is gone when it is closed.
            with tempfile.TemporaryDirectory(prefix="drenet_jax_") as folder:
                archive = Path(folder, "archive.zip")
                objects.download(str(address), archive)
                return _open_zip(archive, address)
        series = _Objects({str(address): objects.size(str(address))})
        return Source({printable(address.name): _Object(address, series)}, is_file=True)
    names.sort(key=natural)
    places = {name: address / name for name in names}
    series = _Objects({str(place): sizes[name] for name, place in places.items()})
    return Source({name: _Object(place, series) for name, place in places.items()})


def _open_zip(path: Path, place: AnyPath) -> Source:
    """Opens a zip at `path`, which the user knows as `place`."""
    members = zip_members(path, place)
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise _damaged(place) from error
    if len(members) > MOST_FILES:
        raise _too_many(place)
    if any(member.flag_bits & 1 for member in members):
        raise CtError(
            f"{place} is locked with a password; unlock it first.", "a zip with a password"
        )
    # macOS adds a shadow of each file.
    by_name = {
        printable(member.filename): member
        for member in members
        if not member.filename.startswith("__MACOSX/")
    }
    return Source(
        {
            name: _Member(place / name, archive, by_name[name])
            for name in sorted(by_name, key=natural)
        }
    )


@dataclasses.dataclass(frozen=True)
class _Member(Entry):
    """A member of a zip, read where it is."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def size(self) -> int:
        return self.info.file_size

    def head(self) -> bytes:
        return self._read(HEAD_BYTES)

    def read(self) -> bytes:
        return self._read(MOST_FILE_BYTES + 1)

    def _read(self, n_bytes: int) -> bytes:
        try:
            with self.archive.open(self.info) as stream:
                return stream.read(n_bytes)
        except _DAMAGED_MEMBER as error:
            raise ValueError("a damaged member of the zip") from error


@dataclasses.dataclass(frozen=True)
class _Object(Entry):
    """An object in a bucket, whose head is fetched along with others'."""

    series: _Objects

    def size(self) -> int:
        return self.series.sizes[str(self.place)]

    def head(self) -> bytes:
        return self.series.head(str(self.place))

    def read(self) -> bytes:
        return self.series.read(str(self.place), MOST_FILE_BYTES + 1)


class _Objects:
    """Those of a series; heads are fetched together, as each takes a bucket some 50 ms to find."""

    def __init__(self, sizes: dict[str, int]):
        """Fetches nothing yet.

        Args:
          sizes: address -> bytes, in the order in which heads will be read.
        """
        self.sizes = sizes
        self._addresses = list(sizes)
        self._fetched: dict[str, bytes] = {}

    def head(self, address: str) -> bytes:
        """The head of an object, from memory if it was fetched with the one before."""
        if address not in self._fetched:
            first = self._addresses.index(address)
            # One may be enough to see that there are images.
            n_heads = _HEADS_AT_ONCE if self._fetched else 1
            wanted = self._addresses[first : first + n_heads]
            heads = objects.each(lambda address: self.read(address, HEAD_BYTES), wanted)
            self._fetched = dict(zip(wanted, heads, strict=True))
        return self._fetched[address]

    def read(self, address: str, most: int) -> bytes:
        """The first `most` bytes, or all."""
        n_bytes = min(self.sizes[address], most)
        # Stores refuse an empty range. A range is one request; s3fs looks for the size otherwise.
        return objects.read_range(address, 0, n_bytes) if n_bytes else b""


# What zipfile raises of a damaged directory.
_DAMAGE = (
    zipfile.BadZipFile,
    OSError,
    ValueError,
    NotImplementedError,
    OverflowError,
    struct.error,
)
# And of a damaged member: of a name that cannot be decoded, too, and of a place beyond the file.
_DAMAGED_MEMBER = (*_DAMAGE, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


def zip_members(path: Path, place: AnyPath | None = None) -> list[zipfile.ZipInfo]:
    """The files in a zip, as its directory lists them; folders are left out.

    `file_size` bounds what reading a member may give, whatever the member itself holds.

    Args:
      path: the zip.
      place: what the user knows it as, for messages, if not as `path`.

    Raises:
      CtError: it is damaged, or its directory is larger than any series needs.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(_InSmallPieces(stream)) as archive:
            return [member for member in archive.infolist() if not member.is_dir()]
    except _DAMAGE as error:
        raise _damaged(place or path) from error


def _damaged(path: AnyPath) -> CtError:
    return CtError(f"{path} is a zip that cannot be opened; make it anew.", "a damaged zip")


class _InSmallPieces:
    """A file of which zipfile, which reads a zip's whole directory at once, cannot read much."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        # One byte more than is allowed shows that there is more.
        most = _MOST_DIRECTORY_BYTES + 1
        data = self._stream.read(min(size, most) if size >= 0 else most)
        if len(data) == most:
            raise zipfile.BadZipFile("too large a directory")
        return data


def _too_many(path: AnyPath) -> CtError:
    why = f"more than {MOST_FILES} files"
    return CtError(f"{path} holds {why}; name the folder of one person.", why)


def _missing(path: AnyPath) -> CtError:
    return CtError(
        f"{path} does not exist or may not be read; check the path.", "a path that is not there"
    )
