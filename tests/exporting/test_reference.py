"""The reference gives what `predict` gives, with NumPy, OpenCV and ONNX Runtime alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from wheels import PIP, REPOSITORY, build_wheel, environment_variables, make_environment, run

import drenet_jax
from drenet_jax.errors import InputError
from drenet_jax.phantoms.phantom import make_phantom

pytest.importorskip("onnx", reason="onnx is not installed (extra `onnx`)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra `onnx`)")

from drenet_jax.exporting.reference import main, predict_volume

# Persons of COVID-CT-MD, from its folder.
REAL_SERIES = ("COVID-19/P001", "CAP/cap001", "Normal/normal001")

# Runs a module with its flags, and refuses all packages but the named ones.
_ALONE = """
import importlib.abc, runpy, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {"drenet_jax", "numpy", "cv2", "onnxruntime", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, Refuse())
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def read_volume(folder: Path) -> np.ndarray:
    """float32 [slices, rows, columns] in HU, of the axial DICOM files of a folder: by pydicom."""
    files = [pydicom.dcmread(path) for path in folder.iterdir()]
    files.sort(key=lambda file: float(file.ImagePositionPatient[2]))
    return np.stack(
        [file.pixel_array * file.RescaleSlope + file.RescaleIntercept for file in files]
    ).astype(np.float32)


