"""What lies under a path: the files of a folder, the members of a zip, or one file."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import os
import re
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from drenet_jax.errors import InputError

KINDS = "DICOM, PNG, JPEG, NIfTI, MetaImage or NRRD"

# How much of each file is read to see what it is; most DICOM headers are shorter.
HEAD_BYTES = 1 << 15

# One person's CT has a few thousand files; a larger folder is a whole archive, named by mistake.
MOST_FILES = 20_000
# A thousand frames of 512 x 512 take half a GiB.
MOST_FILE_BYTES = 2 << 30
# Of a zip: four times what so many files with long names need. A larger one would fill the memory.
_MOST_DIRECTORY_BYTES = 32 << 20


@dataclasses.dataclass(frozen=True)
class Excluded:
    """A file that was left out, and why.

    Attributes:
      name: the file's name, relative to the person's folder.
      why: the reason, a few words; what concerns this file alone comes after a colon or in
        parentheses.
    """

    name: str
    why: str


class CtError(InputError):
    """A path that cannot be used as a person's CT.

    Attributes:
      why: the reason without the path, which may hold a patient's name.
      excluded: what is known of single files.
    """

    def __init__(self, message: str, why: str, excluded: Sequence[Excluded] = ()):
        # All go to `args`, so that the error survives the way from a child process.
        super().__init__(message, why, tuple(excluded))

    def __str__(self) -> str:
        return self.args[0]

    @property
    def why(self) -> str:
        return self.args[1]

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        return self.args[2]


class UnreadableSlice(CtError):
    """A file that is no CT slice or cannot be decoded; `why` is the reason without the path."""

    @classmethod
    def of(cls, file: Path, why: str, fix: str) -> UnreadableSlice:
        return cls(f"{file} is {why}; {fix}.", why)


# Called before a file is opened, with its path and what is sought in it ("header" or "pixels");
# returns '' to go on, or why to leave the file out.
Guard = Callable[[str, str], str]


def no_guard(place: str, what: str) -> str:
    return ""


# A sign and digits, or whatever lies before the next of them.
_SIGN = "(?:\u2212|(?<![^_=(\\[\\s])-)(?=\\d)"
_PARTS = re.compile(rf"({_SIGN})?(?:(\d+)|((?:(?!{_SIGN})\D)+))")
# Of negative numbers of equal length the one with the larger digits comes first.
_MIRRORED_DIGITS = str.maketrans("0123456789", "9876543210")


class TooLargeError(ValueError):
    """A file of more than `MOST_FILE_BYTES`."""


def natural(name: str) -> list[tuple[bool, bool, int, str, str]]:
    """A sort key under which 2 comes before 10, and −10 before −5 before 5.

    Decimal digits of all scripts are numbers. A minus (U+2212), or a hyphen that stands at the
    start or after one of "_", "=", "(", "[" and a blank, makes the number after it negative; other
    hyphens join words, as in "IM-10".
    """
    parts = []
    for sign, digits, text in _PARTS.findall(name):
        if not digits:
            parts.append((True, False, 0, "", sign + text))
            continue
        number = "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0")
        # By length, then by digits: Python refuses to read integers of thousands of digits.
        if sign and number:
            mirrored = number.translate(_MIRRORED_DIGITS)
            parts.append((False, False, -len(number), mirrored, sign + digits))
        else:
            parts.append((False, True, len(number), number, sign + digits))
    return parts


def printable(name: str) -> str:
    """A file's name with bytes that are not UTF-8, which no text file could hold, as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class _Entry(NamedTuple):
    """A file: its place, for messages, and its member's record if it lies in a zip."""

    place: Path
    member: zipfile.ZipInfo | None = None


