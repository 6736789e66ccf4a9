"""The container images and `launch/docker/serve.sh`; one test builds and serves for real."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SERVE = REPOSITORY / "launch" / "docker" / "serve.sh"
TOKEN = "a-token-of-mine-0123"
CERTIFICATES = "/etc/ssl/certs"


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Puts a shell script in place of Docker."""
    monkeypatch.setenv("DRENET_TOKEN", TOKEN)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def put(script: str) -> None:
        path = tmp_path / "bin" / "docker"
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    return put


def serve(*flags: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", SERVE, *flags], cwd=cwd, capture_output=True, text=True, check=False
    )


DOCKER_BUILD = "docker build --file=launch/docker/Dockerfile --tag=drenet_jax_serve ."


def docker_run(workdir: Path, published: str, flags: str = "") -> str:
    port = published.split(":")[1]
    return (
        f"docker run --rm --init --name=drenet_jax_serve_{port} "
        f"--user={os.getuid()}:{os.getgid()} --cap-drop=ALL --security-opt=no-new-privileges "
        f"--publish={published}:8000 --volume={workdir}:/run/model:ro --env=DRENET_TOKEN "
        f"drenet_jax_serve{flags}"
    )


@pytest.mark.parametrize(
    ("flags", "published", "passed_on"),
    [
        ((), "127.0.0.1:8000", ""),
        (("--host=0.0.0.0", "--port=81", "--calibrated"), "0.0.0.0:81", " --calibrated"),
    ],
)
def test_dry_run_prints_no_token(flags, published, passed_on, docker, tmp_path):
    result = serve(f"--workdir={tmp_path}", *flags, "--dry_run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        DOCKER_BUILD,
        docker_run(tmp_path, published, passed_on),
    ]


def test_serve_builds_and_runs(docker, tmp_path):
    docker(f'echo "docker $*" >> {tmp_path}/calls')
    (tmp_path / "run").mkdir()
    assert serve("--workdir=run", cwd=tmp_path).returncode == 0
    assert (tmp_path / "calls").read_text().splitlines() == [
        DOCKER_BUILD,
        docker_run(tmp_path / "run", "127.0.0.1:8000"),
    ]


@pytest.mark.parametrize(
    ("where", "image"),
    [
        ("gpu", "nvidia/cuda:12.9.1-base-ubuntu24.04"),
        ("docker", "python:3.12.11-slim-bookworm"),
    ],
)
def test_image_is_pinned_and_does_not_run_as_root(where, image):
    lines = (REPOSITORY / f"launch/{where}/Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith(("ARG", "FROM"))] == [
        f"ARG BASE={image}",
        "FROM ${BASE}",
    ]
    assert [line for line in lines if line.startswith("USER")] == ["USER drenet"]
    needed = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    allowed = (REPOSITORY / f"launch/{where}/Dockerfile.dockerignore").read_text().splitlines()
    for path in (path for paths in needed for path in paths):
        assert (REPOSITORY / path).exists()
        assert f"!{path}" in allowed


@pytest.fixture
def podman(tmp_path, monkeypatch):
    """The words of a podman with storage of its own, and a Debian with Python as `debian`."""
    missing = [tool for tool in ("podman", "runc", "debootstrap") if not shutil.which(tool)]
    if missing or os.geteuid():
        pytest.skip(f"needs root and Debian's podman, runc, catatonit and debootstrap: {missing}")
    # Podman's defaults need rights that a sandbox may lack: limits above the own, a cgroup version.
    settings = tmp_path / "containers.conf"
    settings.write_text(
        '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\n'
    )
    monkeypatch.setenv("CONTAINERS_CONF", str(settings))
    # Podman takes no longer path than 50 characters.
    folder = Path(tempfile.mkdtemp(prefix="drenet-"))
    words = ["podman", f"--root={folder}/storage", f"--runroot={folder}/run"]
    root = folder / "debian"
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
        + ["stable", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        shutil.rmtree(folder)
        pytest.skip(f"no Debian mirror: {made.stdout[-300:]}")
    with subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE) as packed:
        subprocess.run([*words, "import", "-", "debian"], stdin=packed.stdout, check=True)
    shutil.rmtree(root)
    yield words
    subprocess.run([*words, "rmi", "--all", "--force"], check=True)
    subprocess.run(["umount", folder / "storage" / "overlay"], check=False)
    shutil.rmtree(folder)


@pytest.mark.slow
def test_the_image_is_built_and_serves(docker, podman, trained, phantoms, tmp_path):
    """On Debian's Python in place of the base image, which is on Docker Hub only."""
    build = f"--isolation=chroot --volume={CERTIFICATES}:{CERTIFICATES}:ro --build-arg=BASE=debian"
    docker(
        'action=$1; shift; more=""\n'
        f'[ "$action" != build ] || more="{build}"\n'
        f'exec {" ".join(podman)} "$action" $more "$@"'
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            ["bash", SERVE, f"--workdir={trained}", f"--port={port}"],
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                answer = httpx.get(f"{url}/healthz", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(1)
        assert answer.json()["status"] == "ok"
        person = next((phantoms / "dicom").iterdir())
        upload = tmp_path / "person.zip"
        with zipfile.ZipFile(upload, "w") as file:
            for path in person.rglob("*.dcm"):
                file.write(path, path.name)
        request = {"files": {"files": ("person.zip", upload.read_bytes())}, "timeout": 120}
        assert httpx.post(f"{url}/api/predict", **request).status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"{url}/api/predict", headers=headers, **request)
        assert answer.status_code == 200, answer.text
        assert answer.json()["person"]["label"]
    finally:
        server.terminate()
        server.wait(60)
