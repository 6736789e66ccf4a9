"""A node as its own process, the archive that it answers to, and senders."""

from __future__ import annotations

import dataclasses
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import CTImageStorage, Verification

from drenet_jax.pacs.dicom_peer import give_back_answers

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = {
    "quiet_seconds": 0.5,
    "retry_seconds": 0.2,
    "retry_most_seconds": 0.5,
    "status_port": 0,
    "network_seconds": 10.0,
}


@dataclasses.dataclass
class Node:
    """A running `python -m drenet_jax.node`."""

    process: subprocess.Popen
    port: int
    page: str
    spool: Path
    log: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.page + path, timeout=30) as answer:
            return answer.read().decode()

    def n_studies(self, state: str) -> int:
        pattern = rf'drenet_node_studies{{state="{state}"}} (\d+)'
        return int(float(re.search(pattern, self.get("metrics"))[1]))


def start_node(workdir: Path, spool: Path, *flags: str, port: int = 0, **settings: object) -> Node:
    """Starts a node, and waits until it is ready."""
    log = spool.parent / f"{spool.name}.log"
    with log.open("a") as errors:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "drenet_jax.node",
                f"--workdir={workdir}",
                f"--spool={spool}",
                f"--port={port}",
                *(f"--config.{name}={value}" for name, value in {**QUICK, **settings}.items()),
                *flags,
            ],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with process.stdout:
        line = process.stdout.readline()
    ready = re.fullmatch(r"ready: \S+:(\d+), status page (\S+) \(Ctrl-C ends it\)\n", line)
    assert ready, f"{line}{log.read_text()[-2000:]}"
    return Node(process, int(ready[1]), ready[2], spool, log)


class Archive:
    """A storage SCP that keeps what it gets, as a PACS does.

    Attributes:
      port: on which it listens.
      stored: the data sets, in order of arrival.
      answer: returns the status for a data set.
    """

    def __init__(self, port: int = 0) -> None:
        self.stored: list[pydicom.Dataset] = []
        self.answer: Callable[[pydicom.Dataset], int] = lambda dataset: 0
        self._lock = threading.Lock()
        entity = AE("ARCHIVE")
        entity.supported_contexts = AllStoragePresentationContexts
        entity.add_supported_context(Verification)
        self._server = entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.port = self._server.server_address[1]
        self.peer = f"ARCHIVE@127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.shutdown()

    def _store(self, event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        status = self.answer(dataset)
        with self._lock:
            if status == 0:
                self.stored.append(dataset)
        return status

    @property
    def reports(self) -> list[pydicom.Dataset]:
        """The structured reports."""
        with self._lock:
            return [dataset for dataset in self.stored if dataset.Modality == "SR"]


def wait_until(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits until a condition holds; fails after a while."""
    end_s = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.05)


def associate(node_port: int, *, calling: str = "CT1", called: str = "DRENET"):
    """An association to a node that may send CT."""
    entity = AE(calling)
    entity.add_requested_context(CTImageStorage)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", node_port, ae_title=called)
    give_back_answers(association)
    return association


def close_socket(association) -> None:
    """Closes what pynetdicom leaves open after an association that was not established."""
    connection = association.dul.socket.socket
    if connection is not None:
        connection.close()


def send(node_port: int, datasets: Sequence[pydicom.Dataset], **titles: str) -> list[int]:
    """Sends data sets in one association; returns the status of each."""
    association = associate(node_port, **titles)
    assert association.is_established
    try:
        return [association.send_c_store(dataset).Status for dataset in datasets]
    finally:
        association.release()


def study(folder: Path, *, uid: str = "", **tags: object) -> list[pydicom.Dataset]:
    """The slices of a folder as a new study, of new instances, with other tags."""
    study_uid, series_uid = uid or generate_uid(), generate_uid()
    datasets = []
    for file in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        datasets.append(dataset)
    return datasets


def client_tls(certificates: Path, name: str) -> ssl.SSLContext:
    """The TLS of a peer with this certificate, which trusts our authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    context.load_verify_locations(certificates / "ours_ca.pem")
    return context
