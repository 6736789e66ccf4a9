"""What the managed launchers of `launch/cloud` promise, and what their tools make of them."""

from __future__ import annotations

import json
import os
import re
import signal
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from drenet_jax import parallel
from drenet_jax.train import PREEMPTED

REPOSITORY = Path(__file__).resolve().parents[1]
CLOUD = REPOSITORY / "launch" / "cloud"
ADDRESSES = {"DATA": "gs://bucket/data", "WORKDIR": "s3://bucket/runs/mine"}
# What SkyPilot sets on the second of two machines.
SECOND_NODE = {
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
}
# 16 slices on each of 16 GPUs.
TWO_NODES = {"FLAGS": "--config.data.batch_size=256 --config.seed=1"}
BAD_INPUT = 2

# Prints what `train` reads from its command line.
PARSE = """
import json, sys
from absl import flags
from drenet_jax import train
train.define_flags()
values = flags.FLAGS
assert values(sys.argv)[1:] == []
print(json.dumps({
    name: values[name].value for name in ("workdir", "coordinator", "num_processes", "process_id")
} | {"data": values.config.data.dir, "batch_size": values.config.data.batch_size}))
"""


def sky_file(name: str) -> dict:
    return yaml.safe_load((CLOUD / name).read_text())


def jobset() -> dict:
    text = (CLOUD / "gke-jobset.yaml").read_text()
    # As `envsubst` of these three.
    return yaml.safe_load(string.Template(text).safe_substitute(ADDRESSES, IMAGE="registry/image"))


def job_of(jobset: dict) -> dict:
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


def train_container(jobset: dict) -> dict:
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container


