"""Damaged checkpoints: one sentence that names the folder and the fix, never other weights."""

from __future__ import annotations

import json
import random
import shutil

import jax
import numpy as np
import pytest

import drenet_jax
from drenet_jax.errors import InputError
from drenet_jax.evaluation.evaluator import evaluate_split
from drenet_jax.models.build import build_model, init_variables
from drenet_jax.models.checkpoints import Checkpoints, save_converted
from drenet_jax.models.warm_start import start_from
from drenet_jax.training.loop import train_and_evaluate


def _largest(folder):
    """The file that holds most of the arrays."""
    return max((one for one in folder.rglob("*") if one.is_file()), key=lambda x: x.stat().st_size)


def _cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    # In the middle of the arrays.
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def _empty(path):
    path.write_bytes(b"")


def _garbage(path):
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def _gone(path):
    path.unlink()


DAMAGES = {
    "arrays cut": (lambda step: _largest(step / "weights" / "ocdbt.process_0"), _cut),
    "arrays changed": (lambda step: _largest(step / "weights" / "ocdbt.process_0"), _flip),
    "arrays gone": (lambda step: _largest(step / "weights" / "ocdbt.process_0"), _gone),
    "empty manifest": (lambda step: step / "weights" / "manifest.ocdbt", _empty),
    "broken metadata": (lambda step: step / "weights" / "_METADATA", _cut),
    "metadata gone": (lambda step: step / "weights" / "_METADATA", _gone),
    "broken meta": (lambda step: step / "meta" / "metadata", _cut),
    "garbage in meta": (lambda step: step / "meta" / "metadata", _garbage),
    "meta gone": (lambda step: step / "meta" / "metadata", _gone),
    "empty metrics": (lambda step: step / "metrics" / "metrics", _empty),
    "broken validation": (lambda step: step / "validation" / "metadata", _cut),
}


@pytest.fixture
def damaged(trained, tmp_path):
    """A copy of `trained`, damaged in the way of this name; and its only checkpoint."""

    def make(name):
        workdir = tmp_path / "run"
        shutil.copytree(trained, workdir)
        (step,) = (workdir / "checkpoints").iterdir()
        find, damage = DAMAGES[name]
        damage(find(step))
        return workdir, step

    return make


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_not_used(name, damaged, tmp_path):
    workdir, step = damaged(name)
    with pytest.raises(InputError) as refusal:
        drenet_jax.load(workdir)
    assert f"the checkpoint {step} is damaged (" in str(refusal.value)
    assert "restore it from a copy, or make it anew" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=f"the checkpoint {step} is damaged"):
        evaluate_split(workdir, "test", tmp_path / "out")


@pytest.mark.parametrize("name", ["arrays changed", "broken meta", "empty manifest"])
def test_training_does_not_start_from_damaged_weights(name, damaged, trained):
    workdir, step = damaged(name)
    with Checkpoints.of(trained, flag="--workdir") as checkpoints:
        meta = checkpoints.meta(checkpoints.best_step)
    model = build_model(meta.config, len(meta.labels))
    variables = init_variables(model, 0)
    with pytest.raises(InputError, match=f"the checkpoint {step} is damaged"):
        start_from(str(workdir), model, variables, meta.labels)


