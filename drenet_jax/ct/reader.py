"""Patients prepared in a child process, so that a crash of a decoder costs one file.

Decoders of images are C code, and a damaged file can crash one or keep it busy forever. The child
names each file before it opens it; if it dies or exceeds the time limit of that file, a new child
prepares the patient again without the file.

The pool is ours because pebble's ProcessPool limits the time of a whole task, not of a file in it,
and gives neither progress, by which the file is known, nor the stderr of a child that cannot start;
loky has no limit of time.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO, cast

from drenet_jax.ct.prepared_series import PreparedPerson
from drenet_jax.ct.settings import CtSettings
from drenet_jax.ct.sources import CtError
from drenet_jax.errors import StorageError
from drenet_jax.storage import objects
from drenet_jax.storage.objects import AnyPath

# For one file. Decoding a slice takes milliseconds, unpacking the largest volume seconds.
TIMEOUT_S = 15.0
# Added for each MiB of the file that is being read.
_TIMEOUT_S_PER_MIB = 0.05

# Added for objects in buckets: longer than the attempts to read one, which end by themselves.
_TIMEOUT_S_IN_BUCKET = 900.0

# Address space of a child: the largest volume that is read, with room to spare.
MEMORY_BYTES = 12 << 30

# How often `tick` is called, at least.
_TICK_S = 0.25

# A folder with more crashes is refused.
_MOST_CRASHES = 20

_CHILD = "from drenet_jax.ct.reader import serve"

_CRASHED = "a file on which its decoder crashed"
_TOO_SLOW = "a file that takes too long to read"


class Reader:
    """A child process that prepares persons; it ends with this object, or with this process.

    Use it as a context manager, or call `close`. One thread at a time.
    """

    def __init__(
        self,
        timeout_s: float = TIMEOUT_S,
        *,
        memory_bytes: int = MEMORY_BYTES,
        scratch: Path | None = None,
    ):
        """The child is started when it is needed.

        Args:
          timeout_s: how long one file may take, in seconds, apart from its size.
          memory_bytes: how much address space the child may ask for.
          scratch: the folder for its temporary files, which a child that is killed leaves behind;
            the system's unless it is given.
        """
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._scratch = scratch
        self._child: subprocess.Popen | None = None
        self._connection: Connection
        self._errors: BinaryIO

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts the child now, so that it is there when it is needed."""
        if self._child is not None and self._child.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH", ""))))
        self._errors = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (closed in `close`)
        environment = {**os.environ, "PYTHONPATH": path}
        if self._scratch is not None:
            environment["TMPDIR"] = str(self._scratch)
        with theirs:
            arguments = f"{theirs.fileno()}, {self._memory_bytes}"
            self._child = subprocess.Popen(
                [sys.executable, "-c", f"{_CHILD}; serve({arguments})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Decoders write there what they think of a file: not for the user's terminal.
                stderr=self._errors,
                env=environment,
            )
        self._connection = Connection(ours.detach())

    def close(self) -> None:
        """Ends the child."""
        if self._child is None:
            return
        self._connection.close()
        self._errors.close()
        self._child.kill()
        self._child.wait()
        self._child = None

    def prepare(
        self,
        paths: Sequence[AnyPath],
        settings: CtSettings,
        *,
        series_uid: str = "",
        with_instances: bool = False,
        with_hu: bool = False,
        tick: Callable[[], None] | None = None,
    ) -> PreparedPerson:
        """As `preprocess.prepare_person`, except that a crash or a hang costs one file.

        Args:
          paths: as `prepare_person`.
          settings: as `prepare_person`.
          series_uid, with_instances, with_hu: as `prepare_person`.
          tick: called some times a second while the child works; what it raises ends the child and
            is raised here, so that a caller can give up.

        Raises:
          CtError: as `prepare_person`; or too many files are of that kind.
          StorageError: a bucket cannot be read.
        """
        tick = tick or (lambda: None)
        waiting_s = _TIMEOUT_S_IN_BUCKET if any(map(objects.is_remote, paths)) else 0.0
        skipped: dict[tuple[str, str], str] = {}
        killed: set[tuple[str, str] | None] = set()
        while len(skipped) < _MOST_CRASHES:
            self.start()
            reading = answer = None
            try:
                wanted = {
                    "series_uid": series_uid,
                    "with_instances": with_instances,
                    "with_hu": with_hu,
                }
                self._connection.send((list(paths), settings, wanted, skipped))
                while answer is None and self._poll(waiting_s + self._timeout_for(reading), tick):
                    kind, content = self._connection.recv()
                    if kind == "file":
                        reading = content
                    elif kind == "done":
                        pickled, n_arrays = content
                        arrays = [bytearray(self._connection.recv_bytes()) for _ in range(n_arrays)]
                        answer = kind, pickle.loads(pickled, buffers=arrays)
                    else:
                        answer = kind, content
                why = _TOO_SLOW
            except (EOFError, ConnectionError) as error:
                # By a user, or by the system for its memory, which may not be the file's fault.
                if reading not in killed and self._was_killed():
                    killed.add(reading)
                    self.close()
                    continue
                if reading is None:
                    message = self._stderr_tail()
                    self.close()
                    raise RuntimeError(message) from error
                why = _CRASHED
            except BaseException:
                # What it still sends would be taken for the answer to the next call.
                self.close()
                raise
            if answer is not None:
                kind, content = answer
                if kind == "done":
                    return content
                if kind == "refused":
                    raise content
                raise RuntimeError(f"in the process that reads images:\n{content}")
            self.close()
            if reading is None or reading in skipped:
                break
            skipped[reading] = why
        why = "files on which their decoders crash or hang"
        raise CtError(f"{paths[0]} holds {why}; export the series anew.", why)

    def _poll(self, timeout_s: float, tick: Callable[[], None]) -> bool:
        """Whether the child sends a message in time."""
        end = time.monotonic() + timeout_s
        while True:
            tick()
            left_s = end - time.monotonic()
            if self._connection.poll(min(max(left_s, 0), _TICK_S)):
                return True
            if left_s <= 0:
                return False

    def _timeout_for(self, reading: tuple[str, str] | None) -> float:
        """Seconds that a file may take: larger ones more."""
        if reading is None:
            return self._timeout_s
        place = Path(reading[0])
        # A member of a zip is no file; the zip is.
        file = next((path for path in (place, *place.parents) if path.is_file()), None)
        size = file.stat().st_size if file else 0
        return self._timeout_s + _TIMEOUT_S_PER_MIB * size / (1 << 20)

    def _was_killed(self) -> bool:
        """Whether the child, which has ended, was killed by another process."""
        child = cast(subprocess.Popen, self._child)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(1) == -signal.SIGKILL
        return False

    def _stderr_tail(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", "replace")[-2000:]
        return f"the process that reads images ended:\n{text}"


def serve(descriptor: int, memory_bytes: int) -> None:
    """The child: prepares one person after the other until the parent is gone.

    Args:
      descriptor: of the socket to the parent.
      memory_bytes: how much address space it may ask for.
    """
    # Decoders are the child's alone: the parent, which waits for it, need not import them.
    from drenet_jax.ct.preprocess import prepare_person

    connection = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import cv2

    cv2.setNumThreads(1)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            paths, settings, wanted, skipped = connection.recv()

            def guard(place: str, what: str, skipped: dict = skipped) -> str:
                if (place, what) not in skipped:
                    connection.send(("file", (place, what)))
                return skipped.get((place, what), "")

            try:
                prepared = prepare_person(paths, settings, **wanted, guard=guard)
            except (CtError, StorageError) as error:
                connection.send(("refused", error))
            except (ConnectionError, KeyboardInterrupt):
                return
            except MemoryError:
                os._exit(1)
            except Exception:
                connection.send(("failed", traceback.format_exc()))
            else:
                # Arrays go one by one: a connection is slow with messages of many MB.
                arrays: list[pickle.PickleBuffer] = []
                pickled = pickle.dumps(prepared, protocol=5, buffer_callback=arrays.append)
                connection.send(("done", (pickled, len(arrays))))
                for array in arrays:
                    connection.send_bytes(array.raw())
