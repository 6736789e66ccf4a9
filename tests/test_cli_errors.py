"""Bad input: exit code 2, one sentence that names the file and the fix, nothing left behind."""

from __future__ import annotations

import cv2
import numpy as np
import pytest


def _tree(folder):
    return sorted(path for path in folder.rglob("*") if ".pytest" not in str(path))


@pytest.fixture
def cohort(tmp_path, phantoms):
    """Writes a cohort.csv of the given rows; paths may name two good persons `a` and `b`."""
    for name, source in zip("ab", sorted((phantoms / "dicom").iterdir()), strict=False):
        (tmp_path / name).symlink_to(source)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "1.dcm").write_text("This is no DICOM file.\n" * 30)

    def write(*rows, header="patient_id,path,label"):
        path = tmp_path / "cohort.csv"
        path.write_text("\n".join((header, *rows)) + "\n")
        return path

    return write


def _check(done, *messages):
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for text in messages:
        assert text in lines[0]


@pytest.mark.parametrize(
    ("rows", "flags", "messages"),
    [
        (["p1,a,ill", "p2,empty,well"], [], ["/empty is an empty folder", "name one with"]),
        (["p1,a,ill", "p2,text,well"], [], ["1.dcm", "name a CT series in DICOM"]),
        (["p1,a,ill", "p2,gone,well"], [], ["line 3", "gone does not exist"]),
        (["p1,a,ill", "p2,b,odd"], ["--labels=ill,well"], ["unknown label 'odd'", "--labels"]),
        (["p1,a,ill"], ["--fractions=60,40"], ["--fractions=60,40 must be three numbers"]),
        (["p1,a,ill"], ["--workers=0"], ["--workers=0"]),
        (["p1,a,ill"], ["--config.image_size=9"], ["image_size", "image_size_px"]),
        (["p1,a,ill"], ["--config.image_size_px=9"], ["at least 32 pixels"]),
        (["p1,a,ill"], ["--oops=1"], ["Unknown command line flag 'oops'"]),
        (["p1,a,ill"], ["oops"], ["'oops' is not a flag"]),
    ],
)
def test_prepare_refuses(rows, flags, messages, cohort, tmp_path, command):
    path = cohort(*rows)
    before = _tree(tmp_path)
    done = command("prepare", f"--cohort={path}", f"--out={tmp_path / 'out'}", *flags)
    _check(done, *messages)
    assert _tree(tmp_path) == before


def test_prepare_refuses_a_person_in_two_splits(cohort, tmp_path, command):
    path = cohort(
        "p1,a,ill,train", "p1,b,ill,test", "p2,b,well,train", header="patient_id,path,label,split"
    )
    done = command("prepare", f"--cohort={path}", f"--out={tmp_path / 'out'}")
    _check(done, "person 'p1' has split 'test' here and 'train' in line 2")


def test_an_existing_or_unwritable_out_is_refused(cohort, tmp_path, command):
    path = cohort("p1,a,ill", "p2,b,well")
    done = command("prepare", f"--cohort={path}", f"--out={tmp_path / 'text'}")
    _check(done, "--out=", "exists already")
    done = command("prepare", f"--cohort={path}", f"--out={path}/out")
    _check(done, "--out=", "cannot be written")


def test_a_missing_flag_or_config_file_is_reported(tmp_path, command):
    _check(command("prepare", f"--out={tmp_path / 'out'}"), "--cohort")
    done = command("train", "--config=configs/nothing.py", f"--workdir={tmp_path / 'run'}")
    _check(done, "configs/nothing.py")


def test_train_refuses_a_misspelt_field_and_data_that_is_not_there(tmp_path, command):
    flags = ["--config=configs/drenet.py", f"--workdir={tmp_path / 'run'}"]
    _check(command("train", *flags, "--config.train.step=3"), "step", "steps")
    _check(command("train", *flags, "--config.train.steps=three"), "train.steps")
    done = command("train", *flags, f"--config.data.dir={tmp_path}")
    _check(done, f"{tmp_path} is not a folder that prepare wrote", "--config.data.dir")
    assert not list(tmp_path.iterdir())


def test_evaluate_refuses_a_workdir_without_a_checkpoint_and_an_unknown_split(
    tmp_path, command, trained
):
    flags = [f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}"]
    _check(command("evaluate", *flags), f"--workdir={tmp_path} holds no checkpoint")
    done = command("evaluate", f"--workdir={trained}", flags[1], "--split=dev")
    _check(done, "split", "train|validation|test")
    assert not list(tmp_path.iterdir())


def test_evaluate_refuses_data_that_has_gone(tmp_path, command, trained, prepared):
    gone = prepared.with_name("gone")
    prepared.rename(gone)
    try:
        done = command("evaluate", f"--workdir={trained}", f"--out={tmp_path / 'out'}")
    finally:
        gone.rename(prepared)
    _check(done, f"{prepared} is not a folder that prepare wrote")
    assert not list(tmp_path.iterdir())


def _holiday_photo() -> np.ndarray:
    """Sky, hills, a sun and a lake, in colour."""
    height, width = 480, 640
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = np.zeros((height, width, 3), np.float32)
    image[:] = np.stack([230 - y * 0.2, 170 - y * 0.1, 90 + y * 0.1], axis=-1)
    hill = y > 250 + 40 * np.sin(x / 70) + 20 * np.sin(x / 23)
    image[hill] = (60, 140, 70)
    image[(y > 380) & (x > 200)] = (180, 120, 60)
    cv2.circle(image, (500, 90), 40, (80, 220, 250), -1)
    noise = np.random.default_rng(0).normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("grey", [False, True])
def test_predict_refuses_a_holiday_photo(grey, tmp_path, command, trained):
    photo = _holiday_photo()
    if grey:
        photo = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(tmp_path / "beach.jpg"), photo)
    done = command(
        "predict",
        f"--workdir={trained}",
        f"--input={tmp_path / 'beach.jpg'}",
        f"--out={tmp_path / 'out'}",
    )
    _check(done, "beach.jpg", "invalid input" if grey else "colour picture")
    assert _tree(tmp_path) == [tmp_path / "beach.jpg"]


@pytest.mark.parametrize("what", ["empty", "text", "text/1.dcm", "gone"])
def test_predict_refuses_what_holds_no_slice(what, cohort, tmp_path, command, trained):
    cohort("p1,a,ill")
    before = _tree(tmp_path)
    done = command(
        "predict",
        f"--workdir={trained}",
        f"--input={tmp_path / what}",
        f"--out={tmp_path / 'out'}",
    )
    _check(done, what)
    assert _tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("cohort", ("--dataset=covid_ct", "--root=gs://bucket/a", "--out={}/cohort.csv")),
        ("predict", ("--workdir={}", "--input={}", "--out={}/p", "--dicom_out=s3://bucket/a")),
    ],
)
def test_an_address_is_refused_where_only_a_local_path_can_be_used(name, flags, tmp_path, command):
    done = command(name, *(flag.format(tmp_path) for flag in flags))
    _check(done, "://bucket/a must be on a local disk; name a path there.")
    assert _tree(tmp_path) == []
