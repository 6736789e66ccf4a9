"""Hundreds of kinds of hostile peers do not change a node, nor what others get from it."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pydicom
import pytest
from pacs import hostile_pdus as pdus
from pacs.hostile_associations import KINDS, SLOW_KINDS, Kind, Peer
from pacs.hostile_pdus import CALLING, PATIENT, ROOT
from pacs.nodes import (
    Archive,
    Node,
    associate,
    client_tls,
    close_socket,
    start_node,
    study,
    wait_until,
)
from pacs.process_watch import held_by
from pacs.results import probabilities
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

import drenet_jax

# Kinds at once. Between two groups a good peer is answered.
GROUP = 16

# In which a good peer is answered, on a machine with other work.
ANSWER_S = 5.0

# By which the memory of the node and its reader may grow. Measured: 10 to 40 MiB.
MOST_GROWTH_MIB = 300


@pytest.fixture
def watched(trained, archive, tmp_path) -> Iterator[Node]:
    node = start_node(
        trained,
        tmp_path / "spool",
        destination=archive.peer,
        network_seconds=3.0,
        associations=20,
        missing_minutes=0.02,
    )
    yield node
    if node.process.poll() is None:
        node.kill()


@contextlib.contextmanager
def _associated(node: Node) -> Iterator[Association]:
    """An association of a good peer, which repeats what is rejected as peers do."""
    end_s = time.monotonic() + ANSWER_S
    while not (association := associate(node.port)).is_established:
        close_socket(association)
        assert time.monotonic() < end_s, "a good peer gets no association"
        time.sleep(0.1)
    yield association
    association.release()


def _send(node: Node, datasets: Iterable[pydicom.Dataset]) -> None:
    """Sends as a good peer."""
    with _associated(node) as association:
        for dataset in datasets:
            assert association.send_c_store(dataset).Status == 0


@contextlib.contextmanager
def _sent_meanwhile(node: Node, datasets: list[pydicom.Dataset]) -> Iterator[None]:
    """A good peer sends a study in one association while the block runs."""
    ends = threading.Event()

    def send() -> None:
        left = list(datasets)
        with _associated(node) as association:
            while left:
                if ends.wait(1.0) or len(left) > 1:
                    assert association.send_c_store(left.pop()).Status == 0
                else:
                    assert association.send_c_echo().Status == 0

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send)
        try:
            yield
        finally:
            ends.set()
        sent.result()


def _play(node: Node, kinds: dict[str, Kind]) -> None:
    peer = Peer(node.port)
    names = sorted(kinds)
    with ThreadPoolExecutor(GROUP) as pool:
        for start in range(0, len(names), GROUP):
            group = names[start : start + GROUP]
            futures = {name: pool.submit(kinds[name], peer) for name in group}
            failed = {name: error for name, future in futures.items() if (error := _error(future))}
            assert not failed
            assert node.process.poll() is None, f"the node ended: {group}"
            with _associated(node) as association:
                assert association.send_c_echo().Status == 0


def _suffer(node: Node, archive: Archive, kinds: dict[str, Kind], persons, pipeline) -> None:
    """Plays all kinds while a good peer sends a study; then checks that nothing else remains."""
    # What is there once everything has been used.
    warm = study(persons[1])
    _send(node, warm)
    wait_until(lambda: node.n_studies("done") == 1)
    before = held_by(node.process.pid)
    datasets = study(persons[0])
    with _sent_meanwhile(node, datasets):
        _play(node, kinds)
    uid = datasets[0].StudyInstanceUID

    wait_until(lambda: any(report.StudyInstanceUID == uid for report in archive.reports))
    wait_until(lambda: node.n_studies("receiving") + node.n_studies("ready") == 0)
    wait_until(lambda: node.n_studies("done") == 2)
    results = [dataset for dataset in archive.stored if dataset.StudyInstanceUID == uid]
    expected = pipeline.person(persons[0])["person"]["probabilities"]
    assert probabilities(results) == pytest.approx(expected, abs=1e-5)
    studies = {dataset.StudyInstanceUID for dataset in archive.stored}
    assert studies == {uid, warm[0].StudyInstanceUID}

    wait_until(lambda: held_by(node.process.pid).n_threads <= before.n_threads + 1, 20)
    after = held_by(node.process.pid)
    print(f"{len(kinds)} kinds: {before} before, {after} after")
    assert after.n_files <= before.n_files + 2
    assert after.rss_mib - before.rss_mib < MOST_GROWTH_MIB
    assert not list((node.spool / "receiving").rglob("*.dcm"))
    assert node.get("healthz")
    assert node.stop() == 0
    _check_log(node.log.read_text())


def _error(future) -> BaseException | None:
    """What went wrong in a kind itself; that it was not let in is no error."""
    error = future.exception(timeout=120)
    return None if isinstance(error, OSError) else error


def _check_log(log: str) -> None:
    assert "Traceback" not in log
    assert "error at" not in log
    for secret in (ROOT, CALLING.decode(), PATIENT, "GEHEIM", "ANOTHER", "1.2.840", "etc/"):
        assert secret not in log
    for line in log.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\dT", line), line


@pytest.fixture(scope="module")
def pipeline(trained):
    return drenet_jax.load(trained)


def test_many_kinds_of_hostile_peers_change_nothing(watched, archive, persons, pipeline):
    some = dict(list(KINDS.items())[::9])
    _suffer(watched, archive, some, persons, pipeline)


@pytest.mark.slow
def test_hundreds_of_kinds_of_hostile_peers_change_nothing(watched, archive, persons, pipeline):
    assert len(KINDS) >= 300
    _suffer(watched, archive, KINDS, persons, pipeline)


@pytest.mark.slow
def test_slow_peers_change_nothing(watched, archive, persons, pipeline):
    _suffer(watched, archive, SLOW_KINDS, persons, pipeline)


@pytest.mark.slow
def test_hostile_peers_of_a_tls_port_change_nothing(trained, certificates, tmp_path):
    node = start_node(
        trained,
        tmp_path / "spool",
        network_seconds=4.0,
        tls_certificate=certificates / "ours.pem",
        tls_key=certificates / "ours.key",
        tls_authorities=certificates / "ours_ca.pem",
    )
    ours, other = (client_tls(certificates, name) for name in ("ours", "other"))
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    hello = bytes.fromhex("16030100c8010000c40303")

    def echo() -> None:
        entity = AE("CT1")
        entity.add_requested_context(Verification)
        association = entity.associate(
            "127.0.0.1", node.port, ae_title="DRENET", tls_args=(ours, None)
        )
        assert association.is_established
        assert association.send_c_echo().Status == 0
        association.release()

    def connect(content: bytes = b"", tls: ssl.SSLContext | None = None) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", node.port), timeout=10)
        with contextlib.suppress(OSError):
            if tls is not None:
                connection = tls.wrap_socket(connection)
            connection.sendall(content)
        return connection

    echo()
    before = held_by(node.process.pid)
    contents = (
        b"",
        b"\0" * 5000,
        hello,
        hello + bytes(400),
        pdus.request(),
        b"GET / HTTP/1.1\r\n\r\n",
    )
    try:
        for content, tls in itertools.product(contents, (None, ours, other, anyone)):
            with connect(content, tls):
                pass
            echo()
        # More handshakes that never go on than connections are allowed.
        silent = [connect(hello) for _ in range(200)]
        assert held_by(node.process.pid).n_threads < before.n_threads + 80
        # The node gives them up; a good peer repeats until then.
        time.sleep(6)
        echo()
        for connection in silent:
            connection.close()
        wait_until(lambda: held_by(node.process.pid).n_threads <= before.n_threads + 1, 20)
        assert held_by(node.process.pid).n_files <= before.n_files + 2
        assert node.stop() == 0
    finally:
        node.process.kill()
        node.process.wait()
    _check_log(node.log.read_text())
