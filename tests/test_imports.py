"""Imports go in one direction, and --help and ct import neither JAX nor TensorFlow."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "drenet_jax"

# From the ground up; a folder may import from folders with a lower number, and from itself.
FLOORS = {
    "errors": 0,
    "array_types": 0,
    "version": 0,
    "output_files": 1,
    "parallel_map": 1,
    "parallel": 1,
    "html_images": 1,
    "html_templates": 1,
    "private_log": 1,
    "storage": 2,
    "ct": 3,
    "phantoms": 4,
    "data": 4,
    "models": 4,
    "evaluation": 5,
    "shortcuts": 6,
    "dicom_export": 6,
    "training": 6,
    "serving": 6,
    "pacs": 7,
    "exporting": 6,
    "drenet_jax": 7,  # the package itself reaches up to the pipeline
    "cli": 7,
}
ENTRY_POINT_FLOOR = 8


@functools.cache
def _modules() -> dict[str, Path]:
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


@functools.cache
def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            if not all(f"{node.module}.{alias.name}" in _modules() for alias in node.names):
                names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name in _modules()}


def _part(module: str) -> str:
    return module.split(".")[1]


def test_no_module_imports_one_above_it():
    for module, path in _modules().items():
        if module == "drenet_jax":
            continue
        part = _part(module)
        floor = FLOORS.get(part, ENTRY_POINT_FLOOR)
        for other in _imports(path):
            other_part = _part(other) if "." in other else "drenet_jax"
            other_floor = FLOORS.get(other_part, ENTRY_POINT_FLOOR)
            assert other_part == part or other_floor < floor, f"{module} imports {other}"


def test_no_circle_within_a_folder():
    graph = {module: _imports(path) for module, path in _modules().items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        if module != "drenet_jax":
            visit(module, ())


def _loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        ("ct.discovery ct.preprocess phantoms.dicom synthesize", {"jax", "tensorflow"}),
        ("cohort data.public", {"jax", "tensorflow", "cv2"}),
        ("data.transform data.preparation data.cohort_table", {"jax", "tensorflow"}),
        ("predict evaluation.pipeline", {"tensorflow", "tensorflow_datasets", "sklearn"}),
        ("serve", {"jax", "tensorflow", "fastapi"}),
        ("serving.app serving.server", {"tensorflow", "tensorflow_datasets", "sklearn"}),
    ],
)
def test_light_modules_load_nothing_heavy(modules, forbidden):
    code = "\n".join(f"import drenet_jax.{module}" for module in modules.split())
    assert not _loaded(code) & forbidden


def test_a_prediction_never_loads_tensorflow(trained, phantoms):
    folder = next((phantoms / "dicom").iterdir())
    code = (
        f"import drenet_jax\npredictor = drenet_jax.load({str(trained)!r})\n"
        f"assert predictor.person({str(folder)!r})['slices']"
    )
    assert not _loaded(code) & {"tensorflow", "tensorflow_datasets"}
