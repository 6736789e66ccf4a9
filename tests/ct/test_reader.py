"""A decoder that crashes or hangs costs one file, not the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drenet_jax.ct.preprocess import prepare_person
from drenet_jax.ct.reader import TIMEOUT_S, Reader
from drenet_jax.ct.sources import CtError


@pytest.fixture
def harmful(monkeypatch, tmp_path):
    """Makes the child's decoder crash or hang on files whose pixels hold a marker."""
    site = tmp_path / "site"
    site.mkdir()

    def make(what: str) -> None:
        (site / "sitecustomize.py").write_text(
            "import os, time\n"
            "from drenet_jax.ct.dicom import pixels as dicom\n"
            "read_hu = dicom.read_hu\n"
            "def harmful(dicom_slice, dataset):\n"
            "    if dataset.get('PixelPaddingValue') == -32000:\n"
            f"        {what}\n"
            "    return read_hu(dicom_slice, dataset)\n"
            "dicom.read_hu = harmful\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(site))

    return make


@pytest.fixture
def folder(write_series, write_slice, chest_hu):
    folder = write_series([1.0] * 5)
    write_slice(folder / "002.dcm", chest_hu(), 10.0, PixelPaddingValue=-32000)
    return folder


def children() -> set[int]:
    """This process's child processes, zombies included."""
    files = Path("/proc/self/task").glob("*/children")
    return {int(pid) for file in files for pid in file.read_text().split()}


def test_the_result_is_that_of_this_process(folder, ct_settings):
    with Reader() as reader:
        there = reader.prepare([folder], ct_settings, with_hu=True)
    here = prepare_person([folder], ct_settings, with_hu=True)
    assert there.excluded == here.excluded
    assert [slice_.name for slice_ in there.picked] == [slice_.name for slice_ in here.picked]
    for slice_, other in zip(there.kept, here.kept, strict=True):
        np.testing.assert_array_equal(slice_.image, other.image)
        np.testing.assert_array_equal(slice_.source_mask, other.source_mask)
        np.testing.assert_array_equal(slice_.hu, other.hu)


def test_a_refusal_comes_as_it_is(tmp_path, ct_settings):
    with Reader() as reader:
        with pytest.raises(CtError) as there:
            reader.prepare([tmp_path], ct_settings)
        child = reader._child.pid
        with pytest.raises(CtError):
            reader.prepare([tmp_path / "gone"], ct_settings)
        assert reader._child.pid == child
    with pytest.raises(CtError) as here:
        prepare_person([tmp_path], ct_settings)
    assert type(there.value) is type(here.value)
    assert str(there.value) == str(here.value)
    assert there.value.why == here.value.why


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("os.kill(os.getpid(), 11)", "a file on which its decoder crashed"),
        ("time.sleep(99)", "a file that takes too long to read"),
    ],
)
def test_a_crash_or_a_hang_costs_one_slice(what, why, harmful, folder, ct_settings):
    harmful(what)
    before, n_files = children(), len(os.listdir("/proc/self/fd"))
    # Time enough for the child to start on a busy machine.
    with Reader(timeout_s=4) as reader:
        prepared = reader.prepare([folder], ct_settings)
        # The child that crashed or was killed is gone, and nothing of it is left.
        assert children() - before == {reader._child.pid}
    assert children() == before
    # Others may be closed meanwhile, when what earlier tests held is collected.
    assert len(os.listdir("/proc/self/fd")) <= n_files
    assert [slice_.name for slice_ in prepared.kept] == ["000.dcm", "001.dcm", "003.dcm", "004.dcm"]
    # The others' places are what they were: the slice is known, though not its pixels.
    assert [slice_.index for slice_ in prepared.kept] == [0, 1, 3, 4]
    assert [(file.name, file.why) for file in prepared.excluded] == [("002.dcm", why)]


def test_a_child_that_is_killed_once_costs_nothing(harmful, folder, ct_settings, tmp_path):
    mark = str(tmp_path / "killed")
    harmful(
        f"if not os.path.exists({mark!r}): open({mark!r}, 'w').close(), os.kill(os.getpid(), 9)"
    )
    with Reader() as reader:
        prepared = reader.prepare([folder], ct_settings)
    assert os.path.exists(mark)
    assert len(prepared.kept) == 5
    assert not prepared.excluded


