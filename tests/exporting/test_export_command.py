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
    assert metadata == {
        name: value for name, value in description.items() if name not in ("file", "sha256")
    }


def test_a_prediction_of_the_file_is_that_of_predict(exported, trained, phantoms):
    out, _ = exported
    person = sorted((phantoms / "dicom").iterdir())[0]
    expected = drenet_jax.load(trained).person(person)

    with Reader() as reader:
        given = PersonPipeline(load_onnx(out, workdir=trained), reader).person(person)

    assert _numbers(given) == pytest.approx(_numbers(expected), abs=1e-4)
    assert _without_numbers(given) == _without_numbers(expected)


def _numbers(result: object) -> list[float]:
    if isinstance(result, dict):
        return [number for value in result.values() for number in _numbers(value)]
    if isinstance(result, list):
        return [number for value in result for number in _numbers(value)]
    return [result] if isinstance(result, float) else []


def _without_numbers(result: object) -> object:
    if isinstance(result, dict):
        return {name: _without_numbers(value) for name, value in result.items()}
    if isinstance(result, list):
        return [_without_numbers(value) for value in result]
    return float if isinstance(result, float) else result


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
