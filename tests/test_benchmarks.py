"""The benchmarks: timings, ratios, tables, and the documented results."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import grow, memory, parity, passes, profile, published, timing
from drenet_jax.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]

# A DRENet of 96 pixels, as `tiny_config`, in a file.
_TINY = """
import runpy
def get_config():
    config = runpy.run_path({drenet!r})["get_config"]()
    config.model.update(
        backbone="resnet18", width=4, image_size_px=96, crop_size_px=32, anchor_sizes_px=(24, 40),
        train_proposals=(2,), top_k=(2,), nms_iou=0.5, hidden=(8,),
    )
    return config
"""


@pytest.fixture
def on_one_device(tmp_path):
    """Runs the command on a tiny network, with one CPU device rather than the tests' eight."""
    config = tmp_path / "tiny.py"
    config.write_text(_TINY.format(drenet=str(REPOSITORY / "configs" / "drenet.py")))
    env = {**os.environ, "XLA_FLAGS": ""}

    def run(*given: str) -> dict:
        out = tmp_path / "speed.json"
        done = subprocess.run(
            [sys.executable, "-m", "drenet_jax.benchmark", f"--model={config}", f"--out={out}"]
            + ["--rounds=1", *given],
            cwd=REPOSITORY,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())

    return run


@pytest.mark.slow
def test_works_are_timed_in_turn_each_after_a_call_unmeasured():
    calls = []
    times = timing.interleaved_timings(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3
    )
    assert calls == ["a", "a", "b", "b"] * 3
    assert [len(timing_.seconds) for timing_ in times.values()] == [3, 3]


def test_a_ratio_is_of_rounds_with_their_own_reference():
    row = timing.ratio_row(
        "ct", "work", timing.Timing((2.0, 9.0, 3.0)), "rest", timing.Timing((1.0, 3.0, 1.0)), 2.5
    )
    assert row.ratio == 3.0
    assert not row.reached
    assert (row.value, row.low, row.high) == (3000.0, 2000.0, 9000.0)


def test_time_is_measured_in_seconds():
    (slept,) = timing.interleaved_timings({"sleep": lambda: time.sleep(0.01)}, rounds=1).values()
    assert slept.median >= 0.01


def test_the_command_writes_the_table_it_prints(command, phantoms, tmp_path):
    series = next((phantoms / "dicom").iterdir())
    out = tmp_path / "speed.json"
    done = command("benchmark", "--suite=ct", f"--series={series}", "--rounds=1", f"--out={out}")
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    assert {"processor", "cores", "versions"} <= written["machine"].keys()
    transform = written["rows"][0]
    assert transform["what"] == f"{series.name}: the whole transform"
    assert transform["ratio"] > 1
    assert transform["reached"] == (transform["ratio"] <= 2.5)
    assert f"{transform['value']:.1f} ms" in done.stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--suite=speed", "--suite=speed is not known"),
        ("--grow=hair", "--grow=hair is not known"),
        ("--out=.", "exists already"),
        ("--model=none.py", "--model=none.py is no file"),
        # The tests have eight.
        ("--suite=model", "8 devices are visible"),
    ],
)
def test_what_cannot_be_measured_is_refused(flag, message, command):
    done = command("benchmark", flag)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_speed_above_the_reference_is_reported_as_a_factor():
    row = timing.faster_row(
        "model", "work", timing.Timing((2.0, 1.0)), "theirs", timing.Timing((3.0, 3.0)), 2.0
    )
    assert row.ratio == 2.25
    assert row.reached
    assert row.aim == "≥ 2"


@pytest.mark.slow
def test_every_pass_of_the_bare_reference_has_its_own_images(tiny_config):
    stacks = passes.stacks_of(tiny_config, 3, train=True)
    assert [stack.shape for stack in stacks] == [(3, 96, 96, 3), (3, 96, 96, 3), (6, 32, 32, 3)]
    assert (stacks[0] != stacks[1]).any()
    tiny_config.model.context = "none"
    assert len(passes.stacks_of(tiny_config, 3, train=False)) == 2
    pooled = passes.bare_passes(tiny_config, stacks, train=False)()
    assert [features.shape for features in pooled] == [(3, 32), (3, 32), (6, 32)]


def test_the_published_model_takes_a_step(tiny_config):
    pytest.importorskip("torch")
    import torch

    # Its three levels of boxes want the full image.
    tiny_config.model.update(image_size_px=448, crop_size_px=64)
    network_step = published._work(tiny_config, 1, "cpu", True, torch.contiguous_format)
    network_step()
    assert published.available("cpu")


@pytest.mark.slow
def test_model_and_profile_have_their_rows(on_one_device):
    written = on_one_device("--suite=", "--profile", "--batch=1")
    shares = {row["what"]: row["ratio"] for row in written["rows"]}
    assert shares["the whole step, batch 1"] == 1
    kinds = [share for what, share in shares.items() if what.startswith("operations: ")]
    assert sum(kinds) == pytest.approx(1)
    assert 0 < shares["operations of a training step"] < 1
    assert any("need not add up" in note for note in written["notes"])


@pytest.mark.slow
def test_predict_is_measured_beside_its_forward_passes(on_one_device):
    rows = on_one_device("--suite=predict")["rows"]
    warm, cold, *_ = rows
    assert warm["what"].startswith("predict of 15 slices")
    assert warm["ratio"] > 1
    assert cold["value"] > 0


