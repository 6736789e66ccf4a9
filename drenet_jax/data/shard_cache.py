"""Records in a bucket: their shards are fetched ahead of their readers into a bounded cache."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import shutil
import threading
from pathlib import Path

from drenet_jax.errors import InputError, StorageError
from drenet_jax.storage import folders, objects, stand_ins

_opened: dict[tuple[str, str], ShardCache] = {}
_stack = contextlib.ExitStack()

# Of the largest prepared data sets (some 100,000 slices at 448 pixels) all fits.
_LIMIT_GB = 50.0


# Those that were asked for last stay, whatever the limit: their readers may not have opened them.
# TensorFlow reads 16 shards by turns, and a few are fetched ahead.
_SHARDS_KEPT = 32


class ShardCache:
    """Local copies of the files of a prepared data set in a bucket; see `open_shard_cache`.

    All but the shards are copied when it is opened. A shard is copied when it is asked for; when
    the copies exceed the limit, those that were asked for longest ago are removed. A file that is
    being read stays readable.
    """

    def __init__(self, address: str, contents: folders.Contents, folder: Path):
        """Copies all files but the shards.

        Args:
          address: of the folder that `prepare` wrote.
          contents: of that folder.
          folder: for the copies.
        """
        self.address = address
        # Another data set at the same address has another one.
        self.local = folder / contents.id
        for other in folder.iterdir():
            if other != self.local:
                shutil.rmtree(other)
        stand_ins.stand_for(self.local, self.address)
        self.sizes = contents.files
        self._lock = threading.Lock()
        self._copies: collections.OrderedDict[str, concurrent.futures.Future[None]] = (
            collections.OrderedDict()
        )
        # TensorFlow, in whose threads shards are fetched, raises errors of its own instead.
        self.error: InputError | StorageError | None = None
        self._limit_bytes = float(os.environ.get("DRENET_JAX_CACHE_GB") or _LIMIT_GB) * 1e9
        others = {
            name: size
            for name, size in self.sizes.items()
            if not is_shard(name) and not _is_there(self.local / name, size)
        }
        folders.download_files(address, others, self.local, flag="--config.data.dir")

    def fetch(self, path: str) -> Path:
        """The local path of a shard, which is copied first if needed.

        Args:
          path: where the copy lies, or will.

        Raises:
          InputError: the shard is gone.
          StorageError: the bucket cannot be read.
        """
        name = Path(path).relative_to(self.local).as_posix()
        with self._lock:
            copy = self._copies.pop(name, None)
            is_mine = copy is None
            if copy is None:
                copy = concurrent.futures.Future()
                self._drop_oldest(self.sizes.get(name, 0))
            self._copies[name] = copy
        if is_mine:
            try:
                if not _is_there(Path(path), self.sizes.get(name)):
                    address = objects.child(self.address, name)
                    folders.download_file(address, Path(path), self.sizes[name])
                copy.set_result(None)
            except BaseException as error:
                with self._lock:
                    self._copies.pop(name, None)
                if isinstance(error, FileNotFoundError):
                    error = InputError(
                        f"{objects.child(self.address, name)} is gone; run prepare again, or "
                        "restore the data set from a copy."
                    )
                if isinstance(error, InputError | StorageError):
                    self.error = error
                copy.set_exception(error)
        copy.result()
        return Path(path)

    def _drop_oldest(self, wanted_bytes: int) -> None:
        total = wanted_bytes + sum(self.sizes.get(name, 0) for name in self._copies)
        for name, copy in list(self._copies.items())[:-_SHARDS_KEPT]:
            if total <= self._limit_bytes:
                return
            if copy.done():
                (self.local / name).unlink(missing_ok=True)
                del self._copies[name]
                total -= self.sizes.get(name, 0)


def open_shard_cache(address: str) -> ShardCache:
    """The copies of a prepared data set, which stay open until the process ends.

    Raises:
      InputError: the data set is not there or not complete.
      StorageError: the bucket cannot be read.
    """
    address = address.rstrip("/")
    contents = folders.read_contents(address, flag="--config.data.dir")
    if (address, contents.id) not in _opened:
        folder = _stack.enter_context(folders.cache_folder(address))
        _opened[address, contents.id] = ShardCache(address, contents, folder)
    return _opened[address, contents.id]


def is_shard(name: str) -> bool:
    """Whether a file of a prepared data set holds records."""
    return ".tfrecord-" in name


def _is_there(path: Path, size: int | None) -> bool:
    return path.is_file() and path.stat().st_size == size
