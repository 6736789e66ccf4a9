"""`python -m drenet_jax.cohort` as a command."""

from __future__ import annotations

import inspect

from drenet_jax.data.cohort_table import read_cohort
from drenet_jax.data.public import DATASETS


def test_the_real_series_become_a_cohort_and_the_next_command(shared_data, tmp_path, command):
    out = tmp_path / "new folder" / "cohort.csv"
    done = command(
        "cohort",
        "--dataset=covid_ct_md",
        f"--root={shared_data / 'covid_ct_md'}",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == (
        f"{out} has 3 persons in 3 rows:\n"
        "  COVID-19: 1\n  CAP: 1\n  healthy: 1\n"
        f"next: python -m drenet_jax.prepare --cohort='{out}' --out=NEW_FOLDER\n"
    )
    cohort = read_cohort(out)
    assert cohort.labels == ("COVID-19", "CAP", "healthy")
    assert [len(list(person.paths[0].glob("*.dcm"))) for person in cohort.persons] == [
        *(148, 168, 154)
    ]


def test_splits_sites_what_is_left_out_and_notes_are_reported(tmp_path, command):
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    for name in ("NCP_1_1_0001.png", "NCP_2_1_0001.png", "Normal_3_1_0001.png", "odd.png"):
        (root / "images" / name).touch()
    (root / "train_COVIDx-CT.txt").write_text("NCP_1_1_0001.png 2 0 0 9 9\ngone.png 2 0 0 9 9\n")
    (root / "val_COVIDx-CT.txt").write_text("NCP_2_1_0001.png 2 0 0 9 9\n")
    (root / "test_COVIDx-CT.txt").write_text("Normal_3_1_0001.png 0 0 0 9 9\n")
    (root / "metadata.csv").write_text("patient id,source\nNCP_1,CNCB\nNormal_3,CNCB\n")
    done = command(
        "cohort", "--dataset=covidx_ct", f"--root={root}", f"--out={tmp_path / 'cohort.csv'}"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:-1] == [
        "  COVID-19: 2 (1 train, 1 validation)",
        "  healthy: 1 (1 test)",
        "  COVID-19 by site: 1 CNCB, 1 of an unknown site",
        "  healthy by site: 1 CNCB",
        "left out: slices of the lists that are not there: 1 (the first: gone.png)",
        "left out: slices in no list: 1 (the first: odd.png)",
        "note: metadata.csv does not name the persons of 1 slices (the first: NCP_2_1_0001.png); "
        "these are taken from the file names.",
    ]


def test_a_bad_root_dataset_or_out_exits_with_2_and_one_sentence(tmp_path, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    out = f"--out={tmp_path / 'new' / 'cohort.csv'}"
    for flags, message in (
        (["--dataset=mosmed", f"--root={tmp_path / 'empty'}", out], "found nothing; give --root"),
        (["--dataset=mosmed", f"--root={tmp_path / 'file'}", out], "is no folder that can be read"),
        (["--dataset=odd", f"--root={tmp_path}", out], "covid_ct_md|covid_ct|covidx_ct"),
        (["--dataset=folders", f"--root={tmp_path}"], "--out"),
    ):
        done = command("cohort", *flags)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
        assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_help_tells_of_each_data_set_what_one_must_know(command):
    done = command("cohort", "--help")
    assert done.returncode == 0
    assert "python -m drenet_jax.cohort --dataset=folders" in done.stdout
    for name, dataset in DATASETS.items():
        assert f"\n{name}\n\n{inspect.getdoc(dataset)}" in done.stdout
        for what in ("Layout:", "Labels:", "Persons:", "Split"):
            assert f"\n{what}" in inspect.getdoc(dataset)
        if name != "folders":
            assert "\nCite: " in inspect.getdoc(dataset)
            assert "\nTerms: " in inspect.getdoc(dataset)
