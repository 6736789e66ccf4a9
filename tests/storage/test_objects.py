"""Objects in buckets, through both protocols and with faults."""

from __future__ import annotations

import asyncio
import threading
import types

import gcsfs.retry
import pytest

from drenet_jax.errors import InputError, StorageError
from drenet_jax.storage import objects

pytestmark = pytest.mark.cloud


@pytest.fixture
def short_pauses(monkeypatch):
    """Of drenet_jax, gcsfs and botocore."""
    monkeypatch.setattr(objects, "_LONGEST_PAUSE_S", objects._LONGEST_PAUSE_S / 100)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    quick = types.SimpleNamespace(sleep=lambda pause_s: asyncio.sleep(pause_s / 100))
    monkeypatch.setattr(gcsfs.retry, "asyncio", quick)


def test_objects_are_written_read_listed_copied_and_removed(folder, tmp_path):
    a, b = objects.child(folder, "a"), objects.child(folder, "sub/ü #1?.bin")
    assert not objects.exists(folder)
    objects.write(a, b"0123456789")
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    objects.upload(path, b)
    assert objects.sizes(folder) == {"a": 10, "sub/ü #1?.bin": 256_000}
    assert objects.sizes(folder, "su") == {"sub/ü #1?.bin": 256_000}
    assert objects.sizes(folder, "b") == objects.sizes(objects.child(folder, "su")) == {}
    assert objects.read(a) == b"0123456789"
    assert objects.read_range(a, 2, 5) == b"234"
    assert objects.size(b) == 256_000
    assert objects.exists(folder)
    assert objects.is_object(a)
    assert not objects.is_object(folder)
    objects.download(b, tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == path.read_bytes()
    objects.write(a, b"")
    assert objects.read(a) == b""
    objects.remove(a)
    objects.remove(a)
    assert objects.sizes(folder) == {"sub/ü #1?.bin": 256_000}


def test_what_is_not_there_is_a_missing_file(folder, tmp_path):
    address = objects.child(folder, "none")
    for read in (objects.read, objects.size, lambda name: objects.read_range(name, 0, 3)):
        with pytest.raises(FileNotFoundError) as missing:
            read(address)
        assert missing.value.filename == address
    with pytest.raises(FileNotFoundError):
        objects.download(address, tmp_path / "copy")
    assert list(tmp_path.glob("*copy*")) == []
    assert objects.sizes(folder) == {}


def test_of_many_that_create_an_object_one_does(folder):
    address = objects.child(folder, "lock")
    created = []

    def create(i):
        if objects.create(address, b"%d" % i):
            created.append(i)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert objects.read(address) == b"%d" % created[0]
    assert not objects.create(address, b"another")


def test_faults_that_pass_cost_nothing_but_time(store, folder, short_pauses):
    contents = {f"{i}": bytes([i]) * 1000 for i in range(12)}
    faults = {"error_rate": 0.1, "throttle_rate": 0.1, "drop_rate": 0.1, "lose_rate": 0.1}
    with store.proxy.with_faults(**faults):
        objects.each(
            objects.write, [objects.child(folder, name) for name in contents], contents.values()
        )
        assert {name: objects.read(objects.child(folder, name)) for name in contents} == contents
        assert objects.sizes(folder) == dict.fromkeys(contents, 1000)


def test_an_answer_that_gets_lost_is_no_other_process(store, folder, short_pauses):
    for seed in range(6):
        address = objects.child(folder, f"lock{seed}")
        with store.proxy.with_faults(lose_rate=0.6, seed=seed):
            assert objects.create(address, b"mine")


def test_a_refusal_is_final_and_named_in_one_sentence(store, folder):
    with store.proxy.with_faults(denied=True):
        for call in (
            lambda: objects.read(folder),
            lambda: objects.write(folder, b""),
            lambda: objects.sizes(folder),
        ):
            before = store.proxy.n_requests
            with pytest.raises(StorageError) as refused:
                call()
            assert store.proxy.n_requests - before <= 3
            assert str(refused.value) == (
                f"{folder} cannot be used (access is denied); ask for the rights to read and write "
                "there."
            )


def test_a_store_that_stays_away_is_named_in_one_sentence(store, folder, short_pauses):
    with store.proxy.with_faults(away=True), pytest.raises(StorageError) as away:
        objects.read(folder)
    assert str(away.value).startswith(f"{folder} cannot be used (")
    assert str(away.value).endswith("); check the network and call again.")


def test_a_scheme_whose_package_is_missing_says_what_to_install(monkeypatch):
    objects._files.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(InputError, match=r"pip install 'drenet_jax\[cloud\]'"):
        objects.read("s3://bucket/a")
    objects._files.cache_clear()
