"""The right of one process at a time to write under an address."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator

from drenet_jax.errors import InputError, StorageError
from drenet_jax.storage import objects

# A holder renews its lease so often; one that was not renewed for so long belongs to a process that
# is gone. While a store is away nobody can take over, so an outage may last longer.
RENEW_S = 5.0
EXPIRES_S = 60.0
# How often a process that waits for a lease looks at it.
_LOOK_S = 1.0

_PREFIX = ".lease-"


class LeaseLost(InputError):
    """Another process took the lease over: this one was not heard of for too long."""


class Lease:
    """A lease that is held; see `hold`."""

    def __init__(self, folder: str, number: int, content: bytes):
        self._folder, self._number, self._content = folder, number, content
        self._lost = threading.Event()
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew, daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Raises LeaseLost if another process has taken over; to be called before each commit."""
        if self._lost.is_set() or max(_numbers(self._folder), default=0) > self._number:
            raise LeaseLost(
                f"another process has gone on in {self._folder}, since this one was not heard of "
                f"for {EXPIRES_S:.0f} seconds; wait for that one, or name another folder."
            )

    def release(self) -> None:
        self._released.set()
        self._renewer.join()
        # While the store is away it expires.
        with contextlib.suppress(StorageError):
            for number in _numbers(self._folder):
                if number <= self._number:
                    objects.remove(_address(self._folder, number))

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            # A store that is away now is tried again; whoever takes over meanwhile is seen then.
            with contextlib.suppress(StorageError):
                if max(_numbers(self._folder), default=0) > self._number:
                    self._lost.set()
                    return
                objects.write(_address(self._folder, self._number), self._content)


@contextlib.contextmanager
def hold(folder: str, *, use: str, flag: str) -> Iterator[Lease]:
    """Holds the lease of a folder in a bucket for the block.

    Leases are numbered objects. The next number is created only where there is none
    (`objects.create`), so that of several processes that find an expired one a single one gets it.
    A lease whose holder may be gone, as after a preemption, is waited for until it is renewed or
    expires.

    Args:
      folder: the address.
      use: what the folder is being used for, for messages: "trained".
      flag: the command-line flag that `folder` came from, for messages.

    Raises:
      InputError: another process holds it.
    """
    last = max(_numbers(folder), default=0)
    holder = _living_holder(folder, last) if last else None
    if holder is not None:
        raise InputError(
            f"{flag}={folder} is being {use} in by another process ({holder}); wait for it, or "
            "name another folder."
        )
    content = json.dumps(dataclasses.asdict(_Holder.this())).encode()
    if not objects.create(_address(folder, last + 1), content):
        raise InputError(
            f"{flag}={folder} is being {use} in by another process, which began at the same time; "
            "wait for it, or name another folder."
        )
    lease = Lease(folder, last + 1, content)
    try:
        yield lease
    finally:
        lease.release()


def is_lease(name: str) -> bool:
    """Whether an object's name is that of a lease, also of a folder within."""
    return name.rpartition("/")[2].startswith(_PREFIX)


def _address(folder: str, number: int) -> str:
    return objects.child(folder, f"{_PREFIX}{number:06d}")


def _numbers(folder: str) -> list[int]:
    return [int(name.removeprefix(_PREFIX)) for name in objects.sizes(folder, _PREFIX)]


@dataclasses.dataclass(frozen=True)
class _Holder:
    """Who holds a lease.

    Attributes:
      host: its name.
      process: the number of the process there.
      id: of the lease: no other has the same content.
    """

    host: str
    process: int
    id: str

    @classmethod
    def this(cls) -> _Holder:
        return cls(platform.node(), os.getpid(), uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"process {self.process} of {self.host}"

    def is_gone(self) -> bool:
        """Whether this host knows that the process has ended; of another host it does not."""
        if self.host != platform.node():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def _holder(folder: str, number: int) -> _Holder | None:
    """None if the lease was released meanwhile, or cannot be read."""
    try:
        return _Holder(**json.loads(objects.read(_address(folder, number))))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _living_holder(folder: str, number: int) -> _Holder | None:
    """Waits until a lease is renewed, and returns its holder, or is free: None."""
    address = _address(folder, number)
    holder = _holder(folder, number)
    try:
        written_s = objects.modified_s(address)
        while holder is not None and not holder.is_gone():
            if _store_time_s(folder) - written_s > EXPIRES_S:
                return None
            time.sleep(_LOOK_S)
            if objects.modified_s(address) != written_s:
                return holder
    except FileNotFoundError:
        pass  # it was released meanwhile
    return None


def _store_time_s(folder: str) -> float:
    """The store's clock: that of another host may be off."""
    now = objects.child(folder, f".clock-{uuid.uuid4().hex}")
    objects.write(now, b"")
    try:
        return objects.modified_s(now)
    finally:
        objects.remove(now)
