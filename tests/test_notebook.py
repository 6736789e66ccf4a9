"""The quickstart notebook runs from its first cell to its last."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"


def test_the_quickstart_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # One device, as a reader has; the tests' eight would need a batch size that they divide.
    monkeypatch.setenv("XLA_FLAGS", "")
    paths = (str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (setup,) = (cell for cell in notebook.cells if "PATIENTS, EPOCHS = 60, 10" in cell.source)
    setup.source = setup.source.replace("PATIENTS, EPOCHS = 60, 10", "PATIENTS, EPOCHS = 12, 1")

    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()

    person = next(cell for cell in notebook.cells if cell.source.endswith('result["person"]'))
    assert "'probabilities'" in person.outputs[-1]["data"]["text/plain"]
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2
    (report,) = tmp_path.glob("drenet_jax_*/person/report.html")
    assert report.stat().st_size > 10_000
