"""Opening the folder that `prepare` wrote, and checking that its records are whole."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.duplicates import SliceDigests
from drenet_jax.data.shard_cache import ShardCache, open_shard_cache
from drenet_jax.data.split import check_split
from drenet_jax.errors import InputError, one_line
from drenet_jax.storage import objects

# Of the TFDS builder, by which TFDS names its folder.
RECORDS_NAME = "ct_slices"
RECORDS_VERSION = "2.0.0"

SETTINGS_FILE = "dataset.json"
SPLIT_FILE = "split.json"
_FOLD_FILE = "fold.json"

# The order of records: so many of a shard, then of the next, of so many shards by turns (TFDS's own
# default). Both local records and those in a bucket are read so.
_SHARDS_BY_TURNS, _RECORDS_A_TURN = 16, 16

# Shards in a bucket that are copied at once, ahead of the reader.
_FETCHED_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """A folder that `prepare` wrote.

    Attributes:
      path: the folder.
      labels: names of the classes, in order.
      ct: the settings of the preprocessing.
      seed: of the split and the fill.
      persons: split -> patient_ids.
      diagnoses: patient_id -> label and site ("" where the cohort names none), of everybody.
      digests_checksum: of the file with the digests of everybody's slices.
      n_slices: split -> number of examples.
      fingerprint: another one means other persons, splits, labels or settings.
      records: the folder that holds the records: `path`, or what a fold was made from.
      is_fold: whether `persons` and their splits are a selection of the records' own (see `fold`).
      address: of the folder in a bucket that `path` is a copy of; "": `path` itself was opened.
      shards: of records in a bucket; None: the records are local.
    """

    path: Path
    labels: tuple[str, ...]
    ct: CtSettings
    seed: int
    persons: Mapping[str, tuple[str, ...]]
    diagnoses: Mapping[str, tuple[str, str]]
    digests_checksum: str
    n_slices: Mapping[str, int]
    fingerprint: str
    records: Path
    is_fold: bool = False
    address: str = ""
    shards: ShardCache | None = None

    @property
    def records_name(self) -> str:
        """Where the records are, as the user calls it."""
        return self.shards.address if self.shards else str(self.records)

    @property
    def name(self) -> str:
        """Where the data set is, as the user calls it."""
        return self.address or str(self.path)

    @property
    def location(self) -> str:
        """Where `open_data` finds it from any working folder: an absolute path, or an address."""
        return self.address or str(self.path.resolve())

    @property
    def builder(self) -> tfds.core.DatasetBuilder:
        """TFDS's reader of the records.

        Raises:
          InputError: what TFDS wrote of them is gone or damaged.
        """
        folder = records_folder(self.records)
        others = sorted(path.name for path in folder.parent.glob("*.*.*"))
        if others and RECORDS_VERSION not in others:
            raise InputError(
                f"{self.records} has records of the layout {others[-1]}, and this version of "
                f"drenet_jax reads {RECORDS_VERSION}; prepare it again."
            )
        try:
            return tfds.builder_from_directory(folder)
        except tfds.core.DatasetNotFoundError as error:
            raise InputError(f"{self.records} holds no records; run prepare again.") from error
        # JSON and protobuf have errors of their own for a damaged file.
        except Exception as error:
            raise InputError(
                f"{folder / 'dataset_info.json'} or {folder / 'features.json'} is damaged "
                f"({one_line(error)}); run prepare again, or restore the data set from a copy."
            ) from error

    @functools.cached_property
    def digests(self) -> SliceDigests:
        """Of the slices of everybody in the records, of a fold too.

        Raises:
          InputError: their file is missing or damaged.
        """
        folder = records_folder(self.records)
        return SliceDigests.read(folder, list(self.diagnoses), self.digests_checksum)

    def stored_records(self, split: str, decoders: Any) -> tf.data.Dataset:
        """The records of a split of the data set as it was prepared, in a fixed order.

        Args:
          split: as prepared, whatever `persons` says.
          decoders: as in TFDS's `as_dataset`.
        """
        builder = self.builder
        if self.shards is None:
            return builder.as_dataset(
                split=split,
                shuffle_files=False,
                decoders=decoders,
                read_config=tfds.ReadConfig(
                    interleave_cycle_length=_SHARDS_BY_TURNS,
                    interleave_block_length=_RECORDS_A_TURN,
                ),
            )
        features, shards = builder.info.features, self.shards
        if isinstance(decoders, tfds.decode.PartialDecoding):
            features, decoders = decoders.extract_features(features), decoders.decoders

        @tf.autograph.experimental.do_not_convert
        def fetch(path: tf.Tensor) -> tf.Tensor:
            local = tf.numpy_function(
                lambda path: os.fsencode(shards.fetch(path.decode())), [path], tf.string
            )
            return tf.ensure_shape(local, ())

        paths = [os.fspath(path) for path in builder.info.splits[split].filepaths]
        local = (
            tf.data.Dataset.from_tensor_slices(paths)
            .map(fetch, num_parallel_calls=_FETCHED_AT_ONCE, deterministic=True)
            .prefetch(_FETCHED_AT_ONCE)
        )
        examples = local.interleave(
            tf.data.TFRecordDataset,
            cycle_length=_SHARDS_BY_TURNS,
            block_length=_RECORDS_A_TURN,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return examples.map(
            lambda example: features.deserialize_example(example, decoders=decoders),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    def fold(
        self, persons: Mapping[str, Sequence[str]], n_slices: Mapping[str, int]
    ) -> PreparedData:
        """The same records with other splits.

        Args:
          persons: split -> patient_ids, of any split here; a split may be left out.
          n_slices: split -> number of their examples (see `folds.persons_of_records`).

        Raises:
          InputError: a person is in two splits, or is not in the data set.
        """
        persons = {split: tuple(persons.get(split, ())) for split in SPLITS}
        check_split(persons, f"a fold of {self.path}")
        known = {person for split in SPLITS for person in self.persons[split]}
        unknown = {person for split in SPLITS for person in persons[split]} - known
        if unknown:
            raise InputError(
                f"a fold of {self.path} names the person {min(unknown)!r}, who is not in it; "
                "make the fold anew."
            )
        return dataclasses.replace(
            self,
            persons={split: tuple(persons[split]) for split in SPLITS},
            n_slices={split: n_slices.get(split, 0) for split in SPLITS},
            fingerprint=_fingerprint({"fold_of": self.fingerprint}, persons),
            is_fold=True,
        )


def records_folder(folder: Path) -> Path:
    """Where TFDS keeps its files; the digests lie beside them."""
    return folder / RECORDS_NAME / RECORDS_VERSION


def write_fold(folder: Path, data: PreparedData) -> None:
    """Writes a fold as a folder that `open_data` opens; the records stay where they are.

    Args:
      folder: made if needed; a fold that is there gives way.
      data: from `PreparedData.fold`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SPLIT_FILE, {split: list(data.persons[split]) for split in SPLITS})
    # Last: `open_data` accepts the folder only with it.
    write_json(
        folder / _FOLD_FILE,
        {
            "fold_of": data.location,
            "fingerprint": data.fingerprint,
            "n_slices": dict(data.n_slices),
        },
    )


