"""Buckets on this machine for tests: an emulator of GCS, an S3 server, and faults in between."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "bucket"


@dataclasses.dataclass
class Faults:
    """What happens to requests; each rate is the share of requests that it happens to.

    Attributes:
      latency_s: that each answer takes longer.
      error_rate: answered by 503.
      throttle_rate: answered by 429 (GCS) or 503 SlowDown (S3).
      drop_rate: the connection is closed before the request is passed on.
      lose_rate: the request is passed on, and the connection closed instead of an answer.
      denied: all are answered by 403.
      away: all connections are closed.
      seed: of the rates.
    """

    latency_s: float = 0.0
    error_rate: float = 0.0
    throttle_rate: float = 0.0
    drop_rate: float = 0.0
    lose_rate: float = 0.0
    denied: bool = False
    away: bool = False
    seed: int = 0


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a store, with faults; counts them and their bytes.

    It also does what the emulator of GCS does not: `ifGenerationMatch=0` writes nothing where there
    is an object already, and content that ends with a line break keeps it.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream_port: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream_port = upstream_port
        self.faults = Faults()
        self.n_requests = self.n_bytes_read = 0
        self.lock = threading.Lock()
        self.creating = threading.Lock()
        self._random = random.Random(0)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def handle_error(self, request, client_address):
        pass  # clients go away: some are killed by tests

    @contextlib.contextmanager
    def with_faults(self, **faults) -> Iterator[None]:
        """Puts in faults for the block."""
        before = self.faults
        self.faults = Faults(**faults)
        self._random = random.Random(self.faults.seed)
        try:
            yield
        finally:
            self.faults = before

    def draw(self) -> float:
        with self.lock:
            return self._random.random()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def _handle(self):
        server: Proxy = self.server
        faults = server.faults
        body = self._body()
        with server.lock:
            server.n_requests += 1
        time.sleep(faults.latency_s)
        draw = server.draw()
        if faults.away or draw < faults.drop_rate:
            return self._drop()
        draw -= faults.drop_rate
        if faults.denied:
            return self._refuse(403, "AccessDenied")
        if draw < faults.error_rate:
            return self._refuse(503, "ServiceUnavailable")
        draw -= faults.error_rate
        if draw < faults.throttle_rate:
            is_gcs = self._is_gcs()
            return self._refuse(429 if is_gcs else 503, "SlowDown")
        draw -= faults.throttle_rate
        is_lost = draw < faults.lose_rate
        if "uploadType=multipart" in self.path:
            body = self._without_name(body)
        if "ifGenerationMatch=0" in self.path:
            with server.creating:
                if self._is_there():
                    return self._refuse(412, "conditionNotMet")
                return self._forward(body, is_lost)
        return self._forward(body, is_lost)

    def _without_name(self, body: bytes) -> bytes:
        """Puts the name of an upload of gcsfs, a part of its body, into the path."""
        _, first, rest = body.split(b"--==0==", 2)
        name = json.loads(first.partition(b"\n\n")[2])["name"]
        self.path += f"&name={urllib.parse.quote(name, safe='')}"
        content = rest.partition(b"\n\n")[2].removesuffix(b"\n--==0==--")
        if not content:  # the emulator takes none alone
            return body
        self.path = self.path.replace("uploadType=multipart", "uploadType=media")
        self.headers.replace_header("Content-Type", "application/octet-stream")
        return content

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _handle

    def _is_gcs(self) -> bool:
        return self.path.startswith(("/storage/", "/upload/", "/download/", "/resumable/", "/b/"))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            n_bytes = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(n_bytes)
            if len(body) < n_bytes:  # of a client that was killed; stores take no part of a request
                raise ConnectionAbortedError
            return body
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _is_there(self) -> bool:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        name = query["name"][0]
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port)
        quoted = urllib.parse.quote(name, safe="")
        connection.request("GET", f"/storage/v1/b/{BUCKET}/o/{quoted}")
        return connection.getresponse().status == 200

    def _forward(self, body: bytes, is_lost: bool):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port, timeout=60)
        headers = {
            name: value for name, value in self.headers.items() if name != "Transfer-Encoding"
        }
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body=body, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        if is_lost:
            return self._drop()
        with self.server.lock:
            self.server.n_bytes_read += len(content)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in ("transfer-encoding", "connection", "content-length", "date"):
                continue
            # Of uploads in several requests: they must come through here, too.
            self.send_header(
                name, value.replace(f":{self.server.upstream_port}/", f":{self.server.port}/")
            )
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        return None

    def _refuse(self, status: int, code: str):
        if self._is_gcs():
            content = json.dumps({"error": {"code": status, "message": code}}).encode()
            kind = "application/json"
        else:
            content = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            kind = "application/xml"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _drop(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@dataclasses.dataclass
class Store:
    """A running store.

    Attributes:
      scheme: gs or s3.
      proxy: in front of it.
      environment: variables with which a process finds it.
    """

    scheme: str
    proxy: Proxy
    environment: dict[str, str]

    def address(self, name: str) -> str:
        return f"{self.scheme}://{BUCKET}/{name}"


@contextlib.contextmanager
def running(scheme: str) -> Iterator[Store]:
    """Starts a store with an empty bucket, in processes of their own that end with the block."""
    port = _free_port()
    folder = Path(sys.executable).parent
    if scheme == "gs":
        # In a process of its own, as its command starts it: within another it hangs at its end.
        command = [str(folder / "gcp-storage-emulator"), "start", f"--port={port}", "--in-memory"]
        command += [f"--default-bucket={BUCKET}"]
    else:
        command = [str(folder / "moto_server"), f"--port={port}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        proxy = Proxy(port)
        if scheme == "gs":
            environment = {
                "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{proxy.port}",
                "FSSPEC_GS_TOKEN": "anon",
                # gcsfs would wait a minute for an interface that the emulator lacks.
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            }
        else:
            environment = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
        yield Store(scheme, proxy, environment)
        proxy.shutdown()
        proxy.server_close()
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the store did not start (exit code {process.poll()})")
