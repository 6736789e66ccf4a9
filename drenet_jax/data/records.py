"""The prepared data set on disk: sharded TFRecords, and the files that go with them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf
import tensorflow_datasets as tfds

from drenet_jax.ct.settings import CtSettings
from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.duplicates import SliceDigests
from drenet_jax.data.split import check_split
from drenet_jax.errors import InputError

if TYPE_CHECKING:
    from drenet_jax.data.beam import Beam

# Shards are kept near this size: a worker of Beam holds one in memory while it writes it, and one
# is read again in a second. And there are at least so many that 16 hosts or readers have work.
SHARD_BYTES = 128 << 20
LEAST_SHARDS = 16

_VERSION = "1.1.0"
_SETTINGS_FILE = "dataset.json"
_SPLIT_FILE = "split.json"
_FOLD_FILE = "fold.json"

tfds.disable_progress_bar()


class DeterministicExampleWriter(tfds.core.ExampleWriter):
    """Writes the features of every example in the order of their names.

    TFDS leaves the order to protobuf, where it differs from process to process.
    """

    def write(self, path: os.PathLike[str], examples: Iterable[tuple[Any, bytes]]) -> Any:
        return super().write(
            path, ((key, _in_order_of_names(example)) for key, example in examples)
        )


def _in_order_of_names(example: bytes) -> bytes:
    return tf.train.Example.FromString(example).SerializeToString(deterministic=True)


class CtSlices(tfds.core.GeneratorBasedBuilder):
    """Kept slices of chest CT series: lung crops with the blank filled, and lung masks."""

    name = "ct_slices"
    VERSION = tfds.core.Version(_VERSION)
    # Without it, TFDS searches the package's files for a description.
    pkg_dir_path = None

    def __init__(
        self,
        *,
        data_dir: os.PathLike[str],
        labels: tuple[str, ...],
        image_size_px: int,
        examples: Mapping[str, Callable[[], Any]],
    ):
        """A builder of the given examples.

        Args:
          data_dir: the folder under which `ct_slices/1.1.0` is made.
          labels: names of the classes, in order.
          image_size_px: height and width of the crops.
          examples: split -> a function that gives its examples with their keys (see `staging`): an
            iterator, or the Beam transform that makes them.
        """
        self._labels = labels
        self._image_size_px = image_size_px
        self._examples = examples
        super().__init__(data_dir=data_dir, file_format="tfrecord")

    def _info(self) -> tfds.core.DatasetInfo:
        png = (self._image_size_px, self._image_size_px, 1)
        return self.dataset_info_from_configs(
            description="Lung crops of chest CT slices, prepared for DRENet.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=png, encoding_format="png"),
                    "lung_mask": tfds.features.Image(shape=png, encoding_format="png"),
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

    @property
    def builder(self) -> tfds.core.DatasetBuilder:
        """TFDS's reader of the records.

        Raises:
          InputError: what TFDS wrote of them is gone or damaged.
        """
        folder = _records_folder(self.records)
        try:
            return tfds.builder_from_directory(folder)
        except tfds.core.DatasetNotFoundError as error:
            raise InputError(f"{self.records} holds no records; run prepare again.") from error
        # JSON and protobuf have errors of their own for a damaged file.
        except Exception as error:
            raise InputError(
                f"{folder / 'dataset_info.json'} or {folder / 'features.json'} is damaged "
                f"({_one_line(error)}); run prepare again, or restore the data set from a copy."
            ) from error

    @functools.cached_property
    def digests(self) -> SliceDigests:
        """Of the slices of everybody in the records, of a fold too.

        Raises:
          InputError: their file is missing or damaged.
        """
        folder = _records_folder(self.records)
        return SliceDigests.read(folder, list(self.diagnoses), self.digests_checksum)

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


def _records_folder(folder: Path) -> Path:
    """Where TFDS keeps its files; the digests lie beside them."""
    return folder / CtSlices.name / _VERSION


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
    builder = CtSlices(
        data_dir=folder, labels=labels, image_size_px=ct.image_size_px, examples=filled
    )
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
    _write_json(folder / _SPLIT_FILE, {split: persons[split] for split in SPLITS})
    diagnosed = [person for split in SPLITS for person in sorted(persons[split])]
    assert digests.persons == tuple(diagnosed)
    checksum = digests.write(_records_folder(folder))
    _write_json(
        folder / _SETTINGS_FILE,
        {
            "labels": list(labels),
            "ct": ct.to_dict(),
            "seed": seed,
            "n_slices": {split: n_slices[split] for split in SPLITS},
            "diagnoses": {item: list(diagnoses[item]) for item in diagnosed},
            "digests": checksum,
        },
    )


def write_fold(folder: Path, data: PreparedData) -> None:
    """Writes a fold as a folder that `open_data` opens; the records stay where they are.

    Args:
      folder: made if needed; a fold that is there gives way.
      data: from `PreparedData.fold`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / _SPLIT_FILE, {split: list(data.persons[split]) for split in SPLITS})
    # Last: `open_data` accepts the folder only with it.
    _write_json(
        folder / _FOLD_FILE,
        {
            "fold_of": str(data.path.resolve()),
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
    folder = Path(folder)
    try:
        is_fold, is_whole = (
            os.path.lexists(folder / name) and (folder / name).is_file()
            for name in (_FOLD_FILE, _SETTINGS_FILE)
        )
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({error.strerror}); check --config.data.dir or --data."
        ) from error
    if is_fold:
        return _open_fold(folder)
    if not is_whole:
        raise InputError(
            f"{folder} is not a folder that prepare wrote (it has no {_SETTINGS_FILE}); "
            "give the --out of prepare as --config.data.dir to train, or as --data to evaluate."
        )
    settings = _read_json(folder / _SETTINGS_FILE)
    persons = _read_json(folder / _SPLIT_FILE)
    try:
        check_split(persons, str(folder / _SPLIT_FILE))
        data = PreparedData(
            path=folder,
            labels=tuple(settings["labels"]),
            ct=CtSettings.from_dict(settings["ct"]),
            seed=settings["seed"],
            persons={split: tuple(persons[split]) for split in SPLITS},
            diagnoses={item: tuple(diagnosis) for item, diagnosis in settings["diagnoses"].items()},
            digests_checksum=settings["digests"],
            n_slices=dict(settings["n_slices"]),
            fingerprint=_fingerprint(settings, persons),
            records=folder,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} was written by another version of drenet_jax ({error}); run prepare again."
        ) from error
    _check_counts(data)
    _check_sizes(data)
    return data


