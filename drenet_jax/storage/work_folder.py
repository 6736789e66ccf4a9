"""A folder that a command fills piece by piece, and goes on with when it is called again."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from drenet_jax.errors import InputError
from drenet_jax.output_files import locked_folder
from drenet_jax.storage import folders, lease, objects, stand_ins


class WorkFolder:
    """A folder on a disk, or in a bucket with a local copy to work in; see `open_work_folder`.

    Attributes:
      path: where to work.
      name: as the user calls it, for messages.
      is_new: nothing is there yet.
    """

    def __init__(self, path: Path, name: str, is_new: bool, held: lease.Lease | None):
        self.path, self.name, self.is_new = path, name, is_new
        self._held = held

    def location(self, path: Path) -> str:
        """What other processes find a path of this folder by."""
        if self._held is None:
            return str(path)
        return objects.child(self.name, path.relative_to(self.path).as_posix())

    def commit(self, path: Path) -> None:
        """Makes a file, or a whole folder, that was written here part of the folder for good."""
        if self._held is None:
            return
        if path.is_dir():
            folders.upload_folder(path, self.location(path), self._held)
        else:
            self._held.check()
            objects.upload(path, self.location(path))

    @contextlib.contextmanager
    def run(self, path: Path) -> Iterator[Path]:
        """Yields a run that was trained at the location of `path`, for reading."""
        if self._held is None:
            yield path
            return
        with stand_ins.run(self.location(path), flag="--workdir") as copy:
            yield copy


@contextlib.contextmanager
def open_work_folder(
    workdir: str | os.PathLike[str], *, lock_file: str, use: str
) -> Iterator[WorkFolder]:
    """Opens a folder for writing, which one process at a time may do.

    Args:
      workdir: the folder, made if needed, or an address in a bucket.
      lock_file: the name of the lock, on a disk.
      use: what the folder is being used for, for messages: "cross-validated".

    Raises:
      InputError: another process works there, or the folder cannot be written.
      StorageError: the bucket cannot be used.
    """
    name = os.fspath(workdir)
    if not objects.is_remote(name):
        path = Path(workdir)
        with locked_folder(path, name=lock_file, use=use):
            is_new = all(path.name == lock_file for path in path.iterdir())
            yield WorkFolder(path, name, is_new, None)
        return
    name = name.rstrip("/")
    with (
        lease.hold(name, use=use, flag="--workdir") as held,
        folders.cache_folder(name) as path,
    ):
        stand_ins.stand_for(path, name)
        shutil.rmtree(path)
        path.mkdir()
        there = {
            file: size for file, size in objects.sizes(name).items() if not lease.is_lease(file)
        }
        committed = {file: size for file, size in there.items() if "/" not in file}
        for mark in there:
            # A checkpoint is a part of its run, which is committed by itself.
            if mark.endswith(f"/{folders.COMPLETE}") and "/checkpoints/" not in mark:
                folder = mark.removesuffix(f"/{folders.COMPLETE}")
                contents = folders.read_contents(objects.child(name, folder), flag="--workdir")
                committed |= {f"{folder}/{file}": n for file, n in contents.files.items()}
        try:
            folders.download_files(name, committed, path, flag="--workdir")
        except OSError as error:
            raise InputError(
                f"{path}, the copy of --workdir={name}, cannot be written ({error.strerror}); set "
                "DRENET_JAX_CACHE to another folder."
            ) from error
        yield WorkFolder(path, name, not there, held)