@pytest.mark.parametrize(
    ("item", "find", "damage"),
    [
        ("optimizer", lambda step: _largest(step / "optimizer" / "ocdbt.process_0"), _flip),
        pytest.param(
            "optimizer",
            lambda step: step / "optimizer" / "manifest.ocdbt",
            _empty,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "progress", lambda step: step / "progress" / "metadata", _cut, marks=pytest.mark.slow
        ),
        pytest.param(
            "weights",
            lambda step: _largest(step / "weights" / "ocdbt.process_0"),
            _cut,
            marks=pytest.mark.slow,
        ),
        ("meta", lambda step: step / "meta" / "metadata", _garbage),
    ],
)
def test_a_run_does_not_go_on_from_a_damaged_checkpoint(
    item, find, damage, trained, prepared, tiny_config, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (step,) = (workdir / "checkpoints").iterdir()
    damage(find(step))
    tiny_config.data.dir = str(prepared)
    tiny_config.train.epochs = 2
    with pytest.raises(InputError, match=f"the checkpoint {step} is damaged"):
        train_and_evaluate(tiny_config, workdir)
    # What it says can be done: start over.
    tiny_config.train.epochs = 1
    tiny_config.train.steps = 1
    train_and_evaluate(tiny_config, workdir, fresh=True)
    with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
        assert checkpoints.latest_step == 1


def test_a_whole_checkpoint_beside_the_damaged_one_is_named_and_serves(
    trained, prepared, tiny_config, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (step,) = (workdir / "checkpoints").iterdir()
    later = step.with_name("99")
    shutil.copytree(step, later)
    figures = json.loads((later / "metrics" / "metrics").read_text())
    better = {**figures, "auc": 1.0, "cross_entropy": 0.0}
    (later / "metrics" / "metrics").write_text(json.dumps(better))
    _cut(_largest(later / "weights" / "ocdbt.process_0"))
    with pytest.raises(InputError) as refusal:
        drenet_jax.load(workdir)
    assert f"the checkpoint {later} is damaged" in str(refusal.value)
    assert f"remove this folder, so that {step.name} beside it is taken" in str(refusal.value)
    shutil.rmtree(later)
    found, wanted = (
        jax.tree.leaves(drenet_jax.load(x).predictor.variables) for x in (workdir, trained)
    )
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_checkpoint_without_checksums_is_damaged(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (step,) = (workdir / "checkpoints").iterdir()
    path = step / "meta" / "metadata"
    meta = json.loads(path.read_text())
    assert set(meta.pop("crc32")) == {
        "weights", "optimizer", "progress", "validation", "metrics", "meta", "digests",
    }  # fmt: skip
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"is damaged .the item meta is not what was saved"):
        drenet_jax.load(workdir)


def test_a_checkpoint_of_another_layout_is_refused(trained, tmp_path):
    """As drenet_jax 0.1.0 wrote them, or with one vector of statistics instead of one per pass."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    (step,) = (workdir / "checkpoints").iterdir()
    path = step / "meta" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(InputError, match="was written by another version of drenet_jax"):
        drenet_jax.load(workdir)

    with Checkpoints.of(trained, flag="--workdir") as checkpoints:
        at = checkpoints.best_step
        meta, weights = checkpoints.meta(at), checkpoints.weights(at, checkpoints.weight_shapes(at))
    statistics = jax.tree.map(lambda x: x[0], weights["batch_stats"])
    save_converted(tmp_path / "other", {**weights, "batch_stats": statistics}, meta)
    with pytest.raises(InputError, match=r"bn1/mean has shape \(4,\) instead of \(3, 4\)"):
        drenet_jax.load(tmp_path / "other")


@pytest.mark.parametrize("name", ["predict", "evaluate", "serve", "train"])
def test_the_commands_say_so(name, damaged, command, phantoms, prepared, tmp_path):
    workdir, step = damaged("arrays cut" if name == "train" else "arrays changed")
    flags = {
        "predict": [f"--input={sorted((phantoms / 'dicom').iterdir())[0]}"],
        "evaluate": [],
        "serve": ["--port=0"],
        "train": ["--config=configs/drenet.py", f"--config.init.weights={workdir}"],
    }[name]
    if name == "train":
        with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
            model = checkpoints.meta(checkpoints.best_step).config.model
        flags += [f"--config.data.dir={prepared}", f"--workdir={tmp_path / 'new'}"]
        flags += ["--config.data.batch_size=8", "--config.train.accumulate=1"]
        for field in ("image_size_px", "crop_size_px", "backbone", "width"):
            flags.append(f"--config.model.{field}={model[field]}")
        for field in ("anchor_sizes_px", "train_proposals", "top_k", "hidden"):
            values = tuple(model[field])
            flags.append(f"--config.model.{field}={values}")
    else:
        flags.append(f"--workdir={workdir}")
        flags += [f"--out={tmp_path / 'out'}"] if name != "serve" else []
    done = command(name, *flags)
    assert done.returncode == 2, done.stderr
    assert f"error: the checkpoint {step} is damaged (" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "new").exists()


def test_loading_says_nothing(trained):
    import subprocess
    import sys

    load = f"drenet_jax.load({str(trained)!r}).predictor"
    code = f"import drenet_jax; print(len({load}.meta.labels))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert (done.stdout, done.stderr) == ("3\n", "")
