"""Multipart uploads, written to disk as they arrive, under safe file names.

python-multipart is used directly: Starlette's form parser keeps every file of a form open (a CT has
thousands), accepts a form that was cut off, and ignores `filename*`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import time
import unicodedata
from collections.abc import Sequence
from email.message import Message
from email.utils import collapse_rfc2231_value
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from drenet_jax.ct.opening import is_zip, zip_members
from drenet_jax.ct.sources import CtError
from drenet_jax.serving.limits import Limits
from drenet_jax.serving.responses import HttpError

FIELD = "files"

_SEND_LESS = "send one series of one patient."

# Below the 255 bytes a name and 4,096 a path that file systems allow.
_MAX_NAME_BYTES = 150
_MAX_DEPTH = 12

# Its warnings quote requests.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True)
class Upload:
    """A received upload.

    Attributes:
      path: the uploaded file, or the folder of several.
      n_files: the number of files.
      n_bytes: of the request's body.
    """

    path: Path
    n_files: int
    n_bytes: int


async def receive(request: Request, folder: Path, limits: Limits) -> Upload:
    """Receives a multipart upload.

    Args:
      request: its body must not have been read.
      folder: to be made for the files; the caller removes it, also after an error.
      limits: of size and time.

    Raises:
      HttpError: it is too large or too slow, or no upload.
      ClientDisconnect: the client has closed the connection.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if content_type != b"multipart/form-data" or not boundary:
        raise HttpError(
            415, f"the body is no multipart form; send the files in the form field {FIELD!r}."
        )
    form = None
    try:
        (folder / "incoming").mkdir(parents=True)
        _check_size(int(request.headers.get("content-length", 0)), limits)
        form = _FormWriter(boundary, folder / "incoming", limits)
        n_bytes = await _feed(request, form, limits)
        path = await asyncio.to_thread(_name_files, form.files, folder / "sent", limits)
    except FormParserError as error:
        raise HttpError(400, "the body is a damaged multipart form; send it again.") from error
    except OSError as error:
        raise HttpError(
            503, "the server cannot store the upload; try again later.", {"Retry-After": "60"}
        ) from error
    finally:
        if form is not None:
            form.close_file()
    return Upload(path, len(form.files), n_bytes)


async def _feed(request: Request, form: _FormWriter, limits: Limits) -> int:
    """Writes the body as it arrives; returns its size in bytes."""
    start_s = time.monotonic()
    bytes_per_s = 1024 * limits.least_kib_a_second
    n_bytes, more_body = 0, True
    while more_body:
        allowed_s = min(limits.upload_seconds, limits.patience_seconds + n_bytes / bytes_per_s)
        # Not 0, so that what has already arrived is read.
        timeout_s = max(start_s + allowed_s - time.monotonic(), 0.001)
        try:
            message = await asyncio.wait_for(request.receive(), timeout_s)
        except TimeoutError:
            raise HttpError(
                408, "the upload is too slow; try again over a faster connection."
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body, more_body = message.get("body", b""), message.get("more_body", False)
        n_bytes += len(body)
        _check_size(n_bytes, limits)
        if body:
            # In a thread: a slow disk must not block other requests.
            await asyncio.to_thread(form.write, body)
    if not form.is_complete:
        raise HttpError(400, "the upload was cut off; send it again.")
    if not form.files:
        raise HttpError(400, f"there is no file in the form field {FIELD!r}; send at least one.")
    return n_bytes


def _check_size(n_bytes: int, limits: Limits) -> None:
    if n_bytes > limits.upload_mib << 20:
        raise HttpError(413, f"the upload is larger than {limits.upload_mib} MiB; {_SEND_LESS}")


class _FormWriter:
    """Writes the files of a multipart form into a folder, with numbers as names.

    Attributes:
      files: the path and the safe name, as parts of a path, of each file.
      is_complete: the end of the form has arrived.
    """

    def __init__(self, boundary: bytes, folder: Path, limits: Limits):
        self.files: list[tuple[Path, tuple[str, ...]]] = []
        self.is_complete = False
        self._folder = folder
        self._limits = limits
        self._file: BinaryIO | None = None
        self._field, self._value, self._disposition = bytearray(), bytearray(), ""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self.close_file,
                "on_end": self._on_end,
            },
        )

    def write(self, body: bytes) -> None:
        self._parser.write(body)

    def close_file(self) -> None:
        if self._file is not None:
            self._file.close()

    def _on_part_begin(self) -> None:
        self._disposition = ""
        if len(self.files) == self._limits.files:
            raise HttpError(
                413, f"the upload has more than {self._limits.files} files; {_SEND_LESS}"
            )

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value.decode("latin-1")
        self._field.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = _file_name(self._disposition)
        if options.get(b"name") != FIELD.encode() or name is None:
            raise HttpError(
                400, f"the form has more than files in the field {FIELD!r}; send only those."
            )
        path = self._folder / str(len(self.files))
        self._file = path.open("xb")
        self.files.append((path, safe_name(name)))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None  # opened by _on_headers_finished
        self._file.write(data[start:end])

    def _on_end(self) -> None:
        self.is_complete = True