def assert_same(given: dict, expected: dict) -> None:
    """The reference's result beside that of `predict`."""
    assert given["person"]["label"] == expected["person"]["label"]
    assert given["person"]["n_slices"] == expected["person"]["n_slices"]
    assert given["decision"] == expected["decision"]
    assert given["person"]["probabilities"] == pytest.approx(
        expected["person"]["probabilities"], abs=1e-4
    )
    assert [row["index"] for row in given["slices"]] == [row["index"] for row in expected["slices"]]
    for own, other in zip(given["slices"], expected["slices"], strict=True):
        assert own["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
        assert len(own["boxes"]) == len(other["boxes"]) > 0
        for box, other_box in zip(own["boxes"], other["boxes"], strict=True):
            assert box == pytest.approx(other_box, abs=1e-3)


def test_a_phantom_is_predicted_without_other_packages(exported, trained, phantoms, tmp_path):
    # One whose masks need that the slices run from the feet.
    person = phantoms / "dicom" / "phantom-0003"
    np.save(tmp_path / "volume.npy", read_volume(person))
    expected = drenet_jax.load(trained).person(person)

    flags = [f"--model={exported[0]}", f"--volume={tmp_path / 'volume.npy'}"]
    process = subprocess.run(
        [sys.executable, "-c", _ALONE, "drenet_jax.exporting.reference", *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    given = json.loads(process.stdout)
    assert_same(given, expected)
    assert [row["why"] for row in given["excluded"]] == [row["why"] for row in expected["excluded"]]


@pytest.mark.parametrize("fill", ["always", "none"])
def test_the_crops_are_filled_as_the_description_says(fill, exported, trained, phantoms, tmp_path):
    person = sorted((phantoms / "dicom").iterdir())[1]
    pipeline = drenet_jax.load(trained)
    config = pipeline.predictor.meta.config
    with config.unlocked():
        config.data.fill = fill
    for file in exported[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    description = json.loads((tmp_path / "model.json").read_text())
    other = predict_volume(tmp_path, read_volume(person))
    (tmp_path / "model.json").write_text(json.dumps(description | {"fill": fill}))

    given = predict_volume(tmp_path, read_volume(person))

    assert_same(given, pipeline.person(person))
    assert given["slices"] != other["slices"]


def test_the_rule_is_that_of_the_export(exported, phantoms, tmp_path):
    for file in exported[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    description = json.loads((tmp_path / "model.json").read_text())
    description["decision"]["aggregate"] = "noisy_or"
    (tmp_path / "model.json").write_text(json.dumps(description))
    person = sorted((phantoms / "dicom").iterdir())[0]

    given = predict_volume(tmp_path, read_volume(person))

    of_slices = [row["probabilities"]["COVID-19"] for row in given["slices"]]
    assert given["person"]["probabilities"]["COVID-19"] == pytest.approx(
        1 - np.prod(1 - np.array(of_slices)), abs=1e-6
    )
    assert given["decision"] == description["decision"]


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return make_phantom("healthy", 1, 192, "A").volume_hu


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda hu: hu + 1024, "no HU of a chest"),
        (lambda hu: (hu / 10).astype(np.float32), "no HU of a chest"),
        (lambda hu: np.clip((hu + 1350) / 7.6, 0, 255).astype(np.uint8), "is uint8"),
        (lambda hu: hu[:, ::-1], "upside down"),
        (lambda hu: hu.swapaxes(1, 2), "lies on its side"),
        # The slices last, as nibabel has them.
        (lambda hu: hu.transpose(2, 1, 0), "the first axis does not seem to be the slice axis"),
        (lambda hu: hu.transpose(1, 2, 0), "the first axis does not seem to be the slice axis"),
        # Coronal slices.
        (lambda hu: hu.transpose(1, 0, 2), "the first axis does not seem to be the slice axis"),
        (lambda hu: hu.transpose(1, 0, 2)[40:150, :, 3:-3], "not axial"),
        (
            lambda hu: np.delete(hu, range(len(hu) // 3, 2 * len(hu) // 3), 0),
            "do not follow each other",
        ),
        (lambda hu: hu[:8], "no lungs were found"),
        (lambda hu: hu[20], r"is .* \[192, 192\]"),
        (lambda hu: hu[:0], "is empty"),
    ],
)
def test_a_volume_that_is_no_chest_in_hu_is_refused(change, why, exported, volume):
    with pytest.raises(InputError, match=why):
        predict_volume(exported[0], change(volume))


def test_wrapped_values_and_nan_are_put_right(exported, volume):
    expected = predict_volume(exported[0], volume)
    air = volume < -1000
    wrapped = np.where(air, volume.astype(np.float64) + 65536, volume)

    assert predict_volume(exported[0], wrapped) == expected
    outside = np.zeros(volume.shape, bool)
    outside[:, :3] = True
    padded = [np.where(outside, padding, volume) for padding in (np.nan, -3024.0, -1024.0)]
    results = [predict_volume(exported[0], one) for one in padded]
    assert results[0] == results[1] == results[2]


def test_files_that_cannot_be_used_end_in_one_line(exported, tmp_path, capsys):
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"no numpy file")
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}]), allow_pickle=True)
    several = tmp_path / "several.npz"
    np.savez(several, a=np.zeros(1))
    flat = tmp_path / "flat.npy"
    np.save(flat, np.zeros((3, 3)))
    for file, why in (
        (bad, "is no NumPy file that can be read"),
        (objects, "is no NumPy file that can be read"),
        (tmp_path / "absent.npy", "is no NumPy file that can be read"),
        (several, "holds several arrays"),
        (flat, "is float64 [3, 3]; give HU"),
    ):
        assert main([f"--model={exported[0]}", f"--volume={file}"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"error: --volume={file} {why}")
        assert printed.err.count("\n") == 1
    np.save(flat, np.zeros((3, 3, 3), np.float32))
    assert main([f"--model={tmp_path}", f"--volume={flat}"]) == 2
    assert f"error: {tmp_path} holds no exported model" in capsys.readouterr().err


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory) -> Path:
    """The Python of an environment with the three packages and the wheel without dependencies."""
    folder = tmp_path_factory.mktemp("bare")
    python = make_environment(folder / "venv")
    pip = [*PIP, f"--python={python}", "install"]
    constraints = f"--constraint={REPOSITORY / 'launch' / 'constraints.txt'}"
    run([*pip, constraints, "onnxruntime", "numpy", "opencv-python-headless"])
    run([*pip, "--no-deps", build_wheel(folder)])
    return python


@pytest.mark.slow
@pytest.mark.parametrize("series", REAL_SERIES)
def test_real_series_in_an_environment_of_three_packages(
    series, bare_python, exported, trained, command, shared_data, tmp_path
):
    folder = shared_data / "covid_ct_md" / series
    np.save(tmp_path / "volume.npy", read_volume(folder))
    module = [bare_python, "-m", "drenet_jax.exporting.reference"]
    process = subprocess.run(
        [*module, f"--model={exported[0]}", f"--volume={tmp_path / 'volume.npy'}"],
        cwd=tmp_path,
        env=environment_variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    given = json.loads(process.stdout)
    for runtime in ("onnx", "jax"):
        out = tmp_path / runtime
        predicted = command(
            "predict",
            f"--workdir={trained}",
            f"--input={folder}",
            f"--out={out}",
            f"--runtime={runtime}",
        )
        assert predicted.returncode == 0, predicted.stderr
        expected = json.loads((out / "result.json").read_text())
        assert_same(given, expected)
        differences = [
            abs(given["person"]["probabilities"][label] - p)
            for label, p in expected["person"]["probabilities"].items()
        ]
        print(f"{series}: {given['person']}, differs from {runtime} by {max(differences):.1e}")
