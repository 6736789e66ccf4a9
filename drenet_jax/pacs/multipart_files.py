"""Writes the parts of a multipart HTTP answer to files while it arrives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from drenet_jax.pacs.peer_error import PeerError


def part_files(
    content_type: str, chunks: Iterable[bytes], folder: Path, *, most_bytes: int
) -> Iterator[Path]:
    """Yields the file of each part as soon as it is complete.

    One chunk, and no part, is held in memory.

    Args:
      content_type: the header of the answer, with the boundary.
      chunks: of its body.
      folder: for the files; an empty one.
      most_bytes: of a part.

    Raises:
      PeerError: the answer is not multipart, is cut off, or a part is too large.
    """
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/related" or not options.get(b"boundary"):
        raise PeerError("it answered with something else than a multipart message of files")
    parts = _Parts(folder, most_bytes)
    try:
        parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": parts.begin,
                "on_part_data": parts.write,
                "on_part_end": parts.end,
                "on_end": parts.end_message,
            },
        )
        for chunk in chunks:
            parser.write(chunk)
            yield from parts.take()
    except FormParserError as error:
        raise PeerError("it answered with a damaged multipart message") from error
    finally:
        parts.close()
    # Some servers give no Content-Length: only the last boundary shows that nothing is missing.
    if not parts.is_whole:
        raise PeerError("its answer was cut off")


class _Parts:
    """The files of the parts, as the parser's callbacks make them."""

    def __init__(self, folder: Path, most_bytes: int):
        self.is_whole = False
        self._folder = folder
        self._most_bytes = most_bytes
        self._n_parts = 0
        self._file: BinaryIO | None = None
        self._path = folder
        self._n_bytes = 0
        self._complete: list[Path] = []

    def begin(self) -> None:
        self._n_parts += 1
        self._n_bytes = 0
        self._path = self._folder / f"{self._n_parts:06d}.dcm"
        self._file = self._path.open("wb")

    def write(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None
        self._n_bytes += end - start
        if self._n_bytes > self._most_bytes:
            raise PeerError(f"an instance is larger than {self._most_bytes >> 20} MiB")
        self._file.write(data[start:end])

    def end(self) -> None:
        self.close()
        self._complete.append(self._path)

    def end_message(self) -> None:
        self.is_whole = True

    def take(self) -> list[Path]:
        """The files that were completed since the last call."""
        complete, self._complete = self._complete, []
        return complete

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
