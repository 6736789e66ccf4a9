"""An Orthanc in a temporary folder, as the tests' archive."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pacs.nodes import wait_until

PLUGINS = Path("/usr/share/orthanc/plugins")
AE_TITLE = "ORTHANC"


@dataclasses.dataclass
class Orthanc:
    """A running Orthanc.

    Attributes:
      process: it.
      url: of its REST API.
      dicom_port: of its DICOM server.
      node_port: where it takes the node to be.
      log: its log.
    """

    process: subprocess.Popen
    url: str
    dicom_port: int
    node_port: int
    log: Path

    @property
    def peer(self) -> str:
        return f"{AE_TITLE}@127.0.0.1:{self.dicom_port}"

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def request(self, path: str, data: bytes | dict | None = None, method: str = "") -> bytes:
        body = json.dumps(data).encode() if isinstance(data, dict) else data
        method = method or ("GET" if body is None else "POST")
        request = urllib.request.Request(f"{self.url}{path}", body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str):
        return json.loads(self.request(path))

    def find(self, level: str, **query: str) -> list[str]:
        """Orthanc's own identifiers of what fits, on a level: Study, Series, Instance."""
        answer = self.request("/tools/find", {"Level": level, "Query": query})
        return json.loads(answer)

    def upload(self, file: Path) -> str:
        """Stores a file; returns Orthanc's identifier of its study."""
        return json.loads(self.request("/instances", file.read_bytes()))["ParentStudy"]

    def send_to_node(self, study: str) -> None:
        """Sends a study to the node by C-STORE."""
        self.request("/modalities/DRENET/store", {"Resources": [study], "Synchronous": True})

    def results(self, study: str, folder: Path) -> list[Path]:
        """The files of the results in a study, the report first."""
        files = []
        for modality in ("SR", "OT"):
            for series in self.get(f"/studies/{study}")["Series"]:
                if self.get(f"/series/{series}")["MainDicomTags"]["Modality"] != modality:
                    continue
                for instance in self.get(f"/series/{series}")["Instances"]:
                    files.append(folder / f"{modality}-{instance}.dcm")
                    files[-1].write_bytes(self.request(f"/instances/{instance}/file"))
        return files


@contextlib.contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """An Orthanc with DICOMweb and the web viewer; skips where they are not installed."""
    binary = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    plugins = [PLUGINS / f"libOrthanc{name}.so" for name in ("DicomWeb", "WebViewer")]
    if binary is None or not all(plugin.exists() for plugin in plugins):
        pytest.skip(
            "Orthanc is not installed (Debian: orthanc, orthanc-dicomweb, orthanc-webviewer)"
        )
    http_port, dicom_port, node_port = _free_ports(3)
    config = {
        "StorageDirectory": str(folder / "database"),
        "IndexDirectory": str(folder / "database"),
        "Plugins": [str(plugin) for plugin in plugins],
        "HttpPort": http_port,
        "DicomAet": AE_TITLE,
        "DicomPort": dicom_port,
        "DicomModalities": {
            "DRENET": {"AET": "DRENET", "Host": "127.0.0.1", "Port": node_port},
            "DCMTK": {"AET": "DCMTK", "Host": "127.0.0.1", "Port": node_port},
        },
        "StableAge": 1,
        "SaveJobs": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "WebViewer": {"CachePath": str(folder / "viewer")},
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    log = folder / "orthanc.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [binary, str(folder / "orthanc.json")],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    orthanc = Orthanc(process, f"http://127.0.0.1:{http_port}", dicom_port, node_port, log)
    try:
        wait_until(lambda: _answers(orthanc))
        yield orthanc
    finally:
        process.terminate()
        process.wait(30)


def _answers(orthanc: Orthanc) -> bool:
    assert orthanc.process.poll() is None, orthanc.log.read_text()[-2000:]
    try:
        return bool(orthanc.get("/system"))
    except (urllib.error.URLError, ConnectionError):
        return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
