"""The errors that end a command in one sentence, which names the file and the fix."""

from __future__ import annotations


class InputError(ValueError):
    """The caller's mistake: a file, a flag or a setting that cannot be used.

    The message is one sentence that names the file (or flag) and how to fix it. Entry points print
    it without a traceback and exit with 2; everything else that is raised is our own mistake and
    keeps its traceback.
    """


class StorageError(Exception):
    """A bucket that cannot be used: no rights, or away for longer than calls are repeated.

    The message is one sentence, as that of an InputError, and entry points end alike. It is no
    ValueError, since what is damaged in a bucket must differ from what was not reached.
    """


def one_line(error: BaseException) -> str:
    """The first 200 characters of an error's text as part of a sentence."""
    text = " ".join(str(getattr(error, "message", None) or error).split()).rstrip(".")
    return text[:200] or type(error).__name__