def test_a_file_on_which_the_child_is_killed_again_is_left_out(harmful, folder, ct_settings):
    harmful("os.kill(os.getpid(), 9)")
    with Reader() as reader:
        prepared = reader.prepare([folder], ct_settings)
    assert [file.name for file in prepared.excluded] == ["002.dcm"]


def test_a_folder_of_crashes_is_given_up(harmful, tmp_path, write_slice, chest_hu, ct_settings):
    harmful("os.abort()")
    for i in range(4):
        write_slice(tmp_path / "bad" / f"{i}", chest_hu(), i, PixelPaddingValue=-32000)
    with Reader() as reader:
        prepared = reader.prepare([tmp_path / "bad"], ct_settings)
    assert not prepared.kept
    assert len(prepared.excluded) == 4


def test_our_own_mistakes_keep_their_traceback(harmful, folder, ct_settings):
    harmful("raise ZeroDivisionError('ours')")
    with Reader() as reader, pytest.raises(RuntimeError, match="ZeroDivisionError: ours"):
        reader.prepare([folder], ct_settings)


def test_a_child_that_cannot_start_is_reported(monkeypatch, tmp_path, folder, ct_settings):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nprint('no', file=open(2, 'w'))\nos._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Reader() as reader,
        pytest.raises(RuntimeError, match="the process that reads images ended"),
    ):
        reader.prepare([folder], ct_settings)


def test_the_child_ends_with_its_parent(folder):
    code = (
        "import os, signal, sys\n"
        "from drenet_jax.ct.reader import Reader\n"
        "reader = Reader()\n"
        "reader.start()\n"
        "print(reader._child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    child = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        with open(f"/proc/{child}/stat") as stat:
            if stat.read().split()[2] == "Z":
                return
        time.sleep(0.1)
    pytest.fail("the child is still there")


def test_a_caller_may_give_up_and_the_next_call_gets_its_own_answer(harmful, folder, ct_settings):
    class Enough(Exception):
        pass

    end = time.monotonic() + 1.5

    def tick() -> None:
        if time.monotonic() > end:
            raise Enough

    harmful("time.sleep(99)")
    with Reader() as reader:
        with pytest.raises(Enough):
            reader.prepare([folder], ct_settings, tick=tick)
        assert time.monotonic() < end + 2
        with pytest.raises(CtError, match="does not exist"):
            reader.prepare([folder / "gone"], ct_settings)


def test_after_an_interruption_the_next_call_gets_its_own_answer(harmful, folder, ct_settings):
    def interrupt(*_):
        raise KeyboardInterrupt

    harmful("time.sleep(99)")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Reader() as reader:
            signal.setitimer(signal.ITIMER_REAL, 1.5)
            with pytest.raises(KeyboardInterrupt):
                reader.prepare([folder], ct_settings)
            with pytest.raises(CtError, match="does not exist"):
                reader.prepare([folder / "gone"], ct_settings)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_child_that_was_killed_between_two_persons_is_replaced(folder, ct_settings):
    with Reader() as reader:
        for _ in range(2):
            assert reader.prepare([folder], ct_settings).kept
            reader._child.kill()
            reader._child.wait()


def test_the_child_has_the_memory_and_the_temporary_folder_it_is_given(
    monkeypatch, tmp_path, folder, ct_settings
):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import resource, tempfile\n"
        "from drenet_jax.ct import preprocess\n"
        "from drenet_jax.ct.prepared_series import PreparedPerson\n"
        "def prepare_person(*args, **others):\n"
        "    limits = map(str, resource.getrlimit(resource.RLIMIT_AS))\n"
        "    return PreparedPerson((), (), (tempfile.gettempdir(), *limits), 0)\n"
        "preprocess.prepare_person = prepare_person\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    with Reader(memory_bytes=5 << 30, scratch=tmp_path) as reader:
        limit = str(5 << 30)
        assert reader.prepare([folder], ct_settings).notes == (str(tmp_path), limit, limit)


def test_larger_files_may_take_longer(tmp_path):
    file = tmp_path / "a.zip"
    file.touch()
    os.truncate(file, 200 << 20)
    reader = Reader()
    assert reader._timeout_for(None) == TIMEOUT_S
    assert reader._timeout_for((str(file), "pixels")) == pytest.approx(TIMEOUT_S + 10)
    within = str(file / "a" / "b.nii")
    assert reader._timeout_for((within, "pixels")) == pytest.approx(TIMEOUT_S + 10)
