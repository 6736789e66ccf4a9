"""Batches for the step: uint8 slices in an order that (seed, step) alone decides."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import jax
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from drenet_jax.data.cohort import SPLITS
from drenet_jax.data.records import PreparedData
from drenet_jax.errors import InputError

FILLS = ("train", "always", "never")


def train_batches(
    data: PreparedData,
    *,
    batch_size: int,
    first_step: int,
    fill: str,
    shuffle_buffer: int,
    seed: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of the training split, this host's part of each.

    Every epoch is a shuffle of its own, and batches run on over the end of an epoch, so every slice
    is seen as often as any other. All hosts walk the same order and each decodes its own part, so
    the global batch of a step does not depend on the number of hosts.

    Args:
      data: what `prepare` wrote.
      batch_size: global.
      first_step: the step of the first batch; a run that goes on starts where it stopped.
      fill: one of `FILLS`.
      shuffle_buffer: slices held for shuffling.
      seed: of the order.

    Yields:
      image uint8 [b, S, S] and label int32 [b], b = batch_size / hosts.

    Raises:
      InputError: the records hold a person whom `split.json` has in another split.
    """
    n = data.n_slices["train"]
    records = _records(data, "train")
    first_slice = first_step * batch_size

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        key = tf.random.experimental.stateless_fold_in([seed, 0], number)
        return records.shuffle(
            min(shuffle_buffer, n),
            seed=tf.random.stateless_uniform([], key, minval=None, maxval=None, dtype=tf.int64),
            reshuffle_each_iteration=False,
        )

    per_host = batch_size // jax.process_count()
    first_place = jax.process_index() * per_host
    order = tf.data.Dataset.range(first_slice // n, tf.int64.max).flat_map(epoch)
    order = order.skip(first_slice % n).enumerate()

    def is_ours(place: tf.Tensor, record) -> tf.Tensor:
        del record
        place = place % batch_size
        return (place >= first_place) & (place < first_place + per_host)

    if jax.process_count() > 1:
        order = order.filter(is_ours)
    decoded = order.map(
        lambda place, record: _decode(record, filled=fill != "never"),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    batches = decoded.batch(per_host, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    members = {person.encode() for person in data.persons["train"]}
    for batch in tfds.as_numpy(batches):
        _check_persons(data, "train", members, batch["patient_id"])
        yield batch["image"], batch["label"]


def split_batches(
    data: PreparedData, split: str, *, batch_size: int, fill: str
) -> Iterator[dict[str, np.ndarray]]:
    """Every slice of a split exactly once, in the order of the records; the last batch is smaller.

    Yields:
      image uint8 [b, S, S], label int32 [b], slice_index int32 [b], and lists of b texts:
      patient_id, slice_name, site.

    Raises:
      InputError: the records hold a person whom `split.json` has in another split.
    """
    members = {person.encode() for person in data.persons[split]}
    if not data.n_slices[split]:
        return
    decoded = _records(data, split).map(
        lambda record: _decode(record, filled=fill == "always"),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    for batch in tfds.as_numpy(decoded.batch(batch_size).prefetch(tf.data.AUTOTUNE)):
        _check_persons(data, split, members, batch["patient_id"])
        for name in ("patient_id", "slice_name", "site"):
            batch[name] = [text.decode() for text in batch[name]]
        yield batch


def _check_persons(
    data: PreparedData, split: str, members: set[bytes], found: Iterable[bytes]
) -> None:
    strangers = set(found) - members
    if strangers:
        raise InputError(
            f"{data.path}: the records of {split} hold {min(strangers).decode()!r}, "
            "whom split.json has elsewhere; run prepare again."
        )


def _records(data: PreparedData, split: str) -> tf.data.Dataset:
    """The records of a split in a fixed order, pictures still encoded."""
    if not data.is_fold:
        return _stored_records(data, split)
    # A fold's persons may be in any split of the records.
    stored = [_stored_records(data, name) for name in SPLITS if name in data.builder.info.splits]
    members = tf.constant(data.persons[split], tf.string)
    everyone = functools.reduce(tf.data.Dataset.concatenate, stored)
    return everyone.filter(lambda record: tf.reduce_any(record["patient_id"] == members))


def _stored_records(data: PreparedData, split: str) -> tf.data.Dataset:
    return data.builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders={
            "image": tfds.decode.SkipDecoding(),
            "lung_mask": tfds.decode.SkipDecoding(),
        },
    )


def _decode(record: dict[str, tf.Tensor], *, filled: bool) -> dict[str, tf.Tensor]:
    image = tf.io.decode_png(record["image"], channels=1)[..., 0]
    if not filled:
        mask = tf.io.decode_png(record["lung_mask"], channels=1)[..., 0]
        image = tf.where(mask > 0, image, tf.zeros_like(image))
    return {
        "image": image,
        "label": tf.cast(record["label"], tf.int32),
        **{name: record[name] for name in ("patient_id", "slice_index", "slice_name", "site")},
    }
