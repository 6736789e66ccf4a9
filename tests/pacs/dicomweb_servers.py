"""A DICOMweb server that answers as it is set to."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from drenet_jax.pacs.settings import NodeSettings

Answer = Callable[[BaseHTTPRequestHandler], None]


def quick_settings(**changes: object) -> NodeSettings:
    """The node's settings with short waits."""
    config = importlib.import_module("drenet_jax.configs.node").get_config().to_dict()
    quick = {
        "dicomweb_poll_seconds": 0.05,
        "retry_seconds": 0.05,
        "retry_most_seconds": 0.1,
        "dicomweb_seconds": 5.0,
    }
    return NodeSettings.from_dict({**config, **quick, **changes})


@contextlib.contextmanager
def failing_server(answers: list[Answer]) -> Iterator[str]:
    """A server that gives each answer once, then 503; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answers:
                answers.pop(0)(self)
            else:
                self.send_error(503)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
        server.shutdown()
        thread.join()


def answer_with(status: int, media_type: str, body: bytes) -> Answer:
    """Answers with a body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", media_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer
