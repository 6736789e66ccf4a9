"""Hundreds of studies from several senders at once: each is answered once, and right."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pacs.nodes import Archive, Node, associate, close_socket, start_node, study, wait_until
from pacs.process_watch import Held, disk_mib, held_by
from pacs.senders import check_answers, interleaved, is_answered, send_until_taken

import drenet_jax

SEED = 200
N_STUDIES = 200
N_SENDERS = 8
# Studies that a sender has in turns in one association.
N_IN_TURNS = 5

# Parts of the instances that come twice, and after which a sender breaks off.
TWICE = 0.1
BREAKS_OFF = 0.005

QUIET_S = 3.0

# Measured: about 600 MiB before the first study.
MOST_MIB = 1200
MOST_THREADS = 140


@dataclasses.dataclass
class Watch:
    """Looks at a node once a second until it is told to stop."""

    node: Node

    def __post_init__(self) -> None:
        self.held: list[Held] = []
        self.spool_mib: list[float] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(1.0):
            self.held.append(held_by(self.node.process.pid))
            self.spool_mib.append(disk_mib(self.node.spool))


class Times:
    """When what happened, in seconds."""

    def __init__(self, archive: Archive) -> None:
        self.taken: list[float] = []
        self.last_taken: dict[str, float] = {}
        self.released: dict[str, float] = {}
        self.reported: dict[str, float] = {}
        archive.answer = self._note_report

    def note_taken(self, dataset: pydicom.Dataset) -> None:
        now = time.monotonic()
        self.taken.append(now)
        self.last_taken[dataset.StudyInstanceUID] = now

    def _note_report(self, dataset: pydicom.Dataset) -> int:
        if dataset.Modality == "SR":
            self.reported.setdefault(dataset.StudyInstanceUID, time.monotonic())
        return 0

    def waits(self, since: dict[str, float]) -> np.ndarray:
        return np.array([self.reported[uid] - since[uid] - QUIET_S for uid in since])


@pytest.fixture
def thin(persons, tmp_path) -> list[Path]:
    """The slices of the middle of four persons: small studies."""
    folders = []
    for person in persons[:4]:
        files = sorted(
            person.iterdir(), key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2]
        )
        folder = tmp_path / "thin" / person.name
        folder.mkdir(parents=True)
        middle = len(files) // 2
        for file in files[middle - 10 : middle + 10]:
            shutil.copy(file, folder)
        folders.append(folder)
    return folders


# pynetdicom leaves a socket that was not connected to the garbage collection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_two_hundred_studies_from_eight_senders(trained, archive, thin, tmp_path):
    pipeline = drenet_jax.load(trained)
    right = [pipeline.person(folder)["person"]["probabilities"] for folder in thin]
    expected: dict[str, dict[str, float]] = {}
    node = start_node(
        trained,
        tmp_path / "spool",
        destination=archive.peer,
        quiet_seconds=QUIET_S,
        missing_minutes=0.5,
        network_seconds=30.0,
    )
    times = Times(archive)

    def send(number: int) -> int:
        rng = np.random.default_rng((SEED, number))
        n_associations = 0
        for _ in range(N_STUDIES // N_SENDERS // N_IN_TURNS):
            studies = []
            for at in rng.integers(len(thin), size=N_IN_TURNS):
                datasets = study(thin[at])
                expected[datasets[0].StudyInstanceUID] = right[at]
                again = [dataset for dataset in datasets if rng.random() < TWICE]
                studies.append(
                    [(datasets + again)[i] for i in rng.permutation(len(datasets + again))]
                )
            n_associations += send_until_taken(
                node.port,
                interleaved(studies),
                breaks_off=lambda: rng.random() < BREAKS_OFF,
                on_taken=times.note_taken,
            )
            now = time.monotonic()
            times.released.update((datasets[0].StudyInstanceUID, now) for datasets in studies)
        return n_associations

    with Watch(node) as watch, ThreadPoolExecutor(N_SENDERS) as pool:
        start_s = time.monotonic()
        stopped = _send_half(node.port, study(thin[0]))
        sent = [pool.submit(send, number) for number in range(N_SENDERS)]
        n_associations = sum(future.result() for future in sent)
        wait_until(lambda: is_answered(archive, set(expected)), 800)
        end_s = time.monotonic()
        wait_until(lambda: node.n_studies("done") == len(expected))
        wait_until(lambda: node.n_studies("parked") == 1)
    close_socket(stopped)

    assert len(expected) == N_STUDIES
    n_again = check_answers(archive, expected)
    n_instances = len(times.taken)
    received_s = times.taken[-1] - times.taken[0]
    minutes = (end_s - start_s) / 60
    print(
        f"\n{N_STUDIES} studies, {n_instances} instances in {n_associations} associations: "
        f"{N_STUDIES / minutes:.0f} studies a minute, "
        f"{n_instances / received_s:.0f} instances a second for {received_s:.0f} s"
    )
    for name, since in (("instance", times.last_taken), ("release", times.released)):
        waits = times.waits(since)
        print(
            f"from the last {name} to the report, without the quiet period: median "
            f"{np.median(waits):.1f} s, 95th percentile {np.percentile(waits, 95):.1f} s"
        )
    peak_mib = max(held.rss_mib for held in watch.held)
    n_threads = max(held.n_threads for held in watch.held)
    print(
        f"peak: {peak_mib:.0f} MiB of memory, from {watch.held[0].rss_mib:.0f}; "
        f"{n_threads} threads, "
        f"{max(watch.spool_mib):.0f} MiB of spool; {n_again} objects came twice"
    )
    assert peak_mib < MOST_MIB
    assert n_threads < MOST_THREADS
    assert not list((node.spool / "receiving").rglob("*.dcm"))
    assert node.stop() == 0
    log = node.log.read_text()
    assert "incomplete: its sender" in log
    assert "Traceback" not in log
    assert "error at" not in log


def _send_half(port: int, datasets: list[pydicom.Dataset]):
    """A sender that stops in the middle and stays."""
    association = associate(port)
    for dataset in datasets[: len(datasets) // 2]:
        assert association.send_c_store(dataset).Status == 0
    return association
