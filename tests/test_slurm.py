"""`launch/gpu/slurm.sh` on a real Slurm: a private cluster of two nodes on this machine.

Needs Slurm and root; skips without:

  apt-get install -y slurm-wlm munge

Each node has the eight GPUs that the script requests in name only: training runs on CPUs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from training.runs import assert_same_run

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue")

# JAX connects to the first node by its name, so names are addresses. An urgent job preempts others,
# which get SIGTERM and then a minute. A requeued job starts again when its credential has expired.
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
KillWait=90
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=127.0.0.1 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=16 Gres=gpu:8
NodeName=127.0.0.2 NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=16 Gres=gpu:8
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""

# A run that leaves the scheduler time to stop it in its middle, on the fastest machine too.
SLOW_CONFIG = """
import time
import ml_collections
from drenet_jax.training import loop

make_train_step = loop.make_train_step


def make_slow_step(*args, **kwargs):
    step = make_train_step(*args, **kwargs)

    def slow_step(*batch):
        time.sleep(0.3)
        return step(*batch)

    return slow_step


loop.make_train_step = make_slow_step


def get_config():
    return ml_collections.ConfigDict({fields!r})
"""


class Cluster:
    """A running cluster, whose files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Without those of a Slurm under which the tests may run themselves.
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "SRUN_"))
        } | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *command: str, **environment: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout

    def job(self, job: str, field: str) -> str:
        """A field of `scontrol show job`."""
        return re.search(rf"\b{field}=(\S*)", self("scontrol", "show", "job", job))[1]

    def has_restarted(self, job: str, times: int) -> bool:
        """Whether the job waits or runs for the last of so many restarts."""
        # While the processes before it end, the state is COMPLETING.
        is_through = self.job(job, "JobState") in ("PENDING", "RUNNING")
        return is_through and self.job(job, "Restarts") == str(times)

    def wait_until(self, is_so: Callable[[], bool], *logs: Path) -> None:
        end = time.monotonic() + 300
        while not is_so():
            if time.monotonic() > end:
                names = (*logs, *sorted(self.folder.glob("*.log")))
                tails = (f"{log}:\n{log.read_text()[-2000:]}" for log in names if log.exists())
                pytest.fail("\n".join(tails))
            time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}): needs slurm-wlm and munge")
    if os.geteuid():
        pytest.skip("starting a cluster needs root")
    folder = tmp_path_factory.mktemp("slurm")
    cluster = Cluster(folder)
    host = socket.gethostname().partition(".")[0]
    conf = SLURM_CONF.format(folder=folder, host=host, ports=_free_ports(3))
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    for i in range(8):
        (folder / f"gpu{i}").touch()
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "socket")]
    munge += [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "seed", "log")]
    daemons: list[subprocess.Popen] = []

    def start(*command: str) -> None:
        with open(folder / f"{'-'.join((command[0], *command[2:3]))}.out", "w") as output:
            daemons.append(
                subprocess.Popen(
                    command,
                    env=cluster.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )

    try:
        # --force: the folder is for root only.
        start("munged", "--foreground", "--force", *munge)
        cluster.wait_until((folder / "munge.socket").exists)
        start("slurmctld", "-D")
        for node in ("127.0.0.1", "127.0.0.2"):
            start("slurmd", "-D", "-N", node)
        cluster.wait_until(lambda: _idle_nodes(cluster) == 2)
        yield cluster
    finally:
        _end_all(folder / "slurm.conf", daemons)


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _idle_nodes(cluster: Cluster) -> int:
    """0 until the controller answers."""
    done = subprocess.run(
        ["sinfo", "--noheader", "--partition=main", "--states=idle", "--format=%D"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return int(done.stdout or 0) if done.returncode == 0 else 0


def _end_all(conf: Path, daemons: list[subprocess.Popen]) -> None:
    """Kills the daemons and the processes of jobs, all of which have this SLURM_CONF."""
    mark = f"SLURM_CONF={conf}".encode()
    end = time.monotonic() + 30
    alive = True
    while alive and time.monotonic() < end:
        alive = False
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)
                    alive = True
        for daemon in daemons:
            daemon.poll()
        time.sleep(0.1)
    assert not alive


@pytest.fixture(scope="module")
def small_config(prepared):
    """A network that is compiled soon, with batch norm, dropout and momentum."""
    config = importlib.import_module("drenet_jax.configs.resnet50").get_config()
    config.model.update(name="resnet18", width=4, image_size_px=96, dropout=0.2)
    config.data.update(dir=str(prepared), batch_size=8)
    config.train.update(accumulate=1, epochs=5)
    return config


@pytest.fixture
def submit(cluster, small_config, tmp_path):
    """Submits the script as it is shipped; returns the number of the job."""
    path = tmp_path / "slow.py"
    path.write_text(SLOW_CONFIG.format(fields=small_config.to_dict()))

    def run(workdir: Path) -> str:
        return cluster(
            "sbatch",
            "--parsable",
            f"--output={_log(workdir)}",
            "launch/gpu/slurm.sh",
            f"--config={path}",
            f"--workdir={workdir}",
            DRENET_JAX_PYTHON=sys.executable,
            JAX_PLATFORMS="cpu",
            XLA_FLAGS="--xla_force_host_platform_device_count=2",
        ).strip()

    return run


def _log(workdir: Path) -> Path:
    return workdir.with_suffix(".log")


def _epochs(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _stops(workdir: Path) -> list[int]:
    """The steps at which training saved since it was stopped by a signal."""
    return [int(step) for step in re.findall(r"signal at step (\d+)", _log(workdir).read_text())]


def test_a_run_that_slurm_stops_in_three_ways_ends_bit_for_bit_like_one_that_it_does_not(
    cluster, submit, small_config, tmp_path
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    job = submit(whole)
    cluster.wait_until(lambda: cluster.job(job, "JobState") == "COMPLETED", _log(whole))
    assert _epochs(whole) == 5
    assert not _stops(whole)

    job = submit(stopped)
    ways = (
        ("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=true"),
        ("scontrol", "requeue", job),
        # What --signal does before the time limit.
        ("scancel", "--signal=TERM", "--batch", job),
    )
    for i, way in enumerate(ways):
        cluster.wait_until(lambda n=i + 1: _epochs(stopped) >= n, _log(stopped))
        if i == 0:
            # All 16 CPUs of both nodes are for training, not one for each task.
            step = cluster("scontrol", "show", "step", f"{job}.0")
            assert re.search(r"Tres\w+=cpu[:=](\d+)", step)[1] in ("16", "32"), step
        cluster(*way)
        cluster.wait_until(lambda n=i + 1: cluster.has_restarted(job, n), _log(stopped))
        assert len(_stops(stopped)) == i + 1
    cluster.wait_until(lambda: cluster.job(job, "JobState") == "COMPLETED", _log(stopped))
    assert cluster.job(job, "Restarts") == "3"
    assert_same_run(small_config, stopped, whole)


def test_a_job_stopped_before_its_first_step_is_queued_again_and_a_cancelled_one_is_not(
    cluster, submit, tmp_path
):
    workdir = tmp_path / "run"
    job = submit(workdir)
    cluster.wait_until(lambda: f"{job}.0" in cluster("squeue", "--steps", "--noheader"))
    cluster("scancel", "--signal=TERM", "--batch", job)
    cluster.wait_until(lambda: cluster.has_restarted(job, 1), _log(workdir))
    assert not _stops(workdir)

    cluster.wait_until(lambda: _epochs(workdir) >= 1, _log(workdir))
    cluster("scancel", job)
    cluster.wait_until(lambda: not cluster("squeue", "--noheader"), _log(workdir))
    assert cluster.job(job, "JobState") == "CANCELLED"
    assert cluster.job(job, "Restarts") == "1"
    # It can go on from there when it is submitted again.
    assert len(_stops(workdir)) == 1
