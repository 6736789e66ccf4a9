"""The server's log: nothing of what visitors send, neither names nor tags."""

from __future__ import annotations

import re
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TextIO

# Where code lies. Other paths in a message may be a visitor's.
_CODE = (str(Path(__file__).resolve().parents[1]), sys.prefix, sys.base_prefix)


class Log:
    """One line for each person; written to stderr unless another stream is given."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def request(
        self, id: str, outcome: str, seconds: float, n_files: int = 0, n_bytes: int = 0
    ) -> None:
        """How a request ended.

        Args:
          id: of the job; only its beginning is logged, since the full id gives access to the
            result.
          outcome: one word.
          seconds: since it came.
          n_files: that were sent.
          n_bytes: that were sent.
        """
        self._write(f"{id[:8]} {outcome} {seconds:.2f} s, {n_files} files, {n_bytes} bytes")

    def mistake(self, places: str) -> None:
        """Where in the code an error of our own was raised."""
        self._write(f"error at {places}")

    def _write(self, text: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with self._lock:
            print(now, text, file=self._stream, flush=True)


def where(error: BaseException) -> str:
    """An error's kind and its lines of code: no word of its message, which may quote a file."""
    lines = [
        f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    # The reader's process sends its traceback as text.
    lines += [
        f"{file}:{line}"
        for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error))
        if file.startswith(_CODE)
    ]
    return f"{type(error).__name__}, {' < '.join(reversed(lines[-6:]))}"
