"""The files that a path names, of a folder, a zip or a bucket, for reading alike."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from drenet_jax.errors import InputError
from drenet_jax.storage.objects import AnyPath

KINDS = "DICOM, PNG, JPEG, NIfTI, MetaImage or NRRD"

# How much of each file is read to see what it is; most DICOM headers are shorter.
HEAD_BYTES = 1 << 15

# A thousand frames of 512 x 512 take half a GiB.
MOST_FILE_BYTES = 2 << 30


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
    def of(cls, file: AnyPath, why: str, fix: str) -> UnreadableSlice:
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


@dataclasses.dataclass(frozen=True)
class Entry(abc.ABC):
    """A file, wherever it lies.

    Attributes:
      place: where, for messages.
    """

    place: AnyPath

    @abc.abstractmethod
    def size(self) -> int:
        """Its bytes."""

    @abc.abstractmethod
    def head(self) -> bytes:
        """Its first `HEAD_BYTES` bytes."""

    @abc.abstractmethod
    def read(self) -> bytes:
        """At most `MOST_FILE_BYTES` + 1 bytes."""


@dataclasses.dataclass(frozen=True)
class File(Entry):
    """A file on a disk."""

    def size(self) -> int:
        return self.place.stat().st_size

    def head(self) -> bytes:
        with self.place.open("rb") as stream:
            return stream.read(HEAD_BYTES)

    def read(self) -> bytes:
        with self.place.open("rb") as stream:
            return stream.read(MOST_FILE_BYTES + 1)


class Source:
    """The files of a folder, the members of a zip, or one file, by name and in natural order.

    Members of a zip are read where they are; only `on_disk` unpacks one.

    Attributes:
      names: of the files, relative to the folder or the zip.
      excluded: what cannot be read.
      is_file: neither a folder nor a zip.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        excluded: Sequence[Excluded] = (),
        *,
        is_file: bool = False,
    ):
        self.names = tuple(entries)
        self.excluded = tuple(excluded)
        self.is_file = is_file
        self._entries = entries

    def numbered(self) -> Source:
        """The same files as "file 0001", "file 0002" and so on: names may identify the patient."""
        entries = self._entries.values()
        return Source(
            {f"file {i:04d}": entry for i, entry in enumerate(entries, 1)}, is_file=self.is_file
        )

    def place(self, name: str) -> AnyPath:
        """Where the file is, for messages; a member of a zip is named below the zip."""
        return self._entries[name].place

    def head(self, name: str) -> bytes:
        """The first `HEAD_BYTES` bytes. Raises OSError or, for a damaged archive, ValueError."""
        return self._entries[name].head()

    def size(self, name: str) -> int:
        """Bytes of the file, or of the member as the zip's directory says. Raises OSError."""
        return self._entries[name].size()

    def read(self, name: str) -> bytes:
        """All bytes.

        Raises:
          OSError: the file cannot be read.
          ValueError: the archive is damaged.
          StorageError: the bucket cannot be read.
          TooLargeError: there are more than `MOST_FILE_BYTES`.
        """
        entry = self._entries[name]
        # A zip's directory may lie about sizes, so the bytes are counted, too.
        if entry.size() <= MOST_FILE_BYTES:
            data = entry.read()
            if len(data) <= MOST_FILE_BYTES:
                return data
        raise TooLargeError(f"a file larger than {MOST_FILE_BYTES >> 30} GiB")

    @contextlib.contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """The file's path on disk, for libraries that read no streams."""
        entry = self._entries[name]
        if isinstance(entry, File):
            yield Path(entry.place)
            return
        # Readers of volumes look at the suffix; the rest of the name may lead anywhere.
        suffix = "".join(entry.place.suffixes[-2:])
        with tempfile.TemporaryDirectory(prefix="drenet_jax_") as folder:
            unpacked = Path(folder, "member" + suffix)
            unpacked.write_bytes(self.read(name))
            yield unpacked