def open_data(folder: str | os.PathLike[str]) -> PreparedData:
    """Opens what `prepare` or `write_fold` wrote, and checks that no person is in two splits.

    Raises:
      InputError: `folder` is not such a folder, or a person is in two splits.
    """
    if not os.fspath(folder):
        raise InputError("--config.data.dir is not set; give the --out of prepare.")
    shards, address = None, ""
    if objects.is_remote(folder):
        shards = open_shard_cache(os.fspath(folder))
        folder, address = shards.local, shards.address
    folder = Path(folder)
    try:
        is_fold, is_whole = (
            os.path.lexists(folder / name) and (folder / name).is_file()
            for name in (_FOLD_FILE, SETTINGS_FILE)
        )
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({error.strerror}); check --config.data.dir or --data."
        ) from error
    if is_fold:
        return _open_fold(folder, address)
    if not is_whole:
        raise InputError(
            f"{folder} is not a folder that prepare wrote (it has no {SETTINGS_FILE}); "
            "give the --out of prepare as --config.data.dir to train, or as --data to evaluate."
        )
    settings = _read_json(folder / SETTINGS_FILE)
    persons = _read_json(folder / SPLIT_FILE)
    try:
        check_split(persons, str(folder / SPLIT_FILE))
        data = PreparedData(
            path=folder,
            labels=tuple(settings["labels"]),
            ct=CtSettings.from_dict(settings["ct"]),
            seed=settings["seed"],
            persons={split: tuple(persons[split]) for split in SPLITS},
            diagnoses={
                person: tuple(diagnosis) for person, diagnosis in settings["diagnoses"].items()
            },
            digests_checksum=settings["digests"],
            n_slices=dict(settings["n_slices"]),
            fingerprint=_fingerprint(settings, persons),
            records=folder,
            address=address,
            shards=shards,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} was written by another version of drenet_jax ({error}); run prepare again."
        ) from error
    _check_records(data)
    return data


