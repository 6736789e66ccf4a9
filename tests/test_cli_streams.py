"""Closed, full or ASCII-only stdout and stderr cause no traceback and lose no output files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

COMMANDS = [
    "synthesize",
    "cohort",
    "prepare",
    "train",
    "evaluate",
    "compare",
    "crossvalidate",
    "predict",
    "serve",
    "convert_weights",
    "benchmark",
]

ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


def _run(name, *flags, environment=(), shell=""):
    """Runs a command; `shell` is what follows it on the command line."""
    arguments = [sys.executable, "-m", f"drenet_jax.{name}", *map(str, flags)]
    if shell:
        arguments = ["bash", "-c", f'"$@" {shell}', "bash", *arguments]
    return subprocess.run(
        arguments,
        cwd=REPOSITORY,
        env={**os.environ, **dict(environment)},
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def odd_place(tmp_path):
    """A folder whose name is neither ASCII nor, in one part, UTF-8."""
    folder = tmp_path / os.fsdecode("José × – 胸".encode() + b" \xe9")
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "environment"),
    [(name, ASCII[0]) for name in COMMANDS]
    + [("train", ASCII[1])]
    + [
        pytest.param(name, ASCII[1], marks=pytest.mark.slow) for name in COMMANDS if name != "train"
    ],
)
def test_every_help_can_be_printed_in_ascii(name, environment):
    done = _run(name, "--help", environment=environment)
    assert done.returncode == 0, done.stderr
    assert f"python -m drenet_jax.{name}".encode() in done.stdout
    assert done.stdout.isascii()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("environment", ASCII[1:])
def test_commands_print_odd_names_in_ascii(environment, odd_place, trained, phantoms):
    person = odd_place / "person"
    person.symlink_to(sorted((phantoms / "dicom").iterdir())[0])
    out = odd_place / "out"
    flags = (f"--workdir={trained}", f"--input={person}", f"--out={out}")
    done = _run("predict", *flags, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert json.loads((out / "result.json").read_text())["person"]["n_slices"] > 0
    done = _run("predict", *flags, environment=environment)
    assert done.returncode == 2
    assert b"exists already" in done.stderr
    assert b"Traceback" not in done.stderr
    done = _run("synthesize", f"--out={odd_place / 'cohort'}", "--persons=3", "--size=96",
                environment=environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (odd_place / "cohort" / "cohort.csv").is_file()


@pytest.mark.slow
def test_a_whole_study_under_an_odd_name(tmp_path):
    """Labels and folders that are not ASCII, from the cohort to the evaluation."""
    environment = ASCII[0]
    place = tmp_path / "Größe × 胸"
    place.mkdir()

    def run(name, *flags):
        done = _run(name, *flags, environment=environment)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.isascii()

    run("synthesize", f"--out={place / 'a'}", "--persons=12", "--size=96", "--seed=3")
    cohort = place / "a" / "cohort.csv"
    text = cohort.read_text(encoding="utf-8").replace(",healthy,", ",gesund – ohne Befund,")
    cohort.write_text(text, encoding="utf-8")
    run("prepare", f"--cohort={cohort}", f"--out={place / 'data'}", "--config.image_size_px=96",
        "--fractions=50,25,25")  # fmt: skip
    tiny = (
        "--config.model.name=resnet18",
        "--config.model.width=4",
        "--config.model.image_size_px=96",
        "--config.data.batch_size=8",
        "--config.train.accumulate=1",
        "--config.train.steps=2",
        "--config.evaluation.bootstrap_draws=20",
    )
    run("train", "--config=configs/resnet50.py", f"--config.data.dir={place / 'data'}",
        f"--workdir={place / 'run'}", *tiny)  # fmt: skip
    run("evaluate", f"--workdir={place / 'run'}", f"--out={place / 'test'}")
    metrics = json.loads((place / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert "gesund – ohne Befund" in metrics["labels"]


@pytest.mark.parametrize("unbuffered", [pytest.param("", marks=pytest.mark.slow), "1"])
def test_a_reader_who_has_gone_is_no_mistake(unbuffered, trained, phantoms, tmp_path):
    person = sorted((phantoms / "dicom").iterdir())[0]
    out = tmp_path / "out"
    done = _run(
        "predict",
        f"--workdir={trained}",
        f"--input={person}",
        f"--out={out}",
        environment={"PYTHONUNBUFFERED": unbuffered},
        shell="| true; exit ${PIPESTATUS[0]}",
    )
    # As the shell has it of a program that SIGPIPE ends.
    assert done.returncode == 141
    assert done.stderr == b""
    assert (out / "result.json").is_file()
    done = _run("predict", "--help", shell="| true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    "closed",
    [
        ">&-",
        pytest.param("2>&-", marks=pytest.mark.slow),
        pytest.param(">&- 2>&-", marks=pytest.mark.slow),
        "<&- >&- 2>&-",
    ],
)
def test_streams_that_are_closed_from_the_start(closed, trained, phantoms, tmp_path):
    person = sorted((phantoms / "dicom").iterdir())[0]
    flags = [f"--workdir={trained}", f"--input={person}", f"--out={tmp_path / 'out'}"]
    done = _run("predict", *flags, shell=closed)
    assert done.returncode == 0, done.stderr
    # Nothing that was meant for a stream is in a file.
    assert json.loads((tmp_path / "out" / "result.json").read_text())["slices"]
    done = _run("predict", *flags, shell=closed)
    assert done.returncode == 2


def test_a_full_disk_under_stdout_is_reported(trained, phantoms, tmp_path):
    person = sorted((phantoms / "dicom").iterdir())[0]
    flags = [f"--workdir={trained}", f"--input={person}", f"--out={tmp_path / 'out'}"]
    done = _run("predict", *flags, shell="> /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: the disk is full")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("predict", b"--input=a\0b"),
        ("predict", b"--out=a\0b"),
        ("evaluate", b"--workdir=a\0b"),
        ("prepare", b"--cohort=a\0b"),
        ("prepare", b"--labels=a,b\0"),
        ("train", b"--config.data.dir=a\0b"),
    ],
)
def test_a_nul_in_a_flag_is_refused_by_its_name(name, line, tmp_path):
    if line.startswith(b"--config."):
        path = tmp_path / "config.py"
        path.write_text(
            "import runpy\n"
            "def get_config():\n"
            f"    config = runpy.run_path({str(REPOSITORY / 'configs' / 'drenet.py')!r})"
            "['get_config']()\n"
            "    config.data.dir = 'a\\0b'\n"
            "    return config\n"
        )
        flags = [f"--config={path}"]
    else:
        # A process takes no NUL on its command line; absl reads flags from a file, too.
        (tmp_path / "flags").write_bytes(line + b"\n")
        flags = [f"--flagfile={tmp_path / 'flags'}"]
    given = line.split(b"=")[0].decode()
    for flag in ("--input", "--out", "--workdir", "--cohort"):
        needed = {
            "predict": ("--input", "--out", "--workdir"),
            "evaluate": ("--out", "--workdir"),
            "prepare": ("--cohort", "--out"),
            "train": ("--workdir",),
        }[name]
        if flag in needed and flag != given:
            flags.append(f"{flag}={tmp_path / 'x'}")
    done = _run(name, *flags)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {given}=".encode()), done.stderr
    assert b"holds a NUL" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()
