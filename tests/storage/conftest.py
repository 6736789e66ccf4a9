"""Both kinds of buckets."""

from __future__ import annotations

import uuid

import buckets
import fsspec
import pytest

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
    # Connections of another test go to another place.
    objects._files.cache_clear()
    fsspec.get_filesystem_class(running_store.scheme).clear_instance_cache()
    yield running_store
    objects._files.cache_clear()


@pytest.fixture
def folder(store) -> str:
    """An address that no other test uses."""
    return store.address(uuid.uuid4().hex[:8])