def as_read(arguments: list[str]) -> dict:
    """The values that `train` reads from these arguments; unknown flags fail."""
    done = subprocess.run(
        [sys.executable, "-c", PARSE, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ran_by_sky(name: str, folder: Path, **variables: str) -> list[str]:
    """The arguments of `python` in the section `run` of a SkyPilot file."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    file = sky_file(name)
    required = [key for key, value in file["envs"].items() if value is None]
    assert required == ["DATA", "WORKDIR"]
    done = subprocess.run(
        ["bash", "-c", file["run"]],
        cwd=folder,
        env=os.environ | {"FLAGS": ""} | ADDRESSES | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    module, name, *arguments = done.stdout.splitlines()
    assert (module, name) == ("-m", "drenet_jax.train")
    return arguments


def test_skypilot_machines_with_gpus_find_each_other(tmp_path):
    read = as_read(ran_by_sky("sky-gpu.yaml", tmp_path, **SECOND_NODE, **TWO_NODES))
    assert read == {
        "workdir": ADDRESSES["WORKDIR"],
        "data": ADDRESSES["DATA"],
        "coordinator": "10.0.0.1:9911",
        "num_processes": 2,
        "process_id": 1,
        "batch_size": 256,
    }
    parallel._check_processes(read["coordinator"], read["num_processes"], read["process_id"])


def test_skypilot_leaves_the_hosts_of_a_tpu_to_find_each_other(tmp_path):
    read = as_read(ran_by_sky("sky-tpu.yaml", tmp_path))
    assert (read["workdir"], read["data"]) == (ADDRESSES["WORKDIR"], ADDRESSES["DATA"])
    assert (read["coordinator"], read["num_processes"], read["process_id"]) == ("", None, None)


@pytest.mark.parametrize(("name", "extra"), [("sky-gpu.yaml", "cuda12"), ("sky-tpu.yaml", "tpu")])
def test_skypilot_recovers_what_was_stopped_on_spot_machines(name, extra):
    file = sky_file(name)
    assert file["resources"]["use_spot"] is True
    assert file["resources"]["job_recovery"] == {"recover_on_exit_codes": [PREEMPTED]}
    assert file["setup"] == f"bash launch/cloud/install.sh {extra}"


def test_jobset_restarts_all_but_bad_input():
    spec = jobset()["spec"]
    job = job_of(jobset())
    # JobSet restarts a failed job unless a rule names the reason.
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert spec["failurePolicy"]["maxRestarts"] > 0
    (ends,) = job["podFailurePolicy"]["rules"]
    assert ends["action"] == "FailJob"
    assert ends["onExitCodes"] == {
        "containerName": train_container(jobset())["name"],
        "operator": "In",
        "values": [BAD_INPUT],
    }
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_jobset_pods_find_each_other():
    container, job = train_container(jobset()), job_of(jobset())
    hosts = {entry["name"]: entry["value"] for entry in container["env"]}["HOSTS"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] == int(hosts)
    variables = {"HOSTS": hosts, "JOB_COMPLETION_INDEX": "1"}
    module, *arguments = (
        re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], argument)
        for argument in container["args"]
    )
    # The image's entry point is `python -m`.
    assert 'ENTRYPOINT ["python", "-m"]' in (REPOSITORY / "launch/gpu/Dockerfile").read_text()
    assert module == "drenet_jax.train"
    read = as_read(arguments)
    name, replicated = jobset()["metadata"]["name"], jobset()["spec"]["replicatedJobs"][0]["name"]
    first = f"{name}-{replicated}-0-0.{name}"
    assert read["coordinator"] == f"{first}:{container['ports'][0]['containerPort']}"
    assert (read["num_processes"], read["process_id"]) == (int(hosts), 1)
    assert (read["workdir"], read["data"]) == (ADDRESSES["WORKDIR"], ADDRESSES["DATA"])
    gpus = container["resources"]["limits"]["nvidia.com/gpu"] * int(hosts)
    assert read["batch_size"] == 16 * gpus


def test_jobset_pods_wait_until_all_have_an_address(tmp_path):
    (waiting,) = job_of(jobset())["template"]["spec"]["initContainers"]
    for name, script in {
        # Each host is found the second time.
        "getent": 'touch "$3" 2>/dev/null; echo "$2" >> calls; (( $(grep -c "$2" calls) > 1 ))',
        "sleep": "echo slept >> calls",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    variables = {entry["name"]: entry["value"] for entry in waiting["env"]}
    subprocess.run(
        waiting["command"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | variables,
        check=True,
    )
    first, second = (f"drenet-jax-train-0-{i}.drenet-jax" for i in range(2))
    assert (tmp_path / "calls").read_text().split() == [
        *(first, "slept", first),
        *(second, "slept", second),
    ]


@pytest.mark.slow
def test_skypilot_job_on_two_machines_saves_when_stopped_and_goes_on(tmp_path, prepared):
    """The section `run` itself, on two loopback addresses with four CPU devices each."""
    flags = (
        "--config.model.dtype=float32 --config.model.backbone=resnet18 --config.model.width=4 "
        "--config.model.image_size_px=96 --config.model.crop_size_px=32 "
        "--config.model.anchor_sizes_px=(24,40) --config.model.train_proposals=(2,) "
        "--config.model.top_k=(2,) --config.model.nms_iou=0.5 --config.model.hidden=(8,) "
        "--config.data.batch_size=16 --config.evaluation.batch_size=16 --config.train.steps=12"
    )
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    workdir = tmp_path / "run"

    def start() -> list[subprocess.Popen]:
        return [
            subprocess.Popen(
                ["bash", "-c", sky_file("sky-gpu.yaml")["run"]],
                cwd=tmp_path,
                env=os.environ
                | {
                    "PYTHONPATH": str(REPOSITORY),
                    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
                    "JAX_ENABLE_COMPILATION_CACHE": "false",
                    "DATA": str(prepared),
                    "WORKDIR": str(workdir),
                    "FLAGS": flags,
                    "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2",
                    "SKYPILOT_NUM_NODES": "2",
                    "SKYPILOT_NODE_RANK": str(rank),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]

    def end(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
        try:
            logs = [process.communicate(timeout=600)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [process.returncode for process in processes], logs

    machines = start()
    while not (workdir / "tensorboard").exists() and machines[0].poll() is None:
        try:
            machines[0].wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
    machines[1].send_signal(signal.SIGTERM)
    codes, logs = end(machines)
    assert codes == [PREEMPTED, PREEMPTED], logs
    # SkyPilot starts it again, on other machines.
    codes, logs = end(start())
    assert codes == [0, 0], logs
    assert (workdir / "checkpoints" / "12").is_dir()
