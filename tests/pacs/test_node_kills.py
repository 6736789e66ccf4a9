"""A node that is killed at any moment loses no study, and answers none twice."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pacs.nodes import Node, start_node, study, wait_until
from pacs.process_watch import children
from pacs.senders import check_answers, interleaved, is_answered, send_until_taken

import drenet_jax

SEED = 21
N_SENDERS = 3

# Seconds from a start to the next kill: in them studies arrive, are read and are answered.
LONGEST_S = 5.0


# pynetdicom leaves a socket that was not connected to the garbage collection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("n_kills", [3, 50])
def test_no_study_is_lost_or_answered_twice(n_kills, trained, archive, persons, tmp_path):
    pipeline = drenet_jax.load(trained)
    folders = persons[:4]
    right = {folder: pipeline.person(folder)["person"]["probabilities"] for folder in folders}
    rng = np.random.default_rng(SEED)
    expected: dict[str, dict[str, float]] = {}
    node = _start(trained, tmp_path, archive.peer)
    port = node.port
    is_over = False

    def send(number: int) -> int:
        """Sends two studies at a time until the last kill."""
        n_associations = 0
        own = np.random.default_rng((SEED, number))
        while not is_over:
            pair = []
            for at in own.integers(len(folders), size=2):
                pair.append(study(folders[at]))
                expected[pair[-1][0].StudyInstanceUID] = right[folders[at]]
            n_associations += send_until_taken(port, interleaved(pair))
            time.sleep(float(own.uniform(0, 20)))
        return n_associations

    n_readers = 0
    with ThreadPoolExecutor(N_SENDERS) as pool:
        sent = [pool.submit(send, number) for number in range(N_SENDERS)]
        try:
            for _ in range(n_kills):
                time.sleep(float(rng.uniform(0, LONGEST_S)))
                # Sometimes only the process that reads, first.
                if rng.random() < 0.4:
                    n_readers += _kill_children(node)
                    time.sleep(float(rng.uniform(0, 1)))
                node.kill()
                node = _start(trained, tmp_path, archive.peer, port)
        finally:
            is_over = True
        n_associations = sum(future.result() for future in sent)
    try:
        wait_until(lambda: is_answered(archive, set(expected)), 300)
        wait_until(lambda: node.n_studies("done") == len(expected))
        assert node.n_studies("parked") == 0
        n_again = check_answers(archive, expected)
        print(
            f"{n_kills} kills of the node, {n_readers} of its reader: {len(expected)} studies in "
            f"{n_associations} associations, {n_again} objects came twice"
        )
        assert node.stop() == 0
    finally:
        node.process.kill()
    log = node.log.read_text()
    assert "Traceback" not in log
    assert "error at" not in log


def _start(workdir: Path, folder: Path, destination: str, port: int = 0) -> Node:
    return start_node(
        workdir,
        folder / "spool",
        port=port,
        destination=destination,
        # A killed node has not failed on the study; senders come back after it has started.
        attempts=100,
        quiet_seconds=2.0,
    )


def _kill_children(node: Node) -> int:
    pids = children(node.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return len(pids)
