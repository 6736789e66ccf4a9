"""One process at a time writes under an address."""

from __future__ import annotations

import json
import os
import platform
import threading
import time

import pytest

from drenet_jax.errors import InputError
from drenet_jax.storage import lease, objects

pytestmark = pytest.mark.cloud


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # S3 tells times in seconds.
    monkeypatch.setattr(lease, "RENEW_S", 0.3)
    monkeypatch.setattr(lease, "EXPIRES_S", 3.0)
    monkeypatch.setattr(lease, "_LOOK_S", 0.2)


def _leave_behind(folder, number, host, process):
    """The lease of a process that did not release it."""
    content = json.dumps({"host": host, "process": process, "id": "x"}).encode()
    objects.write(lease._address(folder, number), content)


def test_a_second_process_is_refused_until_the_first_has_ended(folder):
    with lease.hold(folder, use="trained", flag="--workdir"):
        with (
            pytest.raises(InputError) as refused,
            lease.hold(folder, use="trained", flag="--workdir"),
        ):
            pass
        assert str(refused.value) == (
            f"--workdir={folder} is being trained in by another process (process {os.getpid()} of "
            f"{platform.node()}); wait for it, or name another folder."
        )
    assert objects.sizes(folder) == {}
    with lease.hold(folder, use="trained", flag="--workdir") as held:
        held.check()


def test_the_lease_of_a_process_of_this_host_that_is_gone_is_taken_at_once(folder):
    _leave_behind(folder, 4, platform.node(), 2**22 + 1)
    begin = time.monotonic()
    with lease.hold(folder, use="trained", flag="--workdir"):
        assert list(objects.sizes(folder)) == [".lease-000004", ".lease-000005"]
    assert time.monotonic() - begin < 3
    assert objects.sizes(folder) == {}


def test_the_lease_of_another_host_is_taken_when_it_was_not_renewed(folder):
    _leave_behind(folder, 1, "another", 1)
    begin = time.monotonic()
    with lease.hold(folder, use="trained", flag="--workdir"):
        assert time.monotonic() - begin > 1.5


def test_a_holder_that_was_replaced_commits_nothing(folder):
    with lease.hold(folder, use="trained", flag="--workdir") as held:
        held.check()
        _leave_behind(folder, 2, "another", 1)
        with pytest.raises(lease.LeaseLost, match="another process has gone on in"):
            held.check()
    # The other one's lease stays.
    assert list(objects.sizes(folder)) == [".lease-000002"]


def test_of_many_that_find_a_folder_free_one_gets_it(folder):
    held, refused = [], []
    together = threading.Barrier(6)

    def work():
        together.wait()
        try:
            with lease.hold(folder, use="trained", flag="--workdir"):
                held.append(time.monotonic())
                time.sleep(2.5)
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)