def test_differences_from_the_cpu_are_relative_and_boxes_are_counted():
    exact = {
        "probabilities": np.array([[0.25, 0.75]]),
        "boxes": np.array([[[0, 0, 4, 4], [2, 2, 8, 8]]]),
        "loss": np.array(2.0),
        "gradient": [np.array([3.0]), np.array([0.0, 4.0])],
    }
    outputs = exact | {
        "probabilities": np.array([[0.35, 0.65]]),
        "boxes": np.array([[[0, 0, 4, 4], [2, 2, 9, 8]]]),
        "loss": np.array(1.5),
        "gradient": [np.array([3.0]), np.array([0.5, 4.0])],
    }
    values = {row.what: row.value for row in parity._rows("gpu", outputs, exact)}
    assert values == {
        "gpu: largest difference of a probability": pytest.approx(1e5),
        "gpu: relative difference of the loss": pytest.approx(2.5e5),
        "gpu: relative difference of the gradient": pytest.approx(1e5),
        "gpu: boxes that are the same": 50,
    }


@pytest.mark.slow
def test_input_is_measured_on_one_core(on_one_device, phantoms):
    series = ",".join(map(str, sorted((phantoms / "dicom").iterdir())[:2]))
    first, *stages = on_one_device("--suite=input", f"--series={series}")["rows"]
    assert first["ratio"] > 0
    assert {"read and parse, per slice", "decode the picture, per slice"} <= {
        row["what"] for row in stages
    }


def test_operations_of_a_compiled_program_are_counted_by_kind():
    hlo = """
  %ynn_fusion.1 = f32[8,64]{1,0} fusion(%a), metadata={op_name="jit(f)/jvp(M)/conv1/dot_general"}
  ROOT %copy_bitcast_fusion.3 = f32[8]{0} fusion(%b), metadata={op_name="jit(f)/bn/add_any"}
  %maximum_fusion = f32[8]{0} fusion(%b), metadata={op_name="jit(f)/relu/max"}
"""
    kinds = {name: profile._kind(name, of) for name, of in profile._operations(hlo).items()}
    assert kinds == {
        "ynn_fusion.1": "convolutions and products",
        "copy_bitcast_fusion.3": "copies, transposes, slices",
        "maximum_fusion": profile._REST,
    }


@pytest.mark.slow
def test_a_step_takes_more_memory_with_more_slices_and_less_with_remat(tiny_config):
    tiny_config.model.update(width=16)
    alone, four, four_remat = (
        memory.step_bytes(tiny_config, batch, remat=remat)
        for batch, remat in ((1, False), (4, False), (4, True))
    )
    assert alone < four_remat < four
    assert tiny_config.model.remat is False


def test_the_largest_batch_lies_on_the_line_through_the_largest_two():
    sizes = {1: 5, 2: 7, 4: 11}
    assert memory.largest_batch(sizes, 11) == 4
    assert memory.largest_batch(sizes, 20) == 8
    assert memory.largest_batch(sizes, 1) == 0


def test_growth_is_an_exponent_of_the_last_two_points(tiny_config, tmp_path):
    assert grow.exponent([(1, 9.0), (2, 1.0), (4, 8.0)]) == pytest.approx(3)
    tiny_config.evaluation.bootstrap_draws = 20
    grow.PERSONS, before = (10, 20), grow.PERSONS
    try:
        rows, (note,) = grow.run(["persons"], tiny_config, 1, tmp_path)
    finally:
        grow.PERSONS = before
    assert len(rows) == 2
    assert "from 10 to 20" in note
    assert (tmp_path / "persons.png").stat().st_size < 100_000


def test_the_documentation_has_the_figures_of_the_run_that_it_names():
    docs = REPOSITORY / "docs"
    text = (docs / "performance.md").read_text(encoding="utf-8")
    paths = sorted((docs / "performance").glob("*.json"))
    assert paths
    for path in paths:
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = [timing.Row(**row) for row in result["rows"]]
        for line in timing.table(rows).splitlines():
            assert line in text, (path.name, line)
        for note in result["notes"]:
            assert note in " ".join(text.split()), note


def test_every_runtime_has_its_rows(on_one_device):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")
    result = on_one_device("--suite=runtime", "--batch=2")
    ratios = {row["what"]: row["ratio"] for row in result["rows"] if row["ratio"] is not None}
    assert {"XLA again", "ONNX Runtime float32", "ONNX Runtime int8_crops"} <= set(ratios)
    if importlib.util.find_spec("openvino"):
        assert {"OpenVINO float32", "OpenVINO bfloat16", "OpenVINO bfloat16_crops"} <= set(ratios)
    else:
        assert "no OpenVINO to compare with: it is not installed" in result["notes"]
    assert all(ratio > 0 for ratio in ratios.values())
    assert any("ONNX Runtime int8_crops: 100% of the boxes" in note for note in result["notes"])


def test_a_runtime_that_does_not_give_what_jax_gives_is_not_timed(tiny_config, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")
    from benchmarks import runtimes
    from drenet_jax.exporting.agreement import Agreement

    monkeypatch.setattr(
        runtimes.agreement, "compare", lambda *_: Agreement(8, 0, 0.5, "logits differ by 0.5")
    )
    with pytest.raises(InputError, match=r"float32 does not give what JAX gives \(logits differ"):
        runtimes.run(tiny_config, 8, 1)


@pytest.mark.slow
def test_efficientnet_lite_is_measured_beside_pytorch(on_one_device):
    pytest.importorskip("efficientnet_lite_pytorch")
    rows = on_one_device("--suite=lite", "--batch=1")["rows"]
    assert [row["what"].split()[0] for row in rows] == ["training", "inference"]
    assert all(row["ratio"] > 0 and row["reference"].startswith("PyTorch") for row in rows)
