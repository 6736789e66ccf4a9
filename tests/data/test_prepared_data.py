"""Records that were cut, changed or lost on the disk: one sentence that names the file."""

from __future__ import annotations

import itertools
import shutil
import struct

import pytest

from drenet_jax.data.batches import split_batches, train_batches
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.training.loop import train_and_evaluate


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of `prepared`, and the shards of a split."""
    shutil.copytree(prepared, tmp_path / "data")

    def shards(split):
        return sorted((tmp_path / "data").glob(f"ct_slices/*/ct_slices-{split}.tfrecord-*"))

    return tmp_path / "data", shards


def _records(content):
    """Where the records of a TFRecord file begin, and where the last ends."""
    places = [0]
    while places[-1] < len(content):
        (length,) = struct.unpack_from("<Q", content, places[-1])
        places.append(places[-1] + length + 16)
    return places


def _cut(path):
    path.write_bytes(path.read_bytes()[:-5])


def _cut_between_records(path):
    content = path.read_bytes()
    path.write_bytes(content[: _records(content)[-2]])


def _empty(path):
    path.write_bytes(b"")


def _gone(path):
    path.unlink()


def _twice(path):
    path.write_bytes(path.read_bytes() * 2)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("damage", [_cut, _cut_between_records, _empty, _gone, _twice])
def test_a_file_of_another_length_is_found_when_the_data_are_opened(damage, split, copied):
    folder, shards = copied
    path = shards(split)[1]
    damage(path)
    with pytest.raises(InputError) as refusal:
        open_data(folder)
    assert str(refusal.value).startswith(str(path))
    assert "run prepare again, or restore the data set from a copy." in str(refusal.value)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_broken_description_of_the_records_is_reported(name, content, copied):
    folder, _ = copied
    (path,) = folder.glob(f"ct_slices/*/{name}")
    path.write_text(content)
    with pytest.raises(InputError, match="run prepare again"):
        open_data(folder)


def test_records_of_another_layout_are_refused_with_what_to_do(copied):
    folder, _ = copied
    (current,) = (folder / "ct_slices").iterdir()
    current.rename(current.with_name("1.1.0"))
    wanted = "has records of the layout 1.1.0, and .* reads 2.0.0; prepare it again"
    with pytest.raises(InputError, match=wanted):
        open_data(folder)


def _flip(path):
    """Changes a byte of a picture: the length stays, the checksum does not fit any more."""
    content = bytearray(path.read_bytes())
    first, second = _records(bytes(content))[:2]
    content[(first + second) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_changed_record_is_found_when_it_is_read(copied):
    folder, shards = copied
    path = shards("validation")[3]
    _flip(path)
    data = open_data(folder)
    with pytest.raises(InputError) as refusal:
        list(split_batches(data, "validation", batch_size=8, fill="train"))
    assert str(refusal.value).startswith(f"{path} is damaged (")
    assert "\n" not in str(refusal.value)
    # Of the other splits every slice is there still.
    n = sum(
        len(split_batch["label"])
        for split_batch in split_batches(data, "test", batch_size=8, fill="train")
    )
    assert n == data.n_slices["test"]


def test_training_and_evaluation_stop_at_a_changed_record(copied, tiny_config, trained, tmp_path):
    folder, shards = copied
    path, other = shards("train")[5], shards("test")[2]
    _flip(path)
    _flip(other)
    tiny_config.data.dir = str(folder)
    tiny_config.train.epochs = 1
    with pytest.raises(InputError, match=f"^{path} is damaged"):
        train_and_evaluate(tiny_config, tmp_path / "run")
    (tmp_path / "out").mkdir()
    # The first damaged file is named, whichever was read.
    with pytest.raises(InputError, match="is damaged"):
        evaluate_split(trained, "test", tmp_path / "out", str(folder))


def test_a_record_less_than_counted_is_no_shorter_epoch(copied):
    """Past the check of the lengths, as where a file shrinks while it is read."""
    folder, shards = copied
    data = open_data(folder)
    _cut_between_records(shards("train")[0])
    batches = train_batches(
        data,
        batch_size=8,
        micro_batches=1,
        first_step=0,
        fill="train",
        shuffle_buffer=1,
        seed=0,
    )
    # Well into the second epoch.
    some = itertools.islice(batches, 2 * data.n_slices["train"] // 8)
    with pytest.raises(InputError, match="is damaged"):
        list(some)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_the_commands_say_so(name, copied, command, trained, tmp_path):
    folder, shards = copied
    path = shards("train" if name == "train" else "test")[0]
    damage = _empty if name == "train" else _flip
    damage(path)
    flags = {
        "train": [
            "--config=configs/drenet.py",
            f"--config.data.dir={folder}",
            f"--workdir={tmp_path / 'out'}",
        ],
        "evaluate": [f"--workdir={trained}", f"--data={folder}", f"--out={tmp_path / 'out'}"],
    }[name]
    done = command(name, *flags)
    assert done.returncode == 2, done.stderr
    (line,) = [part for part in done.stderr.splitlines() if part.startswith("error: ")]
    assert line.startswith(f"error: {path} is damaged")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
