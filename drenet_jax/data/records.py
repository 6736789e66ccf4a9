"""The TFRecords that `prepare` writes: their features, and the files that go with them."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from drenet_jax.ct.fill import map_dtype
from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.duplicates import SliceDigests
from drenet_jax.data.prepared_data import (
    RECORDS_NAME,
    RECORDS_VERSION,
    SETTINGS_FILE,
    SPLIT_FILE,
    records_folder,
    write_json,
)

if TYPE_CHECKING:
    from drenet_jax.data.beam import Beam

# Shards are kept near this size: a worker of Beam holds one in memory while it writes it, and one
# is read again in a second. And there are at least so many that 16 hosts or readers have work.
SHARD_BYTES = 128 << 20
LEAST_SHARDS = 16

tfds.disable_progress_bar()


class DeterministicExampleWriter(tfds.core.ExampleWriter):
    """Writes the features of every example in the order of their names.

    TFDS leaves the order to protobuf, where it differs from process to process.
    """

    def write(self, path: str | os.PathLike[str], examples: Iterable[tuple[Any, bytes]]) -> Any:
        return super().write(
            path, ((key, _in_order_of_names(example)) for key, example in examples)
        )


def _in_order_of_names(example: bytes) -> bytes:
    return tf.train.Example.FromString(example).SerializeToString(deterministic=True)


class CtSlices(tfds.core.GeneratorBasedBuilder):
    """Kept slices of chest CT series: lung crops, lung masks and what fills the blank."""

    name = RECORDS_NAME
    VERSION = tfds.core.Version(RECORDS_VERSION)
    # Without it, TFDS searches the package's files for a description.
    pkg_dir_path = None

    def __init__(
        self,
        *,
        data_dir: os.PathLike[str],
        labels: tuple[str, ...],
        ct: CtSettings,
        examples: Mapping[str, Callable[[], Any]],
    ):
        """A builder of the given examples.

        Args:
          data_dir: the folder under which `ct_slices/2.0.0` is made.
          labels: names of the classes, in order.
          ct: settings of the crops.
          examples: split -> a function that gives its examples with their keys (see `staging`): an
            iterator, or the Beam transform that makes them.
        """
        self._labels = labels
        self._ct = ct
        self._examples = examples
        super().__init__(data_dir=data_dir, file_format="tfrecord")

    def _info(self) -> tfds.core.DatasetInfo:
        png = (self._ct.image_size_px, self._ct.image_size_px, 1)
        copies = self._ct.fill_copies
        return self.dataset_info_from_configs(
            description="Lung crops of chest CT slices, prepared for DRENet.",
            features=tfds.features.FeaturesDict(
                {
                    # Neither masked nor filled.
                    "image": tfds.features.Image(shape=png, encoding_format="png"),
                    # The fields of `Fill`; 0 in the map is lung.
                    "fill_map": tfds.features.Image(
                        shape=png, dtype=map_dtype(copies), encoding_format="png"
                    ),
                    "fill_shifts": tfds.features.Tensor(
                        shape=(copies + 2, 2), dtype=np.int16, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=list(self._labels)),
                    "patient_id": tfds.features.Text(),
                    "slice_index": tf.int32,
                    "slice_name": tfds.features.Text(),
                    "source_box": tfds.features.Tensor(shape=(4,), dtype=tf.int32),
                    "source_size": tfds.features.Tensor(shape=(2,), dtype=tf.int32),
                    # How the slice as stored became upright: the fields of `Orientation`.
                    "source_turn": tfds.features.Tensor(shape=(3,), dtype=tf.bool),
                    "site": tfds.features.Text(),
                }
            ),
            disable_shuffling=False,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        # With an argument `pipeline` TFDS would import Beam, which need not be installed.
        del dl_manager
        return {split: self._generate_examples(make) for split, make in self._examples.items()}

    def _generate_examples(self, make: Callable[[], Any]) -> Any:
        return make()

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return DeterministicExampleWriter(self.info.file_format)


def write_records(
    folder: Path,
    *,
    labels: tuple[str, ...],
    ct: CtSettings,
    seed: int,
    persons: Mapping[str, list[str]],
    diagnoses: Mapping[str, tuple[str, str]],
    n_slices: Mapping[str, int],
    digests: SliceDigests,
    n_bytes: int,
    examples: Mapping[str, Callable[[], Any]],
    beam: Beam | None,
) -> None:
    """Writes the TFDS folder with the digests, `split.json` and `dataset.json` into `folder`.

    The records' order is that of a hash of their keys, so it does not depend on the order of the
    staged files. TFDS works in a folder of its own until the records are whole.

    Args:
      folder: an existing folder.
      labels, ct, seed, persons, diagnoses, n_slices: as in `PreparedData`.
      digests: of everybody's slices; the persons by split, and in each in the order of their names.
      n_bytes: size of all examples, for the number of shards.
      examples: split -> a function that gives its examples, see `CtSlices`. Splits without any
        are left out.
      beam: where the records are written, or None: in this process.
    """
    filled = {split: make for split, make in examples.items() if n_slices[split]}
    n_shards = max(LEAST_SHARDS, -(-n_bytes // SHARD_BYTES))
    # Every split gets as many; more shards than examples would leave some empty.
    n_shards = min(n_shards, *(n_slices[split] for split in filled))
    builder = CtSlices(data_dir=folder, labels=labels, ct=ct, examples=filled)
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        # TFDS prints as if it were downloading, and makes a folder for what it does not download.
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(
                num_shards=n_shards,
                beam_runner=beam and beam.tfds_runner,
                beam_options=beam and beam.pipeline_options(),
            ),
            file_format="tfrecord",
        )
    write_json(folder / SPLIT_FILE, {split: persons[split] for split in SPLITS})
    diagnosed = [person for split in SPLITS for person in sorted(persons[split])]
    assert digests.persons == tuple(diagnosed)
    checksum = digests.write(records_folder(folder))
    write_json(
        folder / SETTINGS_FILE,
        {
            "labels": list(labels),
            "ct": ct.to_dict(),
            "seed": seed,
            "n_slices": {split: n_slices[split] for split in SPLITS},
            "diagnoses": {person: list(diagnoses[person]) for person in diagnosed},
            "digests": checksum,
        },
    )
