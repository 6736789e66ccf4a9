"""The log of a service: it contains neither file names nor tags nor paths of a request."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from pathlib import Path

logger = logging.getLogger("drenet_jax.service")

# Paths below these are code; other paths in an error message may come from a request.
_CODE_FOLDERS = (str(Path(__file__).resolve().parent), sys.prefix, sys.base_prefix)


def log_to(handler: logging.Handler) -> None:
    """Sends the log to `handler` and nowhere else."""
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_error(error: BaseException) -> None:
    """Logs an internal error's type and lines of code, not its message, which may quote a file."""
    lines = [
        f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
    ]
    # The reader's process sends its traceback as text.
    lines += [
        f"{file}:{line}"
        for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error))
        if file.startswith(_CODE_FOLDERS)
    ]
    logger.error("error at %s, %s", type(error).__name__, " < ".join(reversed(lines[-6:])))
