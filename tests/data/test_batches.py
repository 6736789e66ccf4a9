"""The order of the training slices, and evaluation's every-slice-once."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from drenet_jax import parallel
from drenet_jax.ct.prepared_series import filled
from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.data.batches import crop_geometries, label_counts, split_batches, train_batches
from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError


def _batches(prepared, n, **changes):
    return [batch[1:] for batch in _with_places(prepared, n, **changes)]


def _with_places(prepared, n, **changes):
    options = {
        "batch_size": 4,
        "micro_batches": 1,
        "first_step": 0,
        "fill": "train",
        "shuffle_buffer": 1000,
        "seed": 0,
    } | changes
    return list(itertools.islice(train_batches(open_data(prepared), **options), n))


def test_a_run_that_goes_on_sees_the_batches_of_one_that_never_stopped(prepared):
    n = open_data(prepared).n_slices["train"]
    steps = 2 * n // 4 + 3
    whole = _batches(prepared, steps)
    for first_step in (1, n // 4, steps - 2):
        rest = _batches(prepared, steps - first_step, first_step=first_step)
        for ours, theirs in zip(whole[first_step:], rest, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)


def test_epochs_hold_every_slice_once_in_another_order(prepared):
    n = open_data(prepared).n_slices["train"]
    batches = _batches(prepared, 3 * n, batch_size=1)
    images = [image.tobytes() for image, _ in batches]
    epochs = [images[i * n : (i + 1) * n] for i in range(3)]
    for epoch, other in itertools.combinations(epochs, 2):
        assert sorted(epoch) == sorted(other)
        assert epoch != other


def test_a_small_shuffle_buffer_loses_nothing(prepared):
    n = open_data(prepared).n_slices["train"]
    batches = _batches(prepared, n, batch_size=1, shuffle_buffer=3)
    everything = _batches(prepared, n, batch_size=1)
    assert sorted(x.tobytes() for x, _ in batches) == sorted(x.tobytes() for x, _ in everything)


def _with_changed_split(prepared, tmp_path):
    changed = tmp_path / "data"
    shutil.copytree(prepared, changed)
    persons = json.loads((changed / "split.json").read_text())
    persons["train"], persons["test"] = persons["test"], persons["train"]
    (changed / "split.json").write_text(json.dumps(persons))
    return changed


def test_records_that_disagree_with_split_json_are_refused(prepared, tmp_path):
    changed = _with_changed_split(prepared, tmp_path)
    with pytest.raises(InputError, match=r"that split\.json assigns to another split"):
        _batches(changed, 1)
    with pytest.raises(InputError, match=r"that split\.json assigns to another split"):
        next(split_batches(open_data(changed), "test", batch_size=1, fill="train"))


def test_records_that_are_not_complete_are_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    path = tmp_path / "data" / "dataset.json"
    settings = json.loads(path.read_text())
    settings["n_slices"]["train"] += 1
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="train slices instead of"):
        open_data(tmp_path / "data")


def test_another_seed_gives_another_order(prepared):
    first, other = (_batches(prepared, 1, seed=seed)[0][0] for seed in (0, 1))
    assert not np.array_equal(first, other)


def test_batches_are_uint8_slices_and_int32_labels(prepared):
    image, label = _batches(prepared, 1)[0]
    assert image.dtype == np.uint8
    assert image.shape == (4, 96, 96)
    assert label.dtype == np.int32


def _as_host(monkeypatch, index, count):
    monkeypatch.setattr(parallel.jax, "process_index", lambda: index)
    monkeypatch.setattr(parallel.jax, "process_count", lambda: count)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_hosts_share_each_micro_batch_of_a_batch_that_does_not_depend_on_them(
    micro_batches, prepared, monkeypatch
):
    options = {"batch_size": 8, "micro_batches": micro_batches, "first_step": 3}
    whole = _with_places(prepared, 9, **options)
    parts = []
    for host in range(2):
        _as_host(monkeypatch, host, 2)
        parts.append(_with_places(prepared, 9, **options))
    for step, (place, image, label) in enumerate(whole):
        np.testing.assert_array_equal(place, np.arange(8))
        for host in range(2):
            own, images, labels = parts[host][step]
            per_micro = np.split(np.arange(8), micro_batches)
            expected = np.concatenate([np.split(micro, 2)[host] for micro in per_micro])
            np.testing.assert_array_equal(own, expected)
            np.testing.assert_array_equal(images, image[own])
            np.testing.assert_array_equal(labels, label[own])


def test_hosts_share_a_split_of_which_each_knows_every_name(prepared, monkeypatch):
    data = open_data(prepared)
    assert data.n_slices["test"] % 8
    (whole,) = split_batches(data, "test", batch_size=100, fill="train")
    masks = [geometry.lung_mask for geometry in crop_geometries(data, "test")]
    np.testing.assert_array_equal(whole["lung_mask"], masks)
    pictures = []
    for host in range(2):
        _as_host(monkeypatch, host, 2)
        batches = list(split_batches(data, "test", batch_size=8, fill="train"))
        for name in ("slice_name", "patient_id", "label"):
            assert [x for batch in batches for x in batch[name]] == list(whole[name])
        pictures.append(batches)
    joined = [half for pair in zip(*pictures, strict=True) for half in pair]
    for name in ("image", "lung_mask"):
        np.testing.assert_array_equal(np.concatenate([half[name] for half in joined]), whole[name])


def test_label_counts_are_those_of_an_epoch(prepared):
    data = open_data(prepared)
    labels = [label for _, (label,) in _batches(prepared, data.n_slices["train"], batch_size=1)]
    np.testing.assert_array_equal(label_counts(data), np.bincount(labels, minlength=3))


def _crops(phantoms, ct, split, data):
    """(patient_id, name) -> the prepared slice, of every slice of a split, from the files."""
    members = set(data.persons[split])
    return {
        (person.patient_id, slice_.name): slice_
        for person in read_cohort(phantoms / "cohort.csv").persons
        if person.patient_id in members
        for slice_ in prepare_person(person.paths, ct).kept
    }


@pytest.mark.parametrize(
    ("fill", "in_training", "in_tests"),
    [
        ("train", "filled", "masked"),
        ("always", "filled", "filled"),
        ("never", "masked", "masked"),
        ("none", "image", "image"),
    ],
)
def test_the_surroundings_of_the_lungs_are_those_that_the_config_names(
    fill, in_training, in_tests, prepared, phantoms
):
    data = open_data(prepared)

    def wanted(split, kind):
        slices = _crops(phantoms, data.ct, split, data)
        if kind == "filled":
            return {key: filled(slice_, data.ct, data.seed) for key, slice_ in slices.items()}
        return {key: getattr(slice_, kind) for key, slice_ in slices.items()}

    n = data.n_slices["train"]
    train = [image[0] for image, _ in _batches(prepared, n, fill=fill, batch_size=1)]
    assert sorted(image.tobytes() for image in train) == sorted(
        image.tobytes() for image in wanted("train", in_training).values()
    )
    expected = wanted("test", in_tests)
    for batch in split_batches(data, "test", batch_size=8, fill=fill):
        for image, *key in zip(
            batch["image"], batch["patient_id"], batch["slice_name"], strict=True
        ):
            np.testing.assert_array_equal(image, expected[tuple(key)])


def test_more_copies_than_a_byte_can_number_fill_alike(phantoms, ct_settings, tmp_path):
    cohort = read_cohort(phantoms / "cohort.csv")
    settings = dataclasses.replace(ct_settings, image_size_px=48, fill_copies=300)
    prepare_cohort(
        dataclasses.replace(cohort, persons=cohort.persons[:1]),
        tmp_path,
        settings=settings,
        seed=0,
        fractions=(0, 0, 100),
        workers=1,
        progress=lambda summaries, n: summaries,
    )
    data = open_data(tmp_path)
    slices = _crops(phantoms, settings, "test", data)
    (batch,) = split_batches(data, "test", batch_size=32, fill="always")
    for image, *key in zip(batch["image"], batch["patient_id"], batch["slice_name"], strict=True):
        np.testing.assert_array_equal(image, filled(slices[tuple(key)], settings, 0))


def test_every_slice_of_a_split_comes_once_whatever_the_batch(prepared):
    data = open_data(prepared)
    seen = []
    for batch_size in (1, 5, 8):
        batches = split_batches(data, "validation", batch_size=batch_size, fill="train")
        names = [
            key
            for batch in batches
            for key in zip(batch["patient_id"], batch["slice_name"], strict=True)
        ]
        assert len(names) == data.n_slices["validation"]
        seen.append(collections.Counter(names))
    assert seen[0] == seen[1] == seen[2]
    assert max(seen[0].values()) == 1
