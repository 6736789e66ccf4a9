"""Folders in buckets are complete or not there, whatever happens on the way."""

from __future__ import annotations

import pytest

from drenet_jax.errors import InputError, StorageError
from drenet_jax.storage import folders, lease, objects, stand_ins
from drenet_jax.storage.mirror import open_mirror
from drenet_jax.storage.work_folder import open_work_folder

pytestmark = pytest.mark.cloud

FILES = {"a.txt": b"a", "sub/b.bin": bytes(100_000), "sub/c": b""}


def _fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_that_was_made_is_there_and_is_not_made_twice(folder, tmp_path):
    with stand_ins.output(folder, flag="--out") as local:
        local.mkdir()
        _fill(local, FILES)
        assert stand_ins.shown(f"see {local}/a.txt") == f"see {folder}/a.txt"
    folders.download_folder(folder, tmp_path / "copy", flag="--data")
    assert _files(tmp_path / "copy") == FILES
    with (
        pytest.raises(InputError, match=r"exists already; name a new folder"),
        stand_ins.output(folder, flag="--out"),
    ):
        pass


def test_weights_that_were_written_at_once_are_read_like_a_run(folder):
    with stand_ins.output(folder, flag="--out") as local:
        local.mkdir()
        _fill(local, _checkpoint(0))
    with stand_ins.run(folder, flag="--workdir") as local:
        assert _files(local) == _checkpoint(0)


def test_one_file_is_copied_as_one_object(folder):
    address = objects.child(folder, "cohort.csv")
    with stand_ins.output(address, flag="--out") as local:
        local.write_bytes(b"a,b\n")
    assert objects.read(address) == b"a,b\n"
    assert list(objects.sizes(folder)) == ["cohort.csv"]
    with (
        pytest.raises(InputError, match=r"exists already; name a new one"),
        stand_ins.output(address, flag="--out"),
    ):
        pass


def _write(address):
    with stand_ins.output(address, flag="--out") as local:
        local.mkdir()
        _fill(local, FILES)


