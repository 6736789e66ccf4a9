"""`prepare` reports every patient of a cohort of odd and broken inputs."""

from __future__ import annotations

import csv

import pytest
from ct import odd_inputs
from ct.conftest import draw_chest

from drenet_jax.data.prepared_data import open_data


@pytest.mark.slow
def test_every_odd_person_is_in_a_split_or_reported(tmp_path, command):
    # Most cases are the same chest in other files: persons of one split and label, which is noted.
    rows, expected = ["patient_id,path,label,split"], {}
    for name, case in odd_inputs.CASES.items():
        path = odd_inputs.make(name, tmp_path)
        if name in ("an_empty_folder", "files_of_no_bytes", "text_called_dcm"):
            continue  # refused before all work: see test_cli_errors
        rows.append(f"{name},{path.relative_to(tmp_path)},a,train")
        expected[name] = case.n_kept
    other = tmp_path / "other"
    other.mkdir()
    odd_inputs.series(other, hu=draw_chest(lung_scale=0.95))
    rows.append(f"other,{other.relative_to(tmp_path)},b,test")
    expected["other"] = odd_inputs.N
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "data"
    done = command(
        "prepare",
        f"--cohort={tmp_path / 'cohort.csv'}",
        f"--out={out}",
        "--config.image_size_px=96",
        "--workers=2",
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    data = open_data(out)
    kept = {person for persons in data.persons.values() for person in persons}
    assert kept == {name for name, n in expected.items() if n}
    assert sum(data.n_slices.values()) == sum(expected.values())
    with (out / "excluded.csv").open() as file:
        excluded = {row["patient_id"] for row in csv.DictReader(file) if not row["file"]}
    assert excluded == expected.keys() - kept
