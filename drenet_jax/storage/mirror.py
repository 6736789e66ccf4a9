"""The folder of a run: local, or in a bucket with a local copy to work in."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from drenet_jax.storage import folders, lease, objects

CHECKPOINTS = "checkpoints"


class Mirror:
    """A local folder whose checkpoints and logs are copied to a bucket; see `open_mirror`.

    A checkpoint counts as there once its `.complete.json` is, which is written last. The logs of a
    step are copied before it, so that a run that goes on from it finds them.
    """

    def __init__(self, address: str, local: Path, held: lease.Lease | None):
        """Copies nothing yet.

        Args:
          address: of the folder in the bucket.
          local: its copy.
          held: the right to write there; None: this host only reads.
        """
        self.address, self.local = address, local
        self._held = held
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mirror")
        self._copying: Future[None] | None = None

    @property
    def writes(self) -> bool:
        """Whether this host copies to the bucket."""
        return self._held is not None

    def pull(self) -> None:
        """Makes the local copy that of the bucket: complete checkpoints and logs."""
        sizes = objects.sizes(self.address)
        steps = {step: _files_of(sizes, step) for step in _complete_steps(sizes)}
        wanted = {
            name: size
            for name, size in sizes.items()
            # A cross-validation holds runs, whose checkpoints are not read through it.
            if CHECKPOINTS not in name.split("/")[:-1] and not lease.is_lease(name)
        }
        for files in steps.values():
            wanted |= files
        if self.local.is_dir():
            for path in sorted(self.local.rglob("*"), reverse=True):
                name = path.relative_to(self.local).as_posix()
                # Of a step that is there, what is as long is the same: a written step never
                # changes. Logs grow, and may have been cut.
                is_same = (
                    path.is_file()
                    and name.startswith(f"{CHECKPOINTS}/")
                    and wanted.get(name) == path.stat().st_size
                )
                if is_same:
                    del wanted[name]
                elif path.is_file() or path.is_symlink():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()
        self.local.mkdir(parents=True, exist_ok=True)
        objects.each(
            objects.download,
            [objects.child(self.address, name) for name in wanted],
            [self.local / name for name in wanted],
        )

    def push_when(self, wait: Callable[[], None], step: int) -> None:
        """Copies the checkpoint of `step` and the logs once `wait` returns, in the background.

        Raises:
          What the copy before this one raised.
        """
        self.wait()
        self._copying = self._pool.submit(self._push, wait, step)

    def wait(self) -> None:
        """Returns when all that was pushed is in the bucket."""
        if self._copying is not None:
            copying, self._copying = self._copying, None
            copying.result()

    def clear(self) -> None:
        """Removes the run from the local copy and, if this host writes there, from the bucket."""
        if self.writes:
            names = [name for name in objects.sizes(self.address) if not lease.is_lease(name)]
            # What has no mark is not complete.
            marks = [name for name in names if name.endswith(folders.COMPLETE)]
            for group in (marks, names):
                objects.each(objects.remove, [objects.child(self.address, name) for name in group])
        shutil.rmtree(self.local, ignore_errors=True)
        self.local.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        self._pool.shutdown()

    def _push(self, wait: Callable[[], None], step: int) -> None:
        assert self._held is not None
        wait()
        logs = [
            path
            for path in sorted(self.local.rglob("*"))
            if path.is_file() and CHECKPOINTS not in path.relative_to(self.local).parts
        ]
        objects.each(
            objects.upload,
            logs,
            [objects.child(self.address, path.relative_to(self.local).as_posix()) for path in logs],
        )
        name = f"{CHECKPOINTS}/{step}"
        folders.upload_folder(self.local / name, objects.child(self.address, name), self._held)
        self._remove_old_steps()

    def _remove_old_steps(self) -> None:
        """Removes what is no longer kept locally, the mark of each first."""
        kept = {path.name for path in (self.local / CHECKPOINTS).iterdir() if path.name.isdigit()}
        sizes = objects.sizes(objects.child(self.address, CHECKPOINTS))
        old = [name for name in sizes if name.partition("/")[0] not in kept]
        marks = [name for name in old if name.endswith(folders.COMPLETE)]
        for group in (marks, [name for name in old if name not in marks]):
            objects.each(
                objects.remove,
                [objects.child(self.address, f"{CHECKPOINTS}/{name}") for name in group],
            )


@contextlib.contextmanager
def open_mirror(
    address: str, *, writes: bool, use: str, flag: str = "--workdir"
) -> Iterator[Mirror]:
    """Opens a run's folder in a bucket, and copies what is there.

    Args:
      address: of the folder; nothing needs to be there.
      writes: whether this process copies to the bucket; one may at a time.
      use: what the folder is being used for, for messages: "trained".
      flag: the command-line flag that the address came from, for messages.

    Raises:
      InputError: another process writes there.
      StorageError: the bucket cannot be used.
    """
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(lease.hold(address, use=use, flag=flag)) if writes else None
        local = stack.enter_context(folders.cache_folder(address))
        mirror = Mirror(address, local, held)
        stack.callback(mirror.close)
        mirror.pull()
        yield mirror


def _complete_steps(sizes: dict[str, int]) -> list[str]:
    marks = [name.split("/") for name in sizes if name.endswith(f"/{folders.COMPLETE}")]
    return [parts[1] for parts in marks if len(parts) == 3 and parts[0] == CHECKPOINTS]


def _files_of(sizes: dict[str, int], step: str) -> dict[str, int]:
    prefix = f"{CHECKPOINTS}/{step}/"
    return {
        name: size
        for name, size in sizes.items()
        if name.startswith(prefix) and not name.endswith(folders.COMPLETE)
    }
