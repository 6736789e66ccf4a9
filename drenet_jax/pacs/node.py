"""The node: receiver, worker, sender and status page, from start to end."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import uvicorn

from drenet_jax.ct.reader import Reader
from drenet_jax.evaluation.pipeline import PersonPipeline
from drenet_jax.evaluation.predictor import Predictor
from drenet_jax.pacs.completeness import Completeness, CountInstances
from drenet_jax.pacs.dicom_peer import DicomPeer
from drenet_jax.pacs.dicomweb_server import DicomwebServer, take_token
from drenet_jax.pacs.dicomweb_watcher import DicomwebWatcher, not_counted, not_stored
from drenet_jax.pacs.node_status import make_app
from drenet_jax.pacs.receiver import Receiver
from drenet_jax.pacs.sender import Deliver, Sender
from drenet_jax.pacs.settings import NodeSettings
from drenet_jax.pacs.study_database import DICOMWEB, DIMSE
from drenet_jax.pacs.study_queue import StudyQueue
from drenet_jax.pacs.worker import Worker
from drenet_jax.private_log import log_to
from drenet_jax.serving.server import bound_socket

_PAGE_CONNECTIONS = 20
_PAGE_SECONDS = 5


def run(
    predictor: Predictor,
    spool: Path,
    settings: NodeSettings,
    *,
    ae_title: str,
    host: str,
    port: int,
    dicomweb_url: str = "",
) -> None:
    """Runs until SIGTERM or SIGINT.

    Args:
      predictor: the model.
      spool: the folder of the queue, which no other process uses.
      settings: of the node.
      ae_title: of the node.
      host, port: to listen on; port 0 is any free one.
      dicomweb_url: of a DICOMweb server to watch; none if empty.

    Raises:
      InputError: the spool, an address, a URL or a TLS file cannot be used.
    """
    log_to(logging.StreamHandler())
    # Before the process that decodes files starts.
    token = take_token()
    dicomweb = DicomwebServer(dicomweb_url, token, settings) if dicomweb_url else None
    with contextlib.ExitStack() as stack:
        page = stack.enter_context(
            bound_socket("127.0.0.1", settings.status_port, flag="--config.status_port")
        )
        queue = StudyQueue(spool, settings)
        stack.callback(queue.database.close)
        scratch = queue.receiving / "reader"
        scratch.mkdir()
        reader = stack.enter_context(
            Reader(memory_bytes=settings.reader_mib << 20, scratch=scratch)
        )
        # Compile now, not for the first study.
        side_px = predictor.meta.ct.image_size_px
        predictor.slices(np.zeros((1, side_px, side_px), np.uint8))
        destination = settings.destination_peer and DicomPeer(
            settings.destination_peer, ae_title, settings
        )
        source = settings.source_peer and DicomPeer(settings.source_peer, ae_title, settings)
        deliveries: dict[str, Deliver] = {DICOMWEB: not_stored}
        counts: dict[str, CountInstances] = {DICOMWEB: not_counted}
        if destination is not None:
            deliveries[DIMSE] = destination.store
        if source is not None:
            counts[DIMSE] = source.count_ct
        if dicomweb is not None:
            deliveries[DICOMWEB] = dicomweb.store
        sender = Sender(
            queue,
            deliveries,
            destination if settings.storage_commitment else None,
            settings,
        )
        worker = Worker(
            queue,
            Completeness(queue, settings, counts),
            PersonPipeline(predictor, reader),
            queue.receiving,
            settings,
        )
        receiver = Receiver(queue, ae_title, host, port, settings, sender.on_commitment)
        # In the order in which they end: what comes in first.
        stack.callback(sender.stop)
        stack.callback(worker.stop)
        stack.callback(receiver.close)
        for part in (sender, worker, receiver):
            part.start()
        threads = [sender.thread, worker.thread]
        if dicomweb is not None:
            watcher = DicomwebWatcher(queue, dicomweb, settings)
            stack.callback(watcher.stop)
            watcher.start()
            threads.append(watcher.thread)
        _serve_page(
            uvicorn.Config(
                make_app(queue, lambda: all(thread.is_alive() for thread in threads)),
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                limit_concurrency=_PAGE_CONNECTIONS,
                timeout_keep_alive=_PAGE_SECONDS,
                timeout_graceful_shutdown=_PAGE_SECONDS,
            ),
            page,
            f"ready: {ae_title}@{host}:{receiver.port}, "
            f"status page http://127.0.0.1:{page.getsockname()[1]}/ (Ctrl-C ends it)",
        )


def _serve_page(config: uvicorn.Config, page: socket.socket, message: str) -> None:
    """Serves the status page until a signal comes."""
    is_ending = threading.Event()
    server = uvicorn.Server(config)
    # In a thread of its own uvicorn leaves signals alone.
    thread = threading.Thread(target=server.run, args=([page],), daemon=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: is_ending.set())
    # Connections wait from now on, also before uvicorn takes them.
    page.listen()
    thread.start()
    print(message, flush=True)
    is_ending.wait()
    server.should_exit = True
    thread.join()
