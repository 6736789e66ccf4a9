"""Looking through a data set's folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from drenet_jax.ct.sources import natural, printable
from drenet_jax.data.public.scan import ScanResult
from drenet_jax.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg")

# Left by archivers and desktops.
_LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")
_SHOWN = 8


def entries(folder: Path) -> list[Path]:
    """What a folder holds, in natural order, without hidden files and junk files of desktops.

    Raises:
      InputError: it cannot be read.
    """
    names = (name for name in listed(folder) if not is_junk_file(name))
    return [folder / name for name in sorted(names, key=natural)]


def listed(folder: Path) -> list[str]:
    """The names of all that a folder holds, in no order. Raises InputError if it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({error.strerror}); check the path and its permissions."
        ) from error


def layout_error(folder: Path, title: str, looked_for: str) -> InputError:
    """The refusal of a folder that is not laid out as in the published data set."""
    names = [printable(entry.name) for entry in entries(folder)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    shown = ", ".join(names[:_SHOWN]) + more if names else "nothing"
    return InputError(
        f"{folder} is not laid out as {title} is: looked for {looked_for}, found {shown}; "
        "give --root the data set's folder, unpacked."
    )


def named_folders(
    scanned: ScanResult,
    title: str,
    names: Mapping[str, Sequence[str]],
    *,
    inside: Path | None = None,
) -> list[tuple[str, Path]]:
    """The folders that stand for labels (or for something else that a data set sorts by).

    Args:
      scanned: gets a note for each key without a folder.
      title: the data set's, for messages.
      names: for each key the names of its folder, the documented one first; case plays no part.
      inside: where to look, if not in `found.root`.

    Returns:
      Pairs of key and folder, in the order of `names`.

    Raises:
      InputError: there is none.
    """
    inside = inside or scanned.root
    here = {entry.name.lower(): entry for entry in entries(inside) if os.path.isdir(entry)}
    folders = []
    for key, accepted in names.items():
        present = [here[name.lower()] for name in accepted if name.lower() in here]
        folders += [(key, folder) for folder in present]
        if not present:
            scanned.notes.append(f"there is no folder {accepted[0]!r} in {inside}.")
    if not folders:
        wanted = ", ".join(repr(accepted[0]) for accepted in names.values())
        raise layout_error(inside, title, f"the folders {wanted}")
    return folders


def filled_folders(scanned: ScanResult, folder: Path) -> Iterator[Path]:
    """The folders in `folder` that hold a file, however deep; all else there is left out."""
    for entry in entries(folder):
        if not os.path.isdir(entry):
            scanned.leave_out("files beside the folders of the persons or scans", entry)
        elif not holds_a_file(entry):
            scanned.leave_out("folders without a file that may be read", entry)
        else:
            yield entry


def files(scanned: ScanResult, folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The files in `folder` whose names end so; all else there is left out."""
    for entry in entries(folder):
        if entry.name.lower().endswith(suffixes) and not os.path.isdir(entry):
            yield entry
        else:
            scanned.leave_out(f"files and folders not named *{', *'.join(suffixes)}", entry)


def holds_a_file(folder: Path) -> bool:
    """True if there is a file in `folder`, however deep, that is no junk file of a desktop."""
    return any(
        not is_junk_file(name)
        for _, _, names in os.walk(folder, followlinks=True)
        for name in names
    )


def is_junk_file(name: str) -> bool:
    return name.startswith(".") or name in _LITTER