def _open_fold(folder: Path, address: str) -> PreparedData:
    fold_json, persons = _read_json(folder / _FOLD_FILE), _read_json(folder / SPLIT_FILE)
    try:
        source, n_slices = fold_json["fold_of"], fold_json["n_slices"]
        fingerprint = fold_json["fingerprint"]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{folder / _FOLD_FILE} is damaged ({error}); cross-validate again in a new --workdir."
        ) from error
    data = open_data(source)
    fold = data.fold(persons, n_slices)
    if fold.fingerprint != fingerprint:
        raise InputError(
            f"{data.path} was prepared anew since {folder} was made from it; "
            "cross-validate again in a new --workdir."
        )
    return dataclasses.replace(fold, path=folder, address=address)


def read_all(data: PreparedData, records: tf.data.Dataset) -> Iterator[Any]:
    """The elements of a dataset that is made of the records, as NumPy arrays.

    Raises:
      InputError: a file of the records is damaged or gone.
    """
    try:
        yield from tfds.as_numpy(records)
    except tf.errors.OpError as error:
        if data.shards and data.shards.error:
            raise data.shards.error from error
        where = _damaged_shard(data) or data.records_name
        raise InputError(
            f"{where} is damaged ({one_line(error)}); run prepare again, or restore the data set "
            "from a copy."
        ) from error


def _damaged_shard(data: PreparedData) -> Path | None:
    """The first file of local records that is gone, cut or changed."""
    if data.shards:
        return None
    for info in data.builder.info.splits.values():
        for path, n in zip(info.filepaths, info.shard_lengths, strict=True):
            try:
                count = sum(1 for _ in tf.data.TFRecordDataset(os.fspath(path)))
            except tf.errors.OpError:
                return Path(path)
            if count != n:
                return Path(path)
    return None


# Of a TFRecord beside the example: its length, and checksums of the length and of the example.
_FRAME_BYTES = 16


def _check_records(data: PreparedData) -> None:
    """Raises InputError unless the files of the records are as long as they were written.

    A file that was cut between two records is whole to a reader.
    """
    splits = data.builder.info.splits
    for split in SPLITS:
        n_stored = splits[split].num_examples if split in splits else 0
        if n_stored != data.n_slices[split]:
            raise InputError(
                f"{data.path} holds {n_stored} {split} slices instead of {data.n_slices[split]}; "
                "run prepare again."
            )
    for split, info in splits.items():
        try:
            size = sum(_size(data, path) for path in info.filepaths)
        except OSError as error:
            raise InputError(
                f"{error.filename} cannot be read ({error.strerror}); run prepare again, or "
                "restore the data set from a copy."
            ) from error
        wanted = info.num_bytes + _FRAME_BYTES * info.num_examples
        if size != wanted:
            where = _damaged_shard(data) or data.records_name
            raise InputError(
                f"{where} is damaged: the records of {split} have {size} bytes instead of "
                f"{wanted}; run prepare again, or restore the data set from a copy."
            )


def _size(data: PreparedData, path: os.PathLike[str]) -> int:
    if data.shards is None:
        return os.stat(path).st_size
    name = Path(path).relative_to(data.records).as_posix()
    return data.shards.sizes.get(name, 0)


def _fingerprint(settings: Mapping[str, Any], persons: Mapping[str, Any]) -> str:
    text = json.dumps([settings, persons], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); run prepare again.") from error