class Source:
    """The files of a folder, the members of a zip, or one file, by name and in natural order.

    Members of a zip are read where they are; only `on_disk` unpacks one.

    Attributes:
      names: of the files, relative to the folder or the zip.
      excluded: what cannot be read.
    """

    def __init__(
        self,
        entries: dict[str, _Entry],
        excluded: Sequence[Excluded] = (),
        archive: zipfile.ZipFile | None = None,
    ):
        self.names = tuple(entries)
        self.excluded = tuple(excluded)
        self._entries = entries
        self._archive = archive

    def numbered(self) -> Source:
        """The same files as "file 0001", "file 0002" and so on: names may identify the patient."""
        entries = self._entries.values()
        return Source(
            {f"file {i:04d}": entry for i, entry in enumerate(entries, 1)}, archive=self._archive
        )

    def place(self, name: str) -> Path:
        """Where the file is, for messages; a member of a zip is named below the zip."""
        return self._entries[name].place

    def head(self, name: str) -> bytes:
        """The first `HEAD_BYTES` bytes. Raises OSError or, for a damaged archive, ValueError."""
        with self._open(name) as stream:
            return stream.read(HEAD_BYTES)

    def size(self, name: str) -> int:
        """Bytes of the file, or of the member as the zip's directory says. Raises OSError."""
        place, member = self._entries[name]
        return member.file_size if member else place.stat().st_size

    def read(self, name: str) -> bytes:
        """All bytes.

        Raises:
          OSError: the file cannot be read.
          ValueError: the archive is damaged.
          TooLargeError: there are more than `MOST_FILE_BYTES`.
        """
        with self._open(name) as stream:
            # A zip's directory may lie about sizes, so the bytes are counted, too.
            if self.size(name) <= MOST_FILE_BYTES:
                data = stream.read(MOST_FILE_BYTES + 1)
                if len(data) <= MOST_FILE_BYTES:
                    return data
        raise TooLargeError(f"a file larger than {MOST_FILE_BYTES >> 30} GiB")

    @contextlib.contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """The file's path on disk, for libraries that read no streams."""
        place, member = self._entries[name]
        if member is None:
            yield place
            return
        # Readers of volumes look at the suffix; the rest of the name may lead anywhere.
        suffix = "".join(place.suffixes[-2:])
        with tempfile.TemporaryDirectory(prefix="drenet_jax_") as folder:
            unpacked = Path(folder, "member" + suffix)
            unpacked.write_bytes(self.read(name))
            yield unpacked

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        place, member = self._entries[name]
        if member is None:
            with place.open("rb") as stream:
                yield stream
            return
        assert self._archive is not None
        try:
            with self._archive.open(member) as stream:
                yield stream
        except _DAMAGED_MEMBER as error:
            raise ValueError("a damaged member of the zip") from error


def open_source(path: Path) -> Source:
    """The files of a folder, the members of a zip, or the one file that `path` is.

    Raises:
      CtError: `path` does not exist, is a damaged or locked zip, or holds too many files.
    """
    # os.path's, for which a path that may not be read does not exist.
    if not os.path.exists(path):
        raise CtError(
            f"{path} does not exist or may not be read; check the path.", "a path that is not there"
        )
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CtError(
            f"{path} is neither a file nor a folder; name a CT series.", "neither a file nor folder"
        )
    return _open_zip(path) if is_zip(path) else Source({printable(path.name): _Entry(path)})


def is_zip(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return stream.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    return False


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
            regular[name] = _Entry(by_name[name])
        else:  # reading from a pipe would wait forever
            excluded.append(Excluded(name, "a pipe, socket or device"))
    return Source(regular, excluded)


def _open_zip(path: Path) -> Source:
    members = zip_members(path)
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise _damaged(path) from error
    if len(members) > MOST_FILES:
        raise _too_many(path)
    if any(member.flag_bits & 1 for member in members):
        raise CtError(
            f"{path} is locked with a password; unlock it first.", "a zip with a password"
        )
    # macOS adds a shadow of each file.
    by_name = {
        printable(member.filename): member
        for member in members
        if not member.filename.startswith("__MACOSX/")
    }
    return Source(
        {name: _Entry(path / name, by_name[name]) for name in sorted(by_name, key=natural)},
        archive=archive,
    )


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


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The files in a zip, as its directory lists them; folders are left out.

    `file_size` bounds what reading a member may give, whatever the member itself holds.

    Raises:
      CtError: it is damaged, or its directory is larger than any series needs.
    """
    try:
        with path.open("rb") as stream, zipfile.ZipFile(_InSmallPieces(stream)) as archive:
            return [member for member in archive.infolist() if not member.is_dir()]
    except _DAMAGE as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> CtError:
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


def _too_many(path: Path) -> CtError:
    why = f"more than {MOST_FILES} files"
    return CtError(f"{path} holds {why}; name the folder of one person.", why)
