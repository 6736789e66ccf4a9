"""Names of files as visitors gave them, made safe to be names on this disk."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# File systems take 255 bytes a name, and a path of 4096 in all.
_MOST_NAME_BYTES = 150
_MOST_DEPTH = 12


def safe(name: str) -> tuple[str, ...]:
    """A relative path's folders and name; never empty, never upwards, never hidden controls.

    Args:
      name: as sent, with / or \\ between folders.
    """
    parts = [_clean(part) for part in re.split(r"[/\\]", name)]
    parts = [part for part in parts if part not in ("", ".", "..")]
    return tuple(parts[-_MOST_DEPTH:]) or ("file",)


def _clean(part: str) -> str:
    # Controls (Cc), marks that turn the direction of writing (Cf), halves of signs (Cs).
    part = "".join(
        "_" if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") else sign
        for sign in part
    ).strip()
    if len(part.encode()) <= _MOST_NAME_BYTES:
        return part
    # The end stays, since some kinds of files are known by it.
    stem, suffix = part[:-16].encode(), part[-16:]
    room = max(_MOST_NAME_BYTES - len(suffix.encode()) - 1, 0)
    return stem[:room].decode("utf-8", "ignore") + "_" + suffix


def unique(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The paths without the one folder that holds them all, and no two alike.

    `predict` names files relative to the folder it is given; so do we, if one was dropped. A name
    that is taken, or that is a folder elsewhere, gets a number.
    """
    if all(len(path) > 1 and path[0] == paths[0][0] for path in paths):
        paths = [path[1:] for path in paths]
    folders = {path[:depth] for path in paths for depth in range(1, len(path))}
    taken = set(folders)
    numbers: dict[tuple[str, ...], int] = {}
    matches = []
    for path in paths:
        free = path
        while free in taken:
            numbers[path] = numbers.get(path, 1) + 1
            stem, dot, suffix = path[-1].rpartition(".")
            number = f"~{numbers[path]}"
            name = f"{stem}{number}{dot}{suffix}" if stem else path[-1] + number
            free = (*path[:-1], name)
        taken.add(free)
        matches.append(free)
    return matches
