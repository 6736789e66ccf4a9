"""Both kinds of buckets."""

from __future__ import annotations

import uuid

import buckets
import fsspec
import pytest

from drenet_jax.data import transform
from drenet_jax.storage import objects


@pytest.fixture(scope="module", params=["gs", "s3"])
def running_store(request):
    with buckets.running(request.param) as store:
        yield store


@pytest.fixture
def store(running_store, monkeypatch, tmp_path):
    """A store that this process finds; the cache of its objects is of the test alone."""
    for name, value in running_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DRENET_JAX_CACHE", str(tmp_path / "cache"))
    _forget_connections()
    yield running_store
    _forget_connections()


def _forget_connections():
    """Those of other tests go to other places."""
    objects._files.cache_clear()
    for scheme in ("gs", "s3"):
        fsspec.get_filesystem_class(scheme).clear_instance_cache()
    # Child processes have their own, and the environment in which they were started.
    for reader in transform._idle_readers:
        reader.close()


@pytest.fixture
def folder(store) -> str:
    """An address that no other test uses."""
    return store.address(uuid.uuid4().hex[:8])