def _file_name(disposition: str) -> str | None:
    """The file name in a Content-Disposition header (decoded as Latin-1); None if there is none.

    Browsers send `filename` in UTF-8. Some clients (urllib3 before 2.0, if it is not ASCII) send
    only `filename*` (RFC 5987), which takes precedence (RFC 6266).
    """
    header = Message()
    header["Content-Disposition"] = disposition
    for key, value in header.get_params(failobj=[], header="Content-Disposition"):
        if key.lower() == "filename" and isinstance(value, tuple):  # (charset, language, text)
            return collapse_rfc2231_value(value)
    plain = parse_options_header(disposition)[1].get(b"filename")
    # `get_filename` joins a name in several pieces (RFC 2231).
    return header.get_filename() if plain is None else plain.decode("utf-8", "replace")


def _name_files(
    files: Sequence[tuple[Path, tuple[str, ...]]], folder: Path, limits: Limits
) -> Path:
    """Moves the files to their names in `folder`; returns the only file, or `folder`."""
    targets = [folder.joinpath(*parts) for parts in unique_paths([parts for _, parts in files])]
    for (path, _), target in zip(files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    if len(targets) > 1:
        return folder
    if is_zip(targets[0]):
        _check_zip(targets[0], limits)
    return targets[0]


def _check_zip(path: Path, limits: Limits) -> None:
    try:
        members = zip_members(path)
    except CtError:
        return  # reported later, like any damaged file
    if len(members) > limits.files:
        raise HttpError(413, f"the zip has more than {limits.files} files; {_SEND_LESS}")
    if sum(member.file_size for member in members) > limits.unpacked_mib << 20:
        raise HttpError(
            413, f"the zip unpacks to more than {limits.unpacked_mib} MiB; {_SEND_LESS}"
        )


def safe_name(name: str) -> tuple[str, ...]:
    """The parts of a safe relative path from a client's file name; at least one.

    Args:
      name: as sent, with / or \\ between folders.
    """
    parts = [_safe_part(part) for part in re.split(r"[/\\]", name)]
    parts = [part for part in parts if part not in ("", ".", "..")]
    return tuple(parts[-_MAX_DEPTH:]) or ("file",)


def _safe_part(part: str) -> str:
    # Control (Cc), format such as text direction (Cf) and surrogate (Cs) characters, separators.
    part = "".join(
        "_" if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") else sign
        for sign in part
    ).strip()
    if len(part.encode()) <= _MAX_NAME_BYTES:
        return part
    # The end stays: the suffix tells the file format.
    stem, suffix = part[:-16].encode(), part[-16:]
    n_bytes = max(_MAX_NAME_BYTES - len(suffix.encode()) - 1, 0)
    return stem[:n_bytes].decode("utf-8", "ignore") + "_" + suffix


def unique_paths(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The paths relative to their common top folder, with numbers added to make them unique.

    As `predict` names files relative to the folder it is given.
    """
    if all(len(path) > 1 and path[0] == paths[0][0] for path in paths):
        paths = [path[1:] for path in paths]
    taken = {path[:depth] for path in paths for depth in range(1, len(path))}
    numbers: dict[tuple[str, ...], int] = {}
    unique = []
    for path in paths:
        stem, dot, suffix = path[-1].rpartition(".")
        candidate = path
        while candidate in taken:
            numbers[path] = numbers.get(path, 1) + 1
            number = f"~{numbers[path]}"
            name = f"{stem}{number}{dot}{suffix}" if stem else path[-1] + number
            candidate = (*path[:-1], name)
        taken.add(candidate)
        unique.append(candidate)
    return unique
