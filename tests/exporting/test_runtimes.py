"""`--runtime`: ONNX Runtime gives what JAX gives; a checkpoint is exported once."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drenet_jax.data.prepared_data import open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.exporting import runtimes
from drenet_jax.exporting.exporter import export_model
from drenet_jax.exporting.runtimes import load_predictor
from drenet_jax.output_files import new_folder
from drenet_jax.storage import stand_ins
from tests.exporting.same_results import assert_same

pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")


@pytest.fixture(scope="module")
def workdir(trained, tmp_path_factory):
    """A copy of the trained run, exported."""
    folder = tmp_path_factory.mktemp("runtimes") / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns(runtimes.EXPORTED))
    load_predictor(folder, runtime="onnx", aggregate="median")
    return folder


def _runtime(predictor):
    return predictor.scorer.runtime.split()[0]


def _set_speed(workdir, *, jax, onnx):
    _change(workdir / runtimes.EXPORTED / "onnx", ms_per_slice={"jax": jax, "exported": onnx})


def _change(folder, **fields):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_both_runtimes_score_alike(workdir):
    rng = np.random.default_rng(0)
    side_px = load_predictor(workdir, runtime="onnx").meta.ct.image_size_px
    images = rng.integers(0, 256, (5, side_px, side_px), np.uint8)
    by_jax, by_onnx = (
        load_predictor(workdir, runtime=name).slices(images) for name in ("jax", "onnx")
    )
    assert set(by_onnx) == set(by_jax)
    np.testing.assert_array_equal(by_onnx["boxes"], by_jax["boxes"])
    for name, values in by_jax.items():
        np.testing.assert_allclose(by_onnx[name], values, atol=1e-4, rtol=1e-4, err_msg=name)


def test_auto_takes_the_faster_one(workdir):
    _set_speed(workdir, jax=2.0, onnx=1.0)
    assert _runtime(load_predictor(workdir)) == "onnxruntime"
    _set_speed(workdir, jax=1.0, onnx=2.0)
    assert _runtime(load_predictor(workdir)) == "jax"


def test_auto_takes_a_lower_precision_only_where_it_is_safe(workdir, tmp_path, prepared):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    folder = run / runtimes.EXPORTED / "int8"
    predictor = Predictor.load(run)
    with new_folder(folder) as made:
        export = export_model(
            predictor,
            run,
            made,
            format="onnx",
            heat_maps=True,
            precision="int8",
            data=open_data(prepared),
        )
    report = export.precision_report.to_dict()
    assert report["n_persons"] < 100  # the tiny data set proves nothing
    _set_speed(run, jax=3.0, onnx=2.0)
    speed = {"jax": 3.0, "exported": 1.0}

    def file_of_auto(**changes):
        _change(folder, ms_per_slice=speed, precision_report=report | changes)
        return Path(load_predictor(run).scorer.file)

    safe = {"n_persons": 100, "largest_person_difference": 0.004}
    assert file_of_auto(**safe).parent.name == "int8"
    assert file_of_auto(**safe | {"n_persons": 99}).parent.name == "onnx"
    assert file_of_auto(**safe | {"largest_person_difference": 0.005}).parent.name == "onnx"
    assert load_predictor(run, runtime="onnx").scorer.file.parent.name == "onnx"
    speed["exported"] = 2.5
    assert file_of_auto(**safe).parent.name == "onnx"


def test_options_are_those_of_the_predictor(workdir):
    [by_jax, by_onnx] = [
        load_predictor(workdir, runtime=name, aggregate="median") for name in ("jax", "onnx")
    ]
    assert by_onnx.rule == by_jax.rule
    assert by_onnx.identity == by_jax.identity
    # The export has the run's own rule.
    description = json.loads((workdir / runtimes.EXPORTED / "onnx" / "model.json").read_text())
    assert description["decision"]["aggregate"] == "mean"
    records = [dataclasses.asdict(p.validation_record) for p in (by_onnx, by_jax)]
    np.testing.assert_equal(*records)


def test_a_prediction_does_not_import_jax(workdir, phantoms, tmp_path):
    person = sorted((phantoms / "dicom").iterdir())[0]
    results = {}
    for runtime in ("jax", "onnx"):
        out = tmp_path / runtime
        script = (
            "import runpy, sys\n"
            "sys.argv = ['predict', *sys.argv[1:]]\n"
            "try:\n"
            "    runpy.run_module('drenet_jax.predict', run_name='__main__')\n"
            "finally:\n"
            "    print('jax' in sys.modules)\n"
        )
        # What ONNX Runtime leaves where its reports to Microsoft are not switched off.
        environment = {name: value for name, value in os.environ.items() if "TELEM" not in name}
        left = tmp_path / f"left by {runtime}"
        left.mkdir()
        process = subprocess.run(
            [
                *(sys.executable, "-c", script, f"--runtime={runtime}"),
                *(f"--workdir={workdir}", f"--input={person}", f"--out={out}"),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            env=environment | {"TMPDIR": str(left), "XDG_CACHE_HOME": str(left)},
        )
        assert not [path.name for path in left.rglob("*") if "icrosoft" in path.name]
        assert not (left / ".ses").exists()
        assert process.stdout.splitlines()[-1] == str(runtime == "jax")
        results[runtime] = json.loads((out / "result.json").read_text())
        assert results[runtime]["runtime"].startswith(runtime)
    assert_same(results["onnx"], results["jax"])


def test_evaluate_gives_the_same_table(command, workdir, tmp_path):
    tables = []
    for runtime in ("jax", "onnx"):
        out = tmp_path / runtime
        process = command(
            "evaluate", f"--workdir={workdir}", f"--runtime={runtime}", f"--out={out}"
        )
        assert process.returncode == 0, process.stderr
        rows = [line.split(",") for line in (out / "persons.csv").read_text().splitlines()]
        assert len(rows) > 3
        tables.append(rows)
    header = tables[0][0]
    columns = [i for i, name in enumerate(header) if name.startswith("p_")] or range(2, 5)
    by_jax, by_onnx = (
        np.array([[float(row[i]) for i in columns] for row in rows[1:]]) for rows in tables
    )
    np.testing.assert_allclose(by_onnx, by_jax, atol=1e-4)


def test_other_checkpoints_are_exported_anew(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)  # which keeps the times of files
    written = (run / runtimes.EXPORTED / "onnx" / "model.json").stat().st_mtime_ns
    load_predictor(run, runtime="onnx")
    assert (run / runtimes.EXPORTED / "onnx" / "model.json").stat().st_mtime_ns == written

    meta = next((run / "checkpoints").glob("*/meta/metadata"))
    meta.write_bytes(meta.read_bytes())
    load_predictor(run, runtime="onnx")
    assert (run / runtimes.EXPORTED / "onnx" / "model.json").stat().st_mtime_ns > written
    assert [path.name for path in (run / runtimes.EXPORTED).iterdir()] == ["onnx"]


def test_a_damaged_export_is_made_anew(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    folder = run / runtimes.EXPORTED / "onnx"
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (folder / "model.onnx").write_bytes(content)
    assert _runtime(load_predictor(run, runtime="onnx")) == "onnxruntime"
    assert (folder / "model.onnx").read_bytes() != content


def test_without_onnx_runtime(workdir, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    assert _runtime(load_predictor(workdir)) == "jax"
    with pytest.raises(InputError, match=r"needs onnxruntime.*pip install 'drenet_jax\[onnx\]'"):
        load_predictor(workdir, runtime="onnx")


def test_where_an_accelerator_may_be_auto_does_not_look_for_exports(workdir, monkeypatch):
    _set_speed(workdir, jax=2.0, onnx=1.0)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: object() if name == "jax_cuda12_plugin" else find(name),
    )
    assert _runtime(load_predictor(workdir)) == "jax"


def test_of_a_run_in_a_bucket_auto_makes_no_export(workdir, tmp_path):
    run = tmp_path / "copy"
    shutil.copytree(workdir, run, ignore=shutil.ignore_patterns(runtimes.EXPORTED))
    stand_ins.stand_for(run, "gs://bucket/run")
    assert _runtime(load_predictor(run)) == "jax"
    assert not (run / runtimes.EXPORTED).exists()


def test_a_folder_that_cannot_be_written_leaves_jax(workdir, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(workdir, run, ignore=shutil.ignore_patterns(runtimes.EXPORTED))
    (run / runtimes.EXPORTED).write_text("not a folder")
    assert _runtime(load_predictor(run)) == "jax"
    assert "JAX is used" in caplog.text
