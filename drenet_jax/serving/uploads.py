"""Uploads: counted while they come, under safe names, in one folder that goes as a whole."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from email.message import Message
from email.utils import collapse_rfc2231_value
from pathlib import Path
from typing import BinaryIO

import python_multipart
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from drenet_jax.ct.sources import CtError, is_zip, zip_members
from drenet_jax.serving import names
from drenet_jax.serving.limits import Limits
from drenet_jax.serving.responses import HttpError

FIELD = "files"

# It warns of what it reads, and of every damaged form.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True)
class Upload:
    """What a visitor sent, on disk.

    Attributes:
      path: what `Predictor.explain` reads: the one file, or the folder of several.
      n_files: how many.
      n_bytes: of the whole request.
    """

    path: Path
    n_files: int
    n_bytes: int


async def receive(request: Request, folder: Path, limits: Limits) -> Upload:
    """Takes a multipart upload; its files lie below `folder` afterwards.

    Args:
      request: whose body was not yet read.
      folder: an empty one, which the caller removes whatever happens.
      limits: of its size and time.

    Raises:
      Refused: it is too large or too slow, or no upload.
      ClientDisconnect: the visitor has gone.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise HttpError(
            415, f"the body is no multipart form; send files in the field {FIELD!r} of one."
        )
    if int(request.headers.get("content-length", 0)) > limits.upload_bytes:
        raise _too_large(limits)
    incoming = folder / "incoming"
    incoming.mkdir()
    try:
        parts = _Parts(boundary, incoming, limits)
    except FormParserError as error:
        raise HttpError(400, "the boundary of the multipart form is too long.") from error
    try:
        n_bytes = await _feed(request, parts, limits)
        path = await asyncio.to_thread(_lay_out, parts.found, folder, limits)
    except OSError as error:
        raise HttpError(
            503, "the server cannot store the upload; try again later.", {"Retry-After": "60"}
        ) from error
    finally:
        parts.close()
    return Upload(path, len(parts.found), n_bytes)


async def _feed(request: Request, parts: _Parts, limits: Limits) -> int:
    """Hands the body to the parser as it comes; returns its bytes."""
    start = time.monotonic()
    n_bytes = 0
    while True:
        rate = 1024 * limits.least_kib_a_second
        end = min(limits.upload_seconds, limits.patience_seconds + n_bytes / rate)
        try:
            # Not zero: what is here already is taken.
            left_s = max(start + end - time.monotonic(), 0.001)
            message = await asyncio.wait_for(request.receive(), left_s)
        except TimeoutError:
            raise HttpError(
                408, "the upload comes too slowly; try again over a faster connection."
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body = message.get("body", b"")
        n_bytes += len(body)
        if n_bytes > limits.upload_bytes:
            raise _too_large(limits)
        if body:
            try:
                # In a thread: the disk may be slow, and the others' requests go on.
                await asyncio.to_thread(parts.write, body)
            except FormParserError as error:
                raise HttpError(
                    400, "the body is a damaged multipart form; send it anew."
                ) from error
        if not message.get("more_body", False):
            break
    if not parts.is_whole:
        raise HttpError(400, "the upload was cut off; send it anew.")
    if not parts.found:
        raise HttpError(400, f"there is no file in the field {FIELD!r}; send at least one.")
    return n_bytes


def _too_large(limits: Limits) -> HttpError:
    return HttpError(
        413, f"the upload is larger than {limits.upload_mib} MiB; send one series of one person."
    )


class _Parts:
    """Writes the files of a multipart form into a folder, under numbers.

    Attributes:
      found: each file's place and the parts of its safe name.
      is_whole: the form's end has come.
    """

    def __init__(self, boundary: bytes, folder: Path, limits: Limits):
        self.found: list[tuple[Path, tuple[str, ...]]] = []
        self.is_whole = False
        self._folder = folder
        self._limits = limits
        self._n_parts = 0
        self._file: BinaryIO | None = None
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._parser = python_multipart.MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self.close,
                "on_end": self._on_end,
            },
        )

    def write(self, body: bytes) -> None:
        self._parser.write(body)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._n_parts += 1
        if self._n_parts > self._limits.files:
            raise HttpError(
                413,
                f"the upload has more than {self._limits.files} files; send one series of one "
                "person.",
            )

    def _on_header_end(self) -> None:
        field, value = (bytes(part) for part in self._header)
        if field.lower() == b"content-disposition":
            self._disposition = value
        self._header = (bytearray(), bytearray())

    def _on_headers_finished(self) -> None:
        disposition = self._disposition.decode("latin-1")
        _, options = parse_options_header(disposition)
        name = _file_name(disposition)
        if options.get(b"name") != FIELD.encode() or name is None:
            raise HttpError(
                400, f"the form has more than files in the field {FIELD!r}; send only those."
            )
        place = self._folder / str(len(self.found))
        # Closed at the part's end, or in `receive`.
        self._file = place.open("xb")
        self.found.append((place, names.safe(name)))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._file.write(data[start:end])

    def _on_end(self) -> None:
        self.is_whole = True


def _file_name(disposition: str) -> str | None:
    """The name of a part's file, from the header Content-Disposition, each byte a sign of it.

    Browsers send `filename` in UTF-8; some programs (urllib3 before 2.0, where a name is not ASCII)
    send `filename*` (RFC 5987) alone, which python-multipart leaves out. Of both, as RFC 6266 has
    it, the second counts.
    """
    header = Message()
    header["Content-Disposition"] = disposition
    params = header.get_params(failobj=[], header="Content-Disposition")
    # An extended value comes as (charset, language, text).
    extended = [
        value for key, value in params if key.lower() == "filename" and isinstance(value, tuple)
    ]
    if extended:
        return collapse_rfc2231_value(extended[0])
    _, options = parse_options_header(disposition)
    plain = options.get(b"filename")
    # In pieces (RFC 2231), or not at all.
    return header.get_filename() if plain is None else plain.decode("utf-8", "replace")


def _lay_out(result: list[tuple[Path, tuple[str, ...]]], folder: Path, limits: Limits) -> Path:
    """Gives the files their names; returns the path of the one file, or of the folder of all."""
    sent = folder / "sent"
    places = [sent.joinpath(*parts) for parts in names.unique([parts for _, parts in result])]
    for (place, _), target in zip(result, places, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        place.rename(target)
    if len(places) > 1:
        return sent
    if is_zip(places[0]):
        _check_zip(places[0], limits)
    return places[0]


def _check_zip(path: Path, limits: Limits) -> None:
    try:
        members = zip_members(path)
    except CtError:
        return  # reported as any damaged file
    if len(members) > limits.files:
        raise HttpError(
            413, f"the zip has more than {limits.files} files; send one series of one person."
        )
    if sum(member.file_size for member in members) > limits.unpacked_bytes:
        raise HttpError(
            413,
            f"the zip unpacks to more than {limits.unpacked_mib} MiB; send one series of one "
            "person.",
        )
