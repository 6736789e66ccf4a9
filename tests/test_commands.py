"""All commands in sequence, from phantoms to a report."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_from_nothing_to_a_report(tmp_path, command):
    flags = [
        "--config=configs/demo.py",
        "--config.model.width=4",
        "--config.model.image_size_px=96",
        "--config.model.crop_size_px=48",
        "--config.model.anchor_sizes_px=(24,40)",
        "--config.model.train_proposals=(2,)",
        "--config.model.top_k=(2,)",
        "--config.model.nms_iou=0.5",
        "--config.train.steps=2",
        "--config.evaluation.bootstrap_draws=20",
    ]

    def run(name, *flags):
        done = command(name, *flags)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr, done.stderr
        return done.stdout

    run("synthesize", f"--out={tmp_path}/phantoms", "--persons=9", "--size=96", "--workers=1")
    output = run(
        "prepare",
        f"--cohort={tmp_path}/phantoms/cohort.csv",
        f"--out={tmp_path}/data",
        "--config.image_size_px=96",
        "--fractions=40,30,30",
        "--workers=2",
    )
    assert "train: 3 persons" in output
    assert f"{tmp_path}/data/qc.html" in output
    run("train", *flags, f"--config.data.dir={tmp_path}/data", f"--workdir={tmp_path}/run")
    output = run("evaluate", f"--workdir={tmp_path}/run", f"--out={tmp_path}/test")
    assert "person AUC, COVID-19 against the rest" in output
    output = run("compare", f"--runs={tmp_path}/run,{tmp_path}/test", f"--out={tmp_path}/compared")
    assert "test less run: AUC +0.000" in output
    assert "| test |" in (tmp_path / "compared" / "compare.md").read_text()
    refused = command(
        "crossvalidate",
        *flags,
        f"--data={tmp_path}/data",
        "--folds=4",
        f"--workdir={tmp_path}/folds",
    )
    assert refused.returncode == 2
    assert "ask for fewer folds" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "folds").exists()
    person = next((tmp_path / "phantoms" / "dicom").iterdir())
    output = run(
        "predict", f"--workdir={tmp_path}/run", f"--input={person}", f"--out={tmp_path}/one"
    )
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert output.startswith(result["person"]["label"])
    report = (tmp_path / "one" / "report.html").read_text()
    assert result["person"]["label"] in report
    assert "http://" not in report
    assert "https://" not in report
