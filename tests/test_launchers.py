"""The launchers: printed commands, refusals and restarts, with mocks of cloud tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = [
    *sorted(REPOSITORY.glob("launch/**/*.sh")),
    *sorted(REPOSITORY.glob("studies/**/*.sh")),
    REPOSITORY / ".ci" / "run",
]
TRAIN_FLAGS = ("--config=configs/drenet.py", "--workdir=runs/my run", "--config.data.dir=data")
SHOWN_TRAIN_FLAGS = "--config=configs/drenet.py '--workdir=runs/my run' --config.data.dir=data"
TPU = ("--name=n", "--zone=z")

# Stands in for Python: writes down its arguments, and ends with the exit codes of a list in turn.
ENDS_IN_TURN = """#!/bin/bash
echo "$*" >> "$HERE/calls"
codes=($CODES)
exit "${codes[$(($(wc -l < "$HERE/calls") - 1))]}"
"""

# Stands in for training that receives a stop signal.
SAVES_WHEN_TOLD = """#!/bin/bash
echo "$*" >> "$HERE/calls"
trap 'sleep 0.2; exit 75' TERM
touch "$HERE/started"
while :; do sleep 0.05; done
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a shell script where a command is looked for; `calls` then lists its arguments."""
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(name: str, script: str) -> Path:
        path = tmp_path / name
        path.write_text(script)
        path.chmod(0o755)
        return path

    # Whatever a test does, no cloud hears of it.
    put("gcloud", '#!/bin/bash\necho "gcloud $*" >> "$HERE/calls"\n')
    return put


@pytest.fixture
def calls(tmp_path):
    def read() -> list[str]:
        path = tmp_path / "calls"
        return path.read_text().splitlines() if path.exists() else []

    return read


def launch(script: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", f"launch/{script}", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(script: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        # Where the tests run in the background, what they start would ignore a Ctrl-C.
        ["env", "--default-signal=INT", "bash", f"launch/{script}", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_every_script(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(
        ["shellcheck", *SCRIPTS], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "script",
    [
        "gpu/train.sh",
        "gpu/slurm.sh",
        "gpu/measure.sh",
        "tpu/tpu.sh",
        "cloud/install.sh",
        "docker/serve.sh",
        "rehearse.sh",
        "compile_check.sh",
    ],
)
def test_help_shows_how_to_call(script):
    result = launch(script, "--help")
    assert result.returncode == 0
    assert f"launch/{script}" in result.stdout
    assert "#" not in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("gpu/train.sh", TRAIN_FLAGS[1:], "--config is missing"),
        ("gpu/train.sh", TRAIN_FLAGS[:1], "--workdir is missing"),
        ("gpu/train.sh", (*TRAIN_FLAGS, "more"), "'more' is not a flag"),
        ("gpu/slurm.sh", TRAIN_FLAGS[:1], "--workdir is missing"),
        ("gpu/slurm.sh", TRAIN_FLAGS, "submit it with sbatch"),
        ("gpu/measure.sh", (), "--out is missing"),
        ("gpu/measure.sh", ("--out=/tmp",), "--out=/tmp exists already"),
        ("gpu/measure.sh", ("speed",), "'speed' is not known"),
        ("compile_check.sh", ("h100",), "'h100' is not known"),
        ("compile_check.sh", ("--page", "--out=/nowhere"), "omit --out"),
        ("docker/serve.sh", (), "--workdir is missing"),
        ("docker/serve.sh", ("--workdir=/nowhere",), "--workdir=/nowhere is no folder"),
        ("docker/serve.sh", ("--workdir=/", "--token_file=/t"), "cannot read --token_file=/t"),
        ("docker/serve.sh", ("--workdir=/",), "DRENET_TOKEN is not set"),
        ("docker/serve.sh", ("--workdir=/", "8000"), "'8000' is not a flag"),
        ("tpu/tpu.sh", (), "no command is given"),
        ("tpu/tpu.sh", ("fly", *TPU), "'fly' is not known"),
        ("tpu/tpu.sh", ("delete", "--name=n"), "delete needs --zone"),
        ("tpu/tpu.sh", ("create", *TPU), "create needs --type"),
        ("tpu/tpu.sh", ("create", *TPU, "--type=v9-8"), "give it as --runtime"),
        ("tpu/tpu.sh", ("train", *TPU), "needs -- and the flags"),
        ("tpu/tpu.sh", ("install", *TPU, "--share=a:/b"), "is not known"),
        ("cloud/install.sh", ("cuda",), "'cuda' is not known"),
        ("rehearse.sh", ("now",), "takes none"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    script, arguments, message, stand_in, calls, monkeypatch
):
    for name in ("SLURM_JOB_ID", "DRENET_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    result = launch(script, *arguments)
    assert result.returncode == 2
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert message in sentence
    assert not calls()


def test_gpu_dry_run(stand_in, calls, monkeypatch):
    monkeypatch.delenv("DRENET_JAX_PYTHON", raising=False)
    result = launch("gpu/train.sh", *TRAIN_FLAGS, "--dry_run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        ". launch/_environment.sh",
        "use_environment '[cuda12]'",
        f"python -m drenet_jax.train {SHOWN_TRAIN_FLAGS}",
        "# as long as that ends with exit code 75: the same again",
    ]


def test_slurm_dry_run(monkeypatch):
    for name in ("DRENET_JAX_PYTHON", "SLURM_JOB_ID", "SLURM_SUBMIT_DIR"):
        monkeypatch.delenv(name, raising=False)
    result = launch("gpu/slurm.sh", "--dry_run", *TRAIN_FLAGS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        ". launch/_environment.sh",
        "use_environment '[cuda12]'",
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        f"srun --kill-on-bad-exit=0 --wait=120 python -m drenet_jax.train {SHOWN_TRAIN_FLAGS}",
        "# on SIGTERM, which --signal asks for:",
        'scancel --signal=TERM "$SLURM_JOB_ID"',
        "# if training ends with exit code 75:",
        'scontrol requeue "$SLURM_JOB_ID"',
    ]


DELETE_SPOT = "gcloud compute tpus queued-resources delete n --force --quiet --zone=z"
SSH = (
    "gcloud compute tpus tpu-vm ssh n --worker=all --ssh-flag=-oServerAliveInterval=60 --zone=z "
    "'--command="
)
INSTALL = [
    "git archive --format=tar.gz --output=/scratch/drenet_jax.tar.gz HEAD",
    "gcloud compute tpus tpu-vm scp /scratch/drenet_jax.tar.gz n:drenet_jax.tar.gz --worker=all "
    "--zone=z",
    f"{SSH}rm -rf drenet_jax && mkdir drenet_jax && tar -xzf drenet_jax.tar.gz -C drenet_jax "
    "&& cd drenet_jax && bash launch/cloud/install.sh tpu'",
]
TRAIN = (
    f"{SSH}cd drenet_jax && .venv/bin/python -m drenet_jax.train --config=c "
    "'\\''--workdir=gs://b/my run'\\'''"
)


@pytest.mark.parametrize(
    ("arguments", "commands"),
    [
        (
            ("create", *TPU, "--type=v4-8"),
            [
                "gcloud compute tpus tpu-vm create n --accelerator-type=v4-8 "
                "--version=tpu-ubuntu2204-base --zone=z"
            ],
        ),
        (
            ("create", *TPU, "--type=v5litepod-16", "--project=p", "--spot"),
            [
                "gcloud compute tpus queued-resources create n --node-id=n "
                "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot "
                "--zone=z --project=p"
            ],
        ),
        (("install", *TPU), INSTALL),
        (("train", *TPU, "--", "--config=c", "--workdir=gs://b/my run"), [TRAIN]),
        (("delete", *TPU, "--spot"), [DELETE_SPOT]),
        (("delete", *TPU), ["gcloud compute tpus tpu-vm delete n --quiet --zone=z"]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_tpu_dry_run(arguments, commands, stand_in, calls, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/scratch")
    first, *rest = arguments
    # Wherever it stands: somebody who wants a trial must not get a bill.
    for tried in ((first, "--dry_run", *rest), (*arguments, "--dry_run")):
        result = launch("tpu/tpu.sh", *tried)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines() == commands
        assert not result.stderr
    assert not calls()


def test_gpu_training_goes_on_after_preemptions_and_ends_with_its_code(
    stand_in, calls, monkeypatch
):
    monkeypatch.setenv("DRENET_JAX_PYTHON", str(stand_in("python-of-mine", ENDS_IN_TURN)))
    monkeypatch.setenv("CODES", "75 75 3")
    result = launch("gpu/train.sh", *TRAIN_FLAGS)
    assert result.returncode == 3
    assert calls() == [f"-m drenet_jax.train {' '.join(TRAIN_FLAGS)}"] * 3


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_gpu_launcher_that_is_asked_to_stop_lets_training_save_and_stops(
    signal_number, stand_in, calls, monkeypatch, tmp_path
):
    monkeypatch.setenv("DRENET_JAX_PYTHON", str(stand_in("python-of-mine", SAVES_WHEN_TOLD)))
    process = start("gpu/train.sh", *TRAIN_FLAGS)
    wait_for(tmp_path / "started")
    process.send_signal(signal_number)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert len(calls()) == 1


@pytest.fixture
def slurm(stand_in, monkeypatch, tmp_path):
    """A Slurm of one node."""
    stand_in("srun", '#!/bin/bash\nshift 2\nexec "$@"\n')
    stand_in(
        "scancel",
        '#!/bin/bash\necho "scancel $*" >> "$HERE/calls"\nkill -TERM "$(cat "$HERE/pid")"\n',
    )
    stand_in("scontrol", '#!/bin/bash\necho "scontrol $*" >> "$HERE/calls"\n')
    stand_in("squeue", '#!/bin/bash\necho "${JOB_STATE:-RUNNING}"\n')
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(REPOSITORY))


# 143: SIGTERM came before training handles it.
@pytest.mark.parametrize("code", [75, 143])
def test_slurm_queues_a_preempted_job_again(code, slurm, stand_in, calls, monkeypatch):
    monkeypatch.setenv("DRENET_JAX_PYTHON", str(stand_in("python-of-mine", ENDS_IN_TURN)))
    monkeypatch.setenv("CODES", str(code))
    result = launch("gpu/slurm.sh", *TRAIN_FLAGS)
    assert result.returncode == code
    assert calls() == [
        f"-m drenet_jax.train {' '.join(TRAIN_FLAGS)}",
        "scontrol requeue 17",
    ]


# COMPLETING: Slurm is cancelling the job, or queues it again itself.
@pytest.mark.parametrize(
    ("code", "state"), [(0, "RUNNING"), (2, "RUNNING"), (75, "COMPLETING"), (143, "COMPLETING")]
)
def test_slurm_job_that_ended_is_not_queued_again(code, state, slurm, stand_in, calls, monkeypatch):
    monkeypatch.setenv("JOB_STATE", state)
    monkeypatch.setenv("DRENET_JAX_PYTHON", str(stand_in("python-of-mine", ENDS_IN_TURN)))
    monkeypatch.setenv("CODES", str(code))
    assert launch("gpu/slurm.sh", *TRAIN_FLAGS).returncode == code
    assert len(calls()) == 1


def test_slurm_passes_its_signal_to_training(slurm, stand_in, calls, monkeypatch, tmp_path):
    python = stand_in(
        "python-of-mine", SAVES_WHEN_TOLD.replace("touch", 'echo $$ > "$HERE/pid"\ntouch')
    )
    monkeypatch.setenv("DRENET_JAX_PYTHON", str(python))
    process = start("gpu/slurm.sh", *TRAIN_FLAGS)
    wait_for(tmp_path / "started")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert calls()[1:] == ["scancel --signal=TERM 17", "scontrol requeue 17"]


def test_constraints_pin_the_dependencies():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pinned = dict(
        line.split("==")
        for line in (REPOSITORY / "launch/constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    extras = project["optional-dependencies"]
    for requirement in [
        *project["dependencies"],
        *(package for extra in ("serve", "node", "onnx", "openvino") for package in extras[extra]),
    ]:
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")
        if name != "tensorflow":  # for other machines than x86-64 with Linux
            assert name in pinned, name


@pytest.mark.slow
def test_two_processes_get_the_weights_of_one(monkeypatch):
    monkeypatch.setenv("DRENET_JAX_PYTHON", sys.executable)
    result = launch("rehearse.sh", timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "PASS"


@pytest.mark.slow
def test_the_measurement_of_a_gpu_can_be_rehearsed_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("DRENET_JAX_PYTHON", sys.executable)
    # Speeds of one device are measured; the tests have eight.
    monkeypatch.setenv("XLA_FLAGS", "")
    out = tmp_path / "measured"
    done = launch("gpu/measure.sh", f"--out={out}", "--batch=2", "--cpu", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((out / "parity.json").read_text())["rows"]
    by_name = {row["what"]: row["value"] for row in rows}
    # The same device in the same type differs by nothing; in bfloat16 by a tenth here, since a
    # small random network picks other boxes.
    assert by_name["cpu, float32: largest difference of a probability"] == 0
    assert 0 < by_name["cpu, bfloat16: largest difference of a probability"] < 300_000
    whats = [row["what"] for row in json.loads((out / "speed.json").read_text())["rows"]]
    assert any(what.startswith("training step, per slice (batch 2") for what in whats)
    assert (out / "run" / "metrics.jsonl").read_text()
    assert "training step" in (out / "log").read_text()
