"""`prepare` on Apache Beam: the same as on one machine."""

from __future__ import annotations

import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf

from drenet_jax import prepare
from drenet_jax.data.cohort_table import SPLITS, read_cohort
from drenet_jax.data.preparation import prepare_cohort
from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError

pytest.importorskip("apache_beam")

from drenet_jax.data import beam


def _records(folder, split):
    """The examples of a split as they are on disk, in order."""
    shards = sorted((folder / "ct_slices").rglob(f"ct_slices-{split}.tfrecord-*"))
    return [record.numpy() for record in tf.data.TFRecordDataset([str(shard) for shard in shards])]


def _key(record):
    feature = tf.train.Example.FromString(record).features.feature
    return feature["patient_id"].bytes_list.value[0], feature["slice_name"].bytes_list.value[0]


REPOSITORY = Path(__file__).resolve().parents[2]

_IN_PROCESSES = "--direct_running_mode=multi_processing --direct_num_workers=2"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("", id="one process"),
        pytest.param(_IN_PROCESSES, id="two processes", marks=pytest.mark.slow),
    ],
)
def on_beam(request, phantoms, tmp_path_factory, command):
    """What `prepare --runner=DirectRunner` writes of `phantoms`, with the flags of `prepared`."""
    out = tmp_path_factory.mktemp("beam") / "data"
    done = command(
        "prepare",
        f"--cohort={phantoms / 'cohort.csv'}",
        f"--out={out}",
        "--fractions=50,25,25",
        "--config.image_size_px=96",
        "--runner=DirectRunner",
        f"--pipeline_options={request.param}",
    )
    assert done.returncode == 0, done.stderr
    return out


def test_beam_puts_the_same_examples_into_the_same_splits(prepared, on_beam):
    for split in SPLITS:
        ours, theirs = _records(prepared, split), _records(on_beam, split)
        assert {_key(our): our for our in ours} == {_key(their): their for their in theirs}
        # More than was promised: the order is the same too, only the shards are cut otherwise.
        assert ours == theirs


@pytest.mark.parametrize(
    "name", ["split.json", "dataset.json", "excluded.csv", "notes.csv", "qc.html"]
)
def test_beam_writes_the_same_lists_and_pages(name, prepared, on_beam):
    assert (prepared / name).read_bytes() == (on_beam / name).read_bytes()


def test_what_beam_wrote_can_be_opened_and_nothing_else_is_there(prepared, on_beam):
    data = open_data(on_beam)
    assert data.fingerprint == open_data(prepared).fingerprint
    assert {path.name for path in on_beam.iterdir()} == {path.name for path in prepared.iterdir()}


@pytest.mark.slow
def test_the_protocol_of_flink_and_spark_and_workers_elsewhere(prepared, phantoms, tmp_path):
    """Beam's own job server, and a pool of workers that was started in another folder."""
    job_port, pool_port = _free_port(), _free_port()
    # The pool starts the first `python` in PATH.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    runners = "apache_beam.runners"
    servers = [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd="/",
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for arguments in (
            (f"{runners}.portability.local_job_service_main", "-p", str(job_port)),
            (f"{runners}.worker.worker_pool_main", f"--service_port={pool_port}"),
        )
    ]
    try:
        for port in (job_port, pool_port):
            _wait_for(port)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "drenet_jax.prepare",
                f"--cohort={os.path.relpath(phantoms / 'cohort.csv', tmp_path)}",
                "--out=out",
                "--fractions=50,25,25",
                f"--config={REPOSITORY}/configs/prepare.py",
                "--config.image_size_px=96",
                "--runner=PortableRunner",
                f"--pipeline_options=--job_endpoint=localhost:{job_port} "
                f"--environment_type=EXTERNAL --environment_config=localhost:{pool_port}",
            ],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        for server in servers:
            server.terminate()
            server.wait()
    assert done.returncode == 0, done.stderr
    for split in SPLITS:
        assert _records(prepared, split) == _records(tmp_path / "out", split)


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _wait_for(port):
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("localhost", port)).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("n_tasks", [0, 1, 2500])
def test_results_come_in_the_order_of_the_tasks(n_tasks, tmp_path):
    runner = beam.Beam("DirectRunner", "")
    tasks = ((i, 3) for i in range(n_tasks))
    assert list(runner.map_in_order(pow, tasks, tmp_path)) == [i**3 for i in range(n_tasks)]


def test_an_error_of_the_work_is_an_error_of_the_run(tmp_path):
    runner = beam.Beam("DirectRunner", "")
    with pytest.raises(Exception, match="math domain error"):
        list(runner.map_in_order(math.sqrt, [(-1.0,)], tmp_path))


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("NoSuchRunner", "", "--runner=NoSuchRunner is not known; use DirectRunner"),
        ("no.such.Runner", "", "--runner=no.such.Runner is not known"),
        ("DirectRunner", "--direct_num_workers=two", "argument --direct_num_workers: invalid int"),
        ("DirectRunner", "--job_name='a", "No closing quotation"),
        ("DirectRunner", "--no_such=1", "the DirectRunner has no option no_such"),
    ],
)
def test_a_runner_or_options_that_cannot_be_used_are_refused(runner, options, message):
    with pytest.raises(InputError, match=message):
        beam.Beam(runner, options)


def test_a_runner_that_needs_options_says_which(tmp_path):
    dataflow = beam.Beam("DataflowRunner", "")
    with pytest.raises(InputError, match=r"needs other --pipeline_options .*project"):
        list(dataflow.map_in_order(pow, [(1, 1)], tmp_path))


def test_the_direct_runner_downloads_nothing():
    # Beam's own would fetch the server Prism from GitHub and run it.
    assert beam.Beam("DirectRunner", "").tfds_runner == "FnApiRunner"
    assert beam.Beam("FlinkRunner", "").tfds_runner == "FlinkRunner"


def test_without_beam_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "drenet_jax.data.beam")
    with pytest.raises(InputError, match=r"pip install 'drenet_jax\[beam\]'"):
        prepare._beam("DirectRunner", "")


def test_options_without_a_runner_are_refused():
    with pytest.raises(InputError, match="name its --runner too"):
        prepare._beam("", "--parallelism=3")
    assert prepare._beam("", "") is None


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_same_pictures_under_two_persons_are_found_alike(
    split, phantoms, tmp_path, ct_settings
):
    persons = read_cohort(phantoms / "cohort.csv").persons[:4]
    shutil.copytree(persons[0].paths[0], tmp_path / "copy")
    lines = ["patient_id,path,label,split"]
    lines += [f"{person.patient_id},{person.paths[0]},{person.label},train" for person in persons]
    lines += [f"z-copy,copy,{persons[0].label},{split}"]
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    messages = []
    for name, runner in (("here", None), ("beam", beam.Beam("DirectRunner", ""))):
        (tmp_path / name).mkdir()
        try:
            account = prepare_cohort(
                read_cohort(tmp_path / "cohort.csv"),
                tmp_path / name,
                settings=ct_settings,
                seed=0,
                fractions=(60, 10, 30),
                workers=1,
                progress=lambda reports, n: reports,
                beam=runner,
            )
        except InputError as error:
            messages.append(str(error))
        else:
            assert account.n_pairs_sharing == 1
            messages.append((tmp_path / name / "notes.csv").read_text())
    assert messages[0] == messages[1]
    assert ("(test, " in messages[0]) == (split == "test")
    assert "z-copy" in messages[0]