@pytest.mark.parametrize("stays_away", [False, True])
def test_what_a_failed_call_has_written_is_no_folder_and_gives_way(
    folder, stays_away, monkeypatch, tmp_path
):
    upload, n = objects.upload, []

    def away(*args):
        raise StorageError("it is away.")

    def fail_at_the_third(path, address):
        n.append(address)
        if len(n) == 3:
            if stays_away:
                patch.setattr(objects, "remove", away)
            away()
        upload(path, address)

    monkeypatch.setattr(lease, "EXPIRES_S", 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(objects, "upload", fail_at_the_third)
        with pytest.raises(StorageError, match=r"it is away"):
            _write(folder)
    with pytest.raises(InputError, match="was not written to its end" if stays_away else "is not"):
        folders.read_contents(folder, flag="--data")
    _write(folder)
    folders.download_folder(folder, tmp_path / "copy", flag="--data")
    assert _files(tmp_path / "copy") == FILES


def test_a_folder_of_somebody_else_is_not_written_into(folder):
    objects.write(objects.child(folder, "theirs.txt"), b"")
    with (
        pytest.raises(InputError, match=r"holds objects that drenet_jax did not write"),
        stand_ins.output(folder, flag="--out"),
    ):
        pass
    assert list(objects.sizes(folder)) == ["theirs.txt"]


def test_a_folder_of_which_an_object_is_gone_is_refused(folder, tmp_path):
    with stand_ins.output(folder, flag="--out") as local:
        local.mkdir()
        _fill(local, FILES)
    objects.remove(objects.child(folder, "a.txt"))
    with pytest.raises(InputError, match=rf"{folder}/a.txt is gone; make the folder anew"):
        folders.download_folder(folder, tmp_path / "copy", flag="--data")


def test_what_is_not_there_is_refused_by_its_flag(folder, tmp_path):
    for use in (stand_ins.run, stand_ins.copied):
        with (
            pytest.raises(InputError, match=rf"--workdir={folder} is not there; check the address"),
            use(folder, flag="--workdir"),
        ):
            pass


def _checkpoint(step):
    return {f"checkpoints/{step}/weights/0": b"w%d" % step, f"checkpoints/{step}/meta": b"m"}


def test_a_run_is_found_as_of_its_last_complete_checkpoint(folder, monkeypatch, tmp_path):
    def away(held):
        raise StorageError("away.")

    with open_mirror(folder, writes=True, use="trained") as mirror:
        for step in (4, 8):
            _fill(mirror.local, _checkpoint(step) | {"metrics.jsonl": b"line\n" * step})
            mirror.push_when(lambda: None, step)
        mirror.wait()
        # A third one whose upload is cut off before it is committed.
        with monkeypatch.context() as patch:
            patch.setattr(lease.Lease, "check", away)
            _fill(mirror.local, _checkpoint(12) | {"metrics.jsonl": b"line\n" * 12})
            mirror.push_when(lambda: None, 12)
            with pytest.raises(StorageError):
                mirror.wait()
    monkeypatch.setenv("DRENET_JAX_CACHE", str(tmp_path / "another machine"))
    with open_mirror(folder, writes=False, use="read") as mirror:
        steps = {path.name for path in (mirror.local / "checkpoints").iterdir()}
        assert steps == {"4", "8"}


def test_old_checkpoints_are_removed_from_the_bucket_with_the_local_ones(folder):
    with open_mirror(folder, writes=True, use="trained") as mirror:
        for step in (4, 8):
            _fill(mirror.local, _checkpoint(step))
            mirror.push_when(lambda: None, step)
        mirror.wait()
        for path in sorted((mirror.local / "checkpoints" / "4").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (mirror.local / "checkpoints" / "4").rmdir()
        _fill(mirror.local, _checkpoint(12))
        mirror.push_when(lambda: None, 12)
        mirror.wait()
        steps = {name.split("/")[1] for name in objects.sizes(folder) if "checkpoints" in name}
        assert steps == {"8", "12"}


def test_another_machine_goes_on_from_what_is_complete(folder, monkeypatch, tmp_path):
    with open_mirror(folder, writes=True, use="trained") as mirror:
        _fill(mirror.local, _checkpoint(4) | {"metrics.jsonl": b"line\n"})
        mirror.push_when(lambda: None, 4)
        mirror.wait()
    # Of one that was cut off.
    objects.write(objects.child(folder, "checkpoints/8/meta"), b"m")
    monkeypatch.setenv("DRENET_JAX_CACHE", str(tmp_path / "another machine"))
    with open_mirror(folder, writes=False, use="read") as mirror:
        assert _files(mirror.local) == _checkpoint(4) | {"metrics.jsonl": b"line\n"}
        # What was changed locally gives way, but for checkpoints, which are not read again.
        _fill(mirror.local, {"metrics.jsonl": b"other", "checkpoints/8/meta": b"m", "odd": b""})
        before = objects.download
        read = []
        monkeypatch.setattr(
            objects, "download", lambda *args: (read.append(args[0]), before(*args))
        )
        mirror.pull()
        assert _files(mirror.local) == _checkpoint(4) | {"metrics.jsonl": b"line\n"}
        assert read == [f"{folder}/metrics.jsonl"]


def test_files_that_are_new_are_copied_when_a_cache_is_closed(folder, monkeypatch, tmp_path):
    objects.write(f"{folder}/a-cache", b"a")
    with stand_ins.growing(folder, name="CACHE") as local:
        assert _files(local) == {"a-cache": b"a"}
        (local / "b-cache").write_bytes(b"b")
        # Of another process meanwhile.
        objects.write(f"{folder}/c-cache", b"c")
    assert objects.sizes(folder) == {"a-cache": 1, "b-cache": 1, "c-cache": 1}
    with monkeypatch.context() as patch:
        patch.setattr(objects, "download", lambda address, path: path.write_bytes(b"c"))
        with stand_ins.growing(folder, name="CACHE") as local:
            assert _files(local) == {"a-cache": b"a", "b-cache": b"b", "c-cache": b"c"}


def test_pieces_of_a_work_folder_are_there_when_they_were_committed(folder, monkeypatch, tmp_path):
    with open_work_folder(folder, lock_file=".lock", use="cross-validated") as work:
        assert work.is_new
        _fill(work.path, {"plan.json": b"{}", "fold1/test/a": b"1", "fold2/test/a": b"2"})
        work.commit(work.path / "plan.json")
        work.commit(work.path / "fold1" / "test")
        assert work.location(work.path / "fold1" / "run") == f"{folder}/fold1/run"
    # A run within is no piece.
    objects.write(objects.child(folder, "fold2/run/checkpoints/4/.complete.json"), b"{}")
    monkeypatch.setenv("DRENET_JAX_CACHE", str(tmp_path / "another machine"))
    with open_work_folder(folder, lock_file=".lock", use="cross-validated") as work:
        assert not work.is_new
        assert _files(work.path) == {"plan.json": b"{}", "fold1/test/a": b"1"}
