"""The files of `launch/cloud` and the commands of `docs/cloud.md`, read by the tools they are for.

The tools get an environment of their own (1 GB), kept beside those of `launch/_environment.sh`.
None of them reaches a cloud: they read files and command lines, or print what they would do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_cloud_launchers import ADDRESSES, CLOUD, REPOSITORY, job_of, jobset

from drenet_jax.train import PREEMPTED

pytestmark = pytest.mark.slow

TOOLS = (
    "kubeflow-trainer-api==2.3.0",  # has the models of JobSet
    "kubernetes-validate==1.37.0",
    "skypilot==0.14.1",
    "xpk==1.16.0",
)

READ_TASK = """
import sys, sky, yaml
name, *overrides = sys.argv[1:]
task = sky.Task.from_yaml_config(
    yaml.safe_load(open(name)), env_overrides=[item.split("=", 1) for item in overrides]
)
for resources in task.resources:
    (accelerator, count), = resources.accelerators.items()
    print(task.num_nodes, accelerator, count, resources.use_spot, resources.cloud,
          resources.job_recovery["recover_on_exit_codes"], sep="|")
"""

READ_COMMANDS = """
import shlex, sys
import click
from sky.client.cli.command import cli
for line in sys.stdin:
    command, words = cli, shlex.split(line)[1:]
    while isinstance(command, click.Group):
        name = words.pop(0)
        command = command.get_command(click.Context(command), name)
        assert command is not None, line
    command.make_context(name, words)
"""

READ_JOBSET = """
import json, sys
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet
json.dump(JobsetV1alpha2JobSet.from_dict(json.load(sys.stdin)).to_dict(), sys.stdout)
"""


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder of the tools' commands and of their Python."""
    key = hashlib.sha256(repr((TOOLS, sys.version)).encode()).hexdigest()[:12]
    environments = os.environ.get("DRENET_JAX_VENVS") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "drenet_jax", "venvs"
    )
    folder = Path(environments) / f"cloud-tools-{key}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        installed = subprocess.run(
            [folder / "bin" / "pip", "install", "--quiet", *TOOLS],
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode:
            pytest.skip(f"{', '.join(TOOLS)} cannot be installed: {installed.stderr[-300:]}")
        (folder / "complete").touch()
    return folder / "bin"


@pytest.fixture
def run(tools, tmp_path):
    """Runs a command in a home of its own; returns what it prints."""

    def run(*words: str, text: str = "") -> str:
        done = subprocess.run(
            [tools / words[0], *words[1:]],
            input=text,
            env=os.environ | {"HOME": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def documented(tool: str) -> list[str]:
    """The command lines of a tool on the page, with `x` for all variables."""
    page = (REPOSITORY / "docs" / "cloud.md").read_text().replace("\\\n", "")
    blocks = "".join(re.findall(r"```bash\n(.*?)```", page, re.S))
    lines = re.findall(rf"^{tool} .*$", blocks, re.M)
    assert lines, tool
    return [shlex.join(shlex.split(re.sub(r"\$\w+", "x", line), comments=True)) for line in lines]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("sky-gpu.yaml", {"1|A100|8|True|None", "1|A100-80GB|8|True|None", "1|H100|8|True|None"}),
        ("sky-tpu.yaml", {"1|tpu-v6e-8|1|True|GCP"}),
    ],
)
def test_skypilot_reads_its_files(name, read, run):
    overrides = [f"{key}={value}" for key, value in ADDRESSES.items()]
    lines = run("python", "-c", READ_TASK, str(CLOUD / name), *overrides).splitlines()
    assert {line for line in lines if "|" in line} == {f"{line}|[{PREEMPTED}]" for line in read}


def test_skypilot_knows_the_documented_commands(run):
    run("python", "-c", READ_COMMANDS, text="\n".join(documented("sky")))


def missing(written: object, read: object, path: str = "") -> list[str]:
    """What is written and was not read; defaults that reading adds do not count."""
    if isinstance(written, dict) and isinstance(read, dict):
        inner = [(key, value, read.get(key)) for key, value in written.items()]
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        inner = list(zip(range(len(written)), written, read, strict=True))
    else:
        return [] if written == read else [path]
    return [name for key, *values in inner for name in missing(*values, f"{path}/{key}")]


def test_jobset_knows_every_field(run):
    def unknown(manifest: dict) -> list[str]:
        # Its models drop what they do not know.
        return missing(
            manifest, json.loads(run("python", "-c", READ_JOBSET, text=json.dumps(manifest)))
        )

    assert not unknown(jobset())
    mistyped = jobset()
    mistyped["spec"]["failurePolicy"]["maxRestart"] = 3
    assert unknown(mistyped) == ["/spec/failurePolicy/maxRestart"]


def test_kubernetes_knows_every_field_of_the_job(run, tmp_path):
    job = tmp_path / "job.yaml"
    head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}}
    job.write_text(yaml.safe_dump(head | {"spec": job_of(jobset())}))
    assert " passed " in run("kubernetes-validate", "--strict", str(job))


def test_xpk_restarts_a_stopped_job(run):
    create, delete = documented("xpk")
    for command in (create, delete):
        output = run(*shlex.split(command), "--dry-run", "--skip-validation")
        if command is create:
            (made,) = re.findall(r"^apiVersion: jobset.*?^ *volumes:", output, re.M | re.S)
            made = yaml.safe_load(made)
    job = job_of(made)
    assert job["parallelism"] == 4  # hosts of a v6e-16
    (ends,) = job["podFailurePolicy"]["rules"]
    assert ends["onExitCodes"]["operator"] == "NotIn"
    assert PREEMPTED in ends["onExitCodes"]["values"]


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
def test_gcloud_knows_all_flags(tmp_path):
    where = ("--name=n", "--zone=us-east5-b", "--dry_run")
    printed = "".join(
        subprocess.run(
            ["bash", REPOSITORY / "launch" / "tpu" / "tpu.sh", *arguments, *where],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for arguments in (
            ("create", "--type=v6e-8"),
            ("create", "--type=v6e-8", "--spot"),
            ("delete",),
            ("delete", "--spot"),
        )
    )
    lines = [*printed.splitlines(), *documented("gcloud")]
    for line in lines:
        if " auth " in line:
            continue
        done = subprocess.run(
            [*shlex.split(line), "--project=no-such-project"],
            # Without an account, so that it ends when it has read its flags.
            env=os.environ
            | {
                "CLOUDSDK_CONFIG": str(tmp_path),
                "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
                "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "active account" in done.stderr, (line, done.stderr)
