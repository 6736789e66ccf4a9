"""Batches for the step: uint8 slices in an order that (seed, step) alone decides."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int, Int32, UInt8

from drenet_jax import parallel
from drenet_jax.ct.fill import Fill, apply_fill, map_dtype
from drenet_jax.ct.orientation import Box, Orientation
from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.prepared_data import PreparedData, read_all
from drenet_jax.errors import InputError

FILLS = ("train", "always", "never", "none")

# What lies around the lungs.
_Surroundings = Literal["as they are", "filled", "black"]


def train_batches(
    data: PreparedData,
    *,
    batch_size: int,
    micro_batches: int,
    first_step: int,
    fill: str,
    shuffle_buffer: int,
    seed: int,
) -> Iterator[
    tuple[
        Int32[np.ndarray, " batch"],
        UInt8[np.ndarray, "batch height width"],
        Int32[np.ndarray, " batch"],
    ]
]:
    """Endless batches of the training split, this host's part of each.

    Every epoch is a shuffle of its own, and batches run on over the end of an epoch, so every slice
    is seen as often as any other. All hosts walk the same order and each decodes its own part of
    every micro-batch, so neither the batch of a step nor its micro-batches depend on the number of
    hosts. A record that is walked and not decoded costs little (docs/training.md).

    Args:
      data: what `prepare` wrote.
      batch_size: global.
      micro_batches: in a batch (`train.accumulate`).
      first_step: the step of the first batch; a run that goes on starts where it stopped.
      fill: one of `FILLS`.
      shuffle_buffer: slices held for shuffling.
      seed: of the order.

    Yields:
      positions in the global batch, images and labels of batch_size / hosts slices, in the order of
      the positions: micro-batch by micro-batch.

    Raises:
      InputError: the records hold a person that `split.json` lists in another split, or a file of
        them is damaged.
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

    order = tf.data.Dataset.range(first_slice // n, tf.int64.max).flat_map(epoch)
    order = order.skip(first_slice % n).enumerate()
    size = batch_size // micro_batches
    own = parallel.host_slice(size)

    def is_own(position: tf.Tensor, record: dict[str, tf.Tensor]) -> tf.Tensor:
        del record
        return (position % size >= own.start) & (position % size < own.stop)

    decoded = order.filter(is_own).map(
        lambda position, record: {
            "position": tf.cast(position % batch_size, tf.int32),
            **_with_image(record, _image(data, record, _surroundings(fill, training=True))),
        },
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    per_host = batch_size // parallel.host_count()
    batches = decoded.batch(per_host, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    members = {person.encode() for person in data.persons["train"]}
    for batch in read_all(data, batches):
        _check_persons(data, "train", members, batch["patient_id"])
        yield batch["position"], batch["image"], batch["label"]


def label_counts(data: PreparedData) -> Int[np.ndarray, " classes"]:
    """How many training slices each class has."""
    labels = [record["label"] for record in read_all(data, _records(data, "train"))]
    return np.bincount(labels, minlength=len(data.labels))


def split_batches(
    data: PreparedData, split: str, *, batch_size: int, fill: str
) -> Iterator[dict[str, Any]]:
    """Every slice of a split exactly once, in the order of the records; the last batch is smaller.

    Args:
      data: what `prepare` wrote.
      split: one of its splits.
      batch_size: global, a multiple of the hosts.
      fill: one of `FILLS`.

    Yields:
      image uint8 [b, S, S] and lung_mask bool [b, S, S] of this host's part of the batch,
      b ≤ batch_size / hosts; and of the whole batch, on every host, label and slice_index int32
      [B], and lists of B texts: patient_id, slice_name, site.

    Raises:
      InputError: the records hold a person that `split.json` lists in another split, or a file of
        them is damaged.
    """
    if not data.n_slices[split]:
        return
    own = parallel.host_slice(batch_size)
    surroundings = _surroundings(fill, training=False)
    black = np.zeros((data.ct.image_size_px,) * 2, np.uint8)

    def decode(position: tf.Tensor, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        position = position % batch_size
        is_own = (position >= own.start) & (position < own.stop)
        image, lung_mask = tf.cond(
            is_own,
            lambda: (_image(data, record, surroundings), _copy_map(data, record) == 0),
            lambda: (black, black > 0),
        )
        return {**_with_image(record, image), "lung_mask": lung_mask}

    decoded = (
        _records(data, split)
        .enumerate()
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    )
    members = {person.encode() for person in data.persons[split]}
    for batch in read_all(data, decoded.batch(batch_size).prefetch(tf.data.AUTOTUNE)):
        _check_persons(data, split, members, batch["patient_id"])
        for name in ("image", "lung_mask"):
            batch[name] = batch[name][own]
        for name in ("patient_id", "slice_name", "site"):
            batch[name] = [text.decode() for text in batch[name]]
        yield batch


@dataclasses.dataclass(frozen=True, eq=False)
class CropGeometry:
    """Where a record's crop lies in the slice that it was cut from.

    Attributes:
      patient_id, slice_name, slice_index: of the slice.
      box: (y0, x0, y1, x1) of the crop in pixels of the slice as stored, half open.
      size: (H, W) of the slice as stored.
      orientation: how it became upright, as the crop is.
      lung_mask: the lungs in the crop.
    """

    patient_id: str
    slice_name: str
    slice_index: int
    box: Box
    size: tuple[int, int]
    orientation: Orientation
    lung_mask: Bool[np.ndarray, "size size"]


def crop_geometries(data: PreparedData, split: str) -> Iterator[CropGeometry]:
    """The crop geometry of every slice of a split, in the order of `split_batches`."""
    names = ("patient_id", "slice_name", "slice_index", "source_box", "source_size", "source_turn")

    def decode(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"lung_mask": _copy_map(data, record) == 0, **{name: record[name] for name in names}}

    for record in read_all(data, _records(data, split).map(decode).prefetch(tf.data.AUTOTUNE)):
        yield CropGeometry(
            patient_id=record["patient_id"].decode(),
            slice_name=record["slice_name"].decode(),
            slice_index=int(record["slice_index"]),
            box=tuple(record["source_box"].tolist()),
            size=tuple(record["source_size"].tolist()),
            orientation=Orientation(*record["source_turn"].tolist()),
            lung_mask=record["lung_mask"],
        )


def _check_persons(
    data: PreparedData, split: str, members: set[bytes], patient_ids: Iterable[bytes]
) -> None:
    unknown = set(patient_ids) - members
    if unknown:
        raise InputError(
            f"{data.name}: the records of {split} hold {min(unknown).decode()!r}, "
            "that split.json assigns to another split; run prepare again."
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
    return data.stored_records(
        split, {"image": tfds.decode.SkipDecoding(), "fill_map": tfds.decode.SkipDecoding()}
    )


def _with_image(record: dict[str, tf.Tensor], image: tf.Tensor) -> dict[str, tf.Tensor]:
    return {
        "image": image,
        "label": tf.cast(record["label"], tf.int32),
        **{name: record[name] for name in ("patient_id", "slice_index", "slice_name", "site")},
    }


def _surroundings(fill: str, *, training: bool) -> _Surroundings:
    if fill == "none":
        return "as they are"
    return "filled" if fill == "always" or (fill == "train" and training) else "black"


def _image(
    data: PreparedData, record: dict[str, tf.Tensor], surroundings: _Surroundings
) -> tf.Tensor:
    image = tf.io.decode_png(record["image"], channels=1)[..., 0]
    if surroundings == "as they are":
        return image
    copy_map = _copy_map(data, record)
    if surroundings == "black":
        return tf.where(copy_map == 0, image, tf.zeros_like(image))
    # NumPy's: TensorFlow gathers single pixels several times slower.
    filled = tf.numpy_function(
        lambda image, *fill: apply_fill(image, Fill(*fill)),
        [image, copy_map, record["fill_shifts"]],
        tf.uint8,
        stateful=False,
    )
    return tf.ensure_shape(filled, (data.ct.image_size_px,) * 2)


def _copy_map(data: PreparedData, record: dict[str, tf.Tensor]) -> tf.Tensor:
    dtype = tf.as_dtype(map_dtype(data.ct.fill_copies))
    return tf.io.decode_png(record["fill_map"], channels=1, dtype=dtype)[..., 0]