def _open_fold(folder: Path) -> PreparedData:
    fold_json, persons = _read_json(folder / _FOLD_FILE), _read_json(folder / _SPLIT_FILE)
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
    return dataclasses.replace(fold, path=folder)


def read_all(data: PreparedData, records: tf.data.Dataset) -> Iterator[Any]:
    """The elements of a dataset that is made of the records, as NumPy arrays.

    Raises:
      InputError: a file of the records is damaged or gone.
    """
    try:
        yield from tfds.as_numpy(records)
    except tf.errors.OpError as error:
        where = _damaged_shard(data) or data.records
        raise InputError(
            f"{where} is damaged ({_one_line(error)}); run prepare again, or restore the data set "
            "from a copy."
        ) from error


def _damaged_shard(data: PreparedData) -> Path | None:
    """The first file of the records that is gone, cut or changed."""
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


def _check_sizes(data: PreparedData) -> None:
    """Raises InputError unless the files of the records are as long as they were written.

    A file that was cut between two records is whole to a reader.
    """
    for split, info in data.builder.info.splits.items():
        sizes = []
        for path in map(Path, info.filepaths):
            try:
                sizes.append(path.stat().st_size)
            except OSError as error:
                raise InputError(
                    f"{path} cannot be read ({error.strerror}); run prepare again, or restore the "
                    "data set from a copy."
                ) from error
        wanted = info.num_bytes + _FRAME_BYTES * info.num_examples
        if sum(sizes) != wanted:
            where = _damaged_shard(data) or data.records
            raise InputError(
                f"{where} is damaged: the records of {split} have {sum(sizes)} bytes instead of "
                f"{wanted}; run prepare again, or restore the data set from a copy."
            )


def _one_line(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", None) or error).split()).rstrip(".")
    return text[:200] or type(error).__name__


def _check_counts(data: PreparedData) -> None:
    splits = data.builder.info.splits
    for split in SPLITS:
        n_stored = splits[split].num_examples if split in splits else 0
        if n_stored != data.n_slices[split]:
            raise InputError(
                f"{data.path} holds {n_stored} {split} slices instead of {data.n_slices[split]}; "
                "run prepare again."
            )


def _fingerprint(settings: Mapping[str, Any], persons: Mapping[str, Any]) -> str:
    text = json.dumps([settings, persons], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); run prepare again.") from error
