"""The folder of a run, on a disk or in a bucket, which one process at a time may write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from drenet_jax import parallel
from drenet_jax.errors import InputError, StorageError
from drenet_jax.models import checkpoints as ckpt
from drenet_jax.output_files import is_disk_full, locked_folder
from drenet_jax.storage import objects
from drenet_jax.storage.mirror import Mirror, open_mirror
from drenet_jax.training.stopping import Preempted

LOCK_FILE = ".train.lock"

_Opened = TypeVar("_Opened")


class RunFolder:
    """The folder of a run; see `open_run_folder`.

    Attributes:
      path: where to work: the folder, or the local copy of one in a bucket.
      name: as the user calls it, for messages.
      is_shared: whether all hosts see `path`; a copy is this host's own.
      saves: whether this host takes part in saving: with a copy for each, the first one does alone.
    """

    def __init__(self, path: Path, name: str, mirror: Mirror | None):
        self.path, self.name = path, name
        self.is_shared = mirror is None
        self.saves = mirror is None or mirror.writes
        self._mirror = mirror

    def saved(self, step: int, wait: Callable[[], None]) -> None:
        """Copies a checkpoint and the logs to the bucket, in the background.

        Args:
          step: of the checkpoint.
          wait: returns when it is whole on the disk.
        """
        if self._mirror is not None:
            self._mirror.push_when(wait, step)

    def flush(self) -> None:
        """Returns when all that was saved is in the bucket."""
        if self._mirror is not None:
            self._mirror.wait()

    def clear(self) -> None:
        """Removes the run that the folder holds."""
        # Not while another host still reads it.
        parallel.wait_for_hosts("before the old run is removed")
        if self._mirror is not None:
            self._mirror.clear()
        elif parallel.is_first_host():
            ckpt.remove(self.path)
        parallel.wait_for_hosts("after the old run is removed")


@contextlib.contextmanager
def open_run_folder(workdir: str | os.PathLike[str]) -> Iterator[RunFolder]:
    """Opens the folder of a run for writing, on all hosts alike.

    Of several hosts the first one locks the folder, and alone writes to a bucket.

    Args:
      workdir: a folder, made if needed, or an address in a bucket.

    Raises:
      InputError: another process trains there, or it cannot be written, also later in the block,
        as when the disk gets full.
    """
    address = os.fspath(workdir)
    with contextlib.ExitStack() as stack:
        if not objects.is_remote(address):
            path = Path(workdir)
            stack.enter_context(_writing(path, address))
            stack.enter_context(_on_first_host(address, lambda: _locked(path)))
            yield RunFolder(path, address, None)
            return
        # The copies of other hosts must not be older than the first host's lease.
        held = stack.enter_context(
            _on_first_host(address, lambda: open_mirror(address, writes=True, use="trained"))
        )
        mirror = held or stack.enter_context(open_mirror(address, writes=False, use="trained"))
        stack.enter_context(_writing(mirror.local, address))
        yield RunFolder(mirror.local, address, mirror)


def _locked(path: Path) -> contextlib.AbstractContextManager[None]:
    return locked_folder(path, name=LOCK_FILE, use="trained")


@contextlib.contextmanager
def _on_first_host(
    name: str, opened: Callable[[], contextlib.AbstractContextManager[_Opened]]
) -> Iterator[_Opened | None]:
    """Enters `opened()` on the first host; all hosts learn if that is refused."""
    with contextlib.ExitStack() as stack:
        refused, result = None, None
        if parallel.is_first_host():
            try:
                result = stack.enter_context(opened())
            except (InputError, StorageError) as error:
                refused = error
        if parallel.on_any_host(refused is not None):
            # Otherwise the other hosts would wait for the first in vain.
            raise refused or InputError(f"--workdir={name}: the first host cannot lock it.")
        yield result


@contextlib.contextmanager
def _writing(path: Path, name: str) -> Iterator[None]:
    """Turns a full or unwritable disk into an InputError, and removes unfinished checkpoints."""
    try:
        yield
    except (InputError, StorageError, Preempted, BrokenPipeError):
        raise
    except Exception as error:
        if is_disk_full(error):
            message = (
                f"--workdir={name}: the disk is full (or the quota, or a limit on the size of "
                "files); free some space and call again: the run resumes from its last complete "
                "checkpoint."
            )
        elif isinstance(error, OSError):
            reason = error.strerror or error
            message = f"--workdir={name} cannot be written ({reason}); name another folder."
        else:
            raise
        if parallel.is_first_host():
            ckpt.remove_unfinished(path)
        raise InputError(message) from error
