"""`export`: files that are checked before they are written, and predictions of them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import drenet_jax
from drenet_jax.ct.reader import Reader
from drenet_jax.errors import InputError
from drenet_jax.evaluation.pipeline import PersonPipeline
from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.exporting import agreement, exporter
from drenet_jax.output_files import new_folder
from tests.exporting.same_results import assert_same

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")

from drenet_jax.exporting import onnx_model  # noqa: E402
from drenet_jax.exporting.onnx_predictor import load_onnx  # noqa: E402


def test_the_command_says_how_the_file_agrees(exported):
    out, printed = exported

    assert "agrees with JAX on 9 slices (probabilities within" in printed
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.onnx"]
    description = json.loads((out / "model.json").read_text())
    model = onnx.load(out / "model.onnx")
    [metadata] = [json.loads(prop.value) for prop in model.metadata_props]
    assert description["labels"] == ["healthy", "COVID-19", "bacterial"]
    assert description.items() >= metadata.items()
    # Known only when the file is there.
    assert set(description) - set(metadata) == {
        "file",
        "sha256",
        "ms_per_slice",
        "precision_report",
        "checkpoint_files",
    }


def test_a_prediction_of_the_file_is_that_of_predict(exported, trained, phantoms):
    out, _ = exported
    person = sorted((phantoms / "dicom").iterdir())[0]
    expected = drenet_jax.load(trained).person(person)

    with Reader() as reader:
        given = PersonPipeline(load_onnx(out, workdir=trained), reader).person(person)

    assert_same(given, expected)


def test_a_prediction_of_the_file_imports_no_jax(exported):
    out, _ = exported
    code = (
        "import sys; from pathlib import Path; import numpy as np;"
        "import drenet_jax.evaluation.pipeline;"
        "from drenet_jax.exporting.onnx_predictor import load_onnx;"
        "predictor = load_onnx(Path(sys.argv[1]));"
        "predictor.slices(np.zeros((2, 96, 96), np.uint8));"
        "print({'jax', 'orbax', 'tensorflow', 'flax'} & set(sys.modules))"
    )

    process = subprocess.run(
        [sys.executable, "-c", code, out], capture_output=True, text=True, check=False
    )

    assert process.stdout == "set()\n", process.stderr


def test_a_prediction_of_the_file_decides_as_exported(command, trained, tmp_path):
    out = tmp_path / "out"
    process = command(
        "export", f"--workdir={trained}", "--heat_maps", "--aggregate=median", f"--out={out}"
    )
    assert process.returncode == 0, process.stderr
    assert load_onnx(out).rule == Predictor.load(trained, aggregate="median").rule


def test_a_lower_precision_is_compared_with_float32(command, trained, exported, tmp_path):
    out = tmp_path / "int8_crops"

    process = command(
        "export", f"--workdir={trained}", "--precision=int8_crops", "--heat_maps", f"--out={out}"
    )

    assert process.returncode == 0, process.stderr
    assert "boxes that are the same: 100.0%" in process.stdout
    assert "--runtime=auto does not use it" in process.stdout
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.onnx"]
    description = json.loads((out / "model.json").read_text())
    assert description["precision"] == "int8_crops"
    [metadata] = [json.loads(prop.value) for prop in onnx.load(out / "model.onnx").metadata_props]
    assert metadata["precision"] == "int8_crops"
    report = description["precision_report"]
    assert 0 < report["largest_person_difference"] < 0.1
    assert report["largest_person_difference"] <= report["largest_slice_difference"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--format=stablehlo", "--precision=int8"), "--precision=int8 needs --format=onnx"),
        (("--precision=int8", "--data=nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_exported_is_refused(command, trained, tmp_path, flags, message):
    process = command("export", f"--workdir={trained}", *flags, f"--out={tmp_path / 'out'}")

    assert process.returncode == 2
    assert message in process.stderr
    assert not list(tmp_path.iterdir())


def test_stablehlo_agrees_too(command, trained, tmp_path):
    out = tmp_path / "stablehlo"
    # In a process of its own: checks of shapes in the tests know no batch without a size.
    process = command(
        "export", f"--workdir={trained}", "--format=stablehlo", "--heat_maps", f"--out={out}"
    )

    assert process.returncode == 0, process.stderr
    assert "agrees with JAX on 9 slices (probabilities within" in process.stdout
    assert (out / "model.stablehlo").stat().st_size > 100_000


def test_a_damaged_weight_makes_the_check_fail_and_nothing_is_written(
    trained, tmp_path, monkeypatch
):
    to_onnx = onnx_model.to_onnx

    def damaged(*arguments, **options):
        model = to_onnx(*arguments, **options)
        largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weights = np.frombuffer(largest.raw_data, np.float32).copy()
        weights[:50] += 0.5
        largest.raw_data = weights.tobytes()
        return model

    monkeypatch.setattr(onnx_model, "to_onnx", damaged)
    out = tmp_path / "out"

    with pytest.raises(InputError, match="does not give what JAX gives"), new_folder(out) as folder:
        exporter.export_model(
            Predictor.load(trained), str(trained), folder, format="onnx", heat_maps=True
        )

    assert not out.exists()


def test_a_file_that_was_changed_is_refused(exported, tmp_path):
    out, _ = exported
    (tmp_path / "model.json").write_bytes((out / "model.json").read_bytes())
    content = bytearray((out / "model.onnx").read_bytes())
    content[-1000] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)

    with pytest.raises(InputError, match="another SHA-256"):
        load_onnx(tmp_path)


def test_other_boxes_count_only_where_scores_are_equal():
    first = {
        "logits": np.zeros((2, 3)),
        "probabilities": np.full((2, 3), 1 / 3),
        "boxes": np.zeros((2, 1, 4)),
        "scores": np.array([[0.5], [0.7]]),
    }
    close = {**first, "boxes": np.array([[[0, 0, 0, 0.0]], [[1, 0, 0, 0.0]]])}
    far = {**close, "scores": np.array([[0.5], [0.6]])}

    assert agreement.compare(first, first) == agreement.Agreement(2, 0, 0.0, "")
    assert agreement.compare(first, close) == agreement.Agreement(2, 1, 0.0, "")
    assert agreement.compare(first, far).problem == "other boxes are chosen, whose scores differ"
    wrong = {**first, "probabilities": first["probabilities"] + 1e-3}
    assert agreement.compare(first, wrong).problem == "probabilities differ by 0.001"
