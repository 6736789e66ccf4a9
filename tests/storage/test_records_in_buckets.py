"""Records in a bucket are read as they are from a disk, through a bounded cache."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from drenet_jax.data import shard_cache
from drenet_jax.data.batches import split_batches
from drenet_jax.data.folds import persons_of_records
from drenet_jax.data.prepared_data import open_data, read_all, write_fold
from drenet_jax.errors import InputError, StorageError
from drenet_jax.storage import folders, objects, stand_ins

pytestmark = pytest.mark.cloud


@pytest.fixture
def data(folder, prepared, monkeypatch):
    """The address of a copy of `prepared`."""
    monkeypatch.setattr(shard_cache, "_opened", {})
    with stand_ins.output(folder, flag="--out") as local:
        shutil.copytree(prepared, local)
    return folder


def _examples(data, split):
    return list(read_all(data, data.stored_records(split, None)))


def test_the_records_are_the_same_in_the_same_order(data, prepared):
    ours, theirs = open_data(data), open_data(prepared)
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.name, ours.location, ours.records_name) == (data, data, data)
    for split in ("train", "validation", "test"):
        for a, b in zip(_examples(ours, split), _examples(theirs, split), strict=True):
            assert (a["slice_name"], a["patient_id"]) == (b["slice_name"], b["patient_id"])
            np.testing.assert_array_equal(a["image"], b["image"])
    assert persons_of_records(ours) == persons_of_records(theirs)


def test_a_fold_in_a_bucket_has_its_records_where_it_was_made_from(data, prepared, store):
    whole = open_data(data)
    persons = {"train": whole.persons["test"], "test": whole.persons["train"]}
    counts = {"train": whole.n_slices["test"], "test": whole.n_slices["train"]}
    address = store.address("fold-of-" + data.rpartition("/")[2])
    with stand_ins.output(address, flag="--out") as local:
        write_fold(local, whole.fold(persons, counts))
    fold = open_data(address)
    assert (fold.name, fold.location, fold.records_name) == (address, address, data)
    batches = list(split_batches(fold, "train", batch_size=64, fill="always"))
    assert sum(len(batch["image"]) for batch in batches) == whole.n_slices["test"]


def test_only_the_shards_that_were_used_last_are_kept(data, monkeypatch, prepared):
    monkeypatch.setenv("DRENET_JAX_CACHE_GB", "1e-6")
    monkeypatch.setattr(shard_cache, "_SHARDS_KEPT", 3)
    shards = shard_cache.open_shard_cache(data)
    names = sorted(name for name in shards.sizes if shard_cache.is_shard(name))
    for _ in range(2):
        for name in names:
            path = shards.fetch(str(shards.local / name))
            assert path.read_bytes() == (prepared / name).read_bytes()
    kept = sorted(path.name for path in shards.local.rglob("*.tfrecord-*"))
    assert kept == [name.rpartition("/")[2] for name in names[-4:]]


def test_a_shard_that_many_ask_for_is_copied_once(data, store):
    shards = shard_cache.open_shard_cache(data)
    name = next(filter(shard_cache.is_shard, shards.sizes))
    before = store.proxy.n_bytes_read
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shards.fetch, [str(shards.local / name)] * 8))
    read = store.proxy.n_bytes_read - before
    assert shards.sizes[name] <= read < 2 * shards.sizes[name]
    assert shard_cache.open_shard_cache(data + "/") is shards


def test_two_processes_have_copies_of_their_own(folder):
    with folders.cache_folder(folder) as first, folders.cache_folder(folder) as second:
        assert first != second
    with folders.cache_folder(folder) as again:
        assert again == first


def test_a_shard_that_is_gone_or_cut_is_named(data):
    name = next(
        name for name in objects.sizes(data) if "-train" in name and shard_cache.is_shard(name)
    )
    content = objects.read(f"{data}/{name}")
    for change, why in (
        (lambda: objects.write(f"{data}/{name}", content[:-1]), "is damaged: it has"),
        (lambda: objects.remove(f"{data}/{name}"), "is gone; run prepare again"),
    ):
        change()
        with pytest.raises(InputError, match=f"{name} {why}"):
            _examples(open_data(data), "train")


def test_a_store_that_is_away_is_no_damaged_data(data, store, monkeypatch):
    opened = open_data(data)
    with store.proxy.with_faults(denied=True):
        with pytest.raises(StorageError, match=r"cannot be used \(access is denied\)"):
            _examples(opened, "train")
        with pytest.raises(StorageError):
            open_data(data)
    assert len(_examples(opened, "train")) == opened.n_slices["train"]


def test_a_folder_without_data_is_refused(folder):
    with pytest.raises(InputError, match=f"--config.data.dir={folder} is not there"):
        open_data(folder)
    objects.write(f"{folder}/dataset.json", b"{}")
    with pytest.raises(InputError, match="was not written to its end"):
        open_data(folder)
