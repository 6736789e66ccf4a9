"""The limits of requests, bytes, files and time, with a fake model."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving.servers import (
    FORM_HEADERS,
    answer,
    connected,
    default_limits,
    form,
    multipart,
)

from drenet_jax.ct.sources import CtError
from drenet_jax.errors import InputError

FILE = form(("a.dcm", b"12345"))


@pytest.fixture
def slow_model():
    """A model that runs until `go_on` is set; it calls `watch` as the reader does."""

    class Model:
        def __init__(self):
            self.go_on = threading.Event()
            self.calls = 0

        def __call__(self, path, *, watch):
            self.calls += 1
            watch("reading")
            while not self.go_on.wait(0.02):
                watch("reading")
            watch("scoring")
            return answer()

    model = Model()
    yield model
    model.go_on.set()


def post(stage, path="/api/jobs", **others) -> httpx.Response:
    return httpx.post(stage.url + path, **{"files": FILE, "timeout": 30, **others})


def state(stage, url) -> dict:
    return httpx.get(stage.url + url).json()


def test_queued_jobs_get_their_position_and_further_requests_get_429(stage, slow_model):
    server = stage(slow_model, places=3)
    urls = [post(server).json()["url"] for _ in range(3)]
    server.wait_for(lambda: state(server, urls[0])["state"] == "reading")
    assert [state(server, url)["before"] for url in urls] == [None, 1, 2]
    refused = post(server)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert list(refused.json()) == ["error"]
    assert httpx.get(f"{server.url}/api/status").json() == {"places": 3, "present": 3}
    # A cancelled job frees its slot.
    assert httpx.delete(server.url + urls[1]).status_code == 204
    last = post(server)
    assert last.status_code == 202
    assert state(server, urls[2])["before"] == 1
    slow_model.go_on.set()
    for url in (urls[2], last.json()["url"]):
        server.wait_for(lambda url=url: state(server, url)["state"] == "done")
    assert not [path for path in server.folder.rglob("*") if path.is_file()]


def test_a_full_queue_answers_429_before_the_body_is_read(stage, slow_model):
    server = stage(slow_model, places=1, linger_seconds=0.2)
    post(server)
    with connected(server.port) as connection:
        connection.sendall(
            b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
        )
        response = connection.recv(10_000)
        assert response.startswith(b"HTTP/1.1 429")
        assert b"connection: close" in response.lower()
        # The connection is closed although the body was never sent.
        while connection.recv(10_000):
            pass
    with connected(server.port) as connection:
        connection.sendall(
            b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
            b"Expect: 100-continue\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        assert connection.recv(10_000).startswith(b"HTTP/1.1 429")


def test_a_refused_upload_is_drained_so_that_the_answer_arrives(stage, slow_model):
    server = stage(slow_model, places=1)
    post(server)
    for _ in range(5):
        assert post(server, files=form(("a", bytes(20 << 20)))).status_code == 429


def test_too_many_bytes_are_refused_with_and_without_content_length(stage):
    server = stage(lambda path, watch: answer(), upload_mib=1)
    large = multipart((b"a", bytes(2 << 20)))
    assert post(server, files=None, content=large, headers=FORM_HEADERS).status_code == 413

    def in_pieces():
        for start in range(0, len(large), 100_000):
            yield large[start : start + 100_000]

    refused = post(server, files=None, content=in_pieces(), headers=FORM_HEADERS)
    assert refused.status_code == 413
    assert "1 MiB" in refused.json()["error"]
    assert not list(server.folder.iterdir())


def test_too_many_files_are_refused(stage):
    server = stage(lambda path, watch: answer(), files=5)
    assert post(server, files=form(*[("a", b"1")] * 5)).status_code == 202
    refused = post(server, files=form(*[("a", b"1")] * 6))
    assert refused.status_code == 413
    assert "5 files" in refused.json()["error"]


def zip_of(*sizes: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, size in enumerate(sizes):
            archive.writestr(f"{i}.dcm", bytes(size))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("sizes", "message"), [([3 << 20, 3 << 20], "unpacks to more than 5 MiB"), ([1] * 9, "8 files")]
)
def test_a_zip_that_unpacks_to_too_much_is_refused(sizes, message, stage):
    called = []
    server = stage(lambda path, watch: called.append(path) or answer(), unpacked_mib=5, files=8)
    refused = post(server, files=form(("a.zip", zip_of(*sizes))))
    assert refused.status_code == 413
    assert message in refused.json()["error"]
    assert post(server, files=form(("a.zip", zip_of(1, 1)))).status_code == 202
    server.wait_for(lambda: len(called) == 1)


def test_a_slow_body_times_out(stage):
    server = stage(
        lambda path, watch: answer(),
        patience_seconds=0.3,
        least_kib_a_second=100.0,
        linger_seconds=0.1,
    )
    with connected(server.port) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + multipart((b"a", b""))[:-9]
        )
        start = time.monotonic()
        connection.settimeout(0.01)
        response = b""
        # A byte now and then does not keep the slot.
        while not response and time.monotonic() < start + 10:
            connection.sendall(b"-")
            try:
                response = connection.recv(10_000)
            except TimeoutError:
                time.sleep(0.02)
        assert response.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start < 5
    server.wait_for(lambda: server.jobs.n_in_flight == 0)
    assert not list(server.folder.iterdir())


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /healthz HTTP/1.1\r\nHost: loc", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET"],
)
def test_a_connection_without_a_request_is_closed(sent, stage):
    server = stage(lambda path, watch: answer(), patience_seconds=0.3)
    with connected(server.port) as connection:
        connection.sendall(sent)
        start = time.monotonic()
        while connection.recv(10_000):
            pass
        # Between requests it may be silent for five seconds, uvicorn's default.
        assert time.monotonic() - start < 8


def test_connections_are_bounded(stage):
    server = stage(lambda path, watch: answer(), connections=3)
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3)]
    try:
        for connection in held:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/healthz")
    finally:
        for connection in held:
            connection.close()
    server.wait_for(lambda: _is_healthy(server))


def _is_healthy(server) -> bool:
    try:
        return httpx.get(f"{server.url}/healthz").is_success
    except httpx.TransportError:
        return False


def test_a_client_that_does_not_read_is_disconnected(stage):
    # More than the sockets' buffers, some MiB at either end.
    n_bytes = 40 << 20
    server = stage(lambda path, watch: answer("x" * (n_bytes // 2)), send_seconds=0.3)
    url = post(server).json()["url"]
    server.wait_for(lambda: state(server, url)["state"] == "done")
    with connected(server.port) as connection:
        connection.sendall(f"GET {url}/result HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(1)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert 0 < received < n_bytes
    assert httpx.get(f"{server.url}/healthz").is_success


def test_malformed_http_gets_400_and_logs_no_error(stage):
    server = stage(lambda path, watch: answer())
    for _ in range(5):
        with connected(server.port) as connection:
            connection.sendall(
                b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n"
                b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
            )
            assert connection.recv(10_000).startswith(b"HTTP/1.1 400")
    assert "error" not in server.log.read_text()


def test_a_job_over_the_time_limit_gets_504_and_the_next_one_runs(stage, slow_model):
    server = stage(slow_model, work_seconds=0.3)
    late = post(server, "/api/predict")
    assert late.status_code == 504
    assert "longer than 0.3 seconds" in late.json()["error"]
    url = post(server).json()["url"]
    server.wait_for(lambda: state(server, url)["state"] == "timed_out")
    slow_model.go_on.set()
    assert post(server, "/api/predict").json() == answer().result
    assert not [path for path in server.folder.rglob("*") if path.is_file()]


def test_the_job_of_a_disconnected_client_is_cancelled(stage, slow_model):
    server = stage(slow_model)
    with pytest.raises(httpx.ReadTimeout):
        post(server, "/api/predict", timeout=0.5)
    server.wait_for(lambda: server.jobs.n_in_flight == 0)
    assert "given_up" in server.log.read_text()
    with connected(server.port) as connection:
        connection.sendall(
            b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        server.wait_for(lambda: server.jobs.n_in_flight == 1)
    server.wait_for(lambda: server.jobs.n_in_flight == 0)
    assert not list(server.folder.iterdir())


def test_a_slot_is_released_after_the_files_of_a_refused_upload_are_deleted(stage, monkeypatch):
    server = stage(lambda path, watch: answer(), places=1, upload_mib=1)
    go_on, rmtree = threading.Event(), shutil.rmtree

    def slow(path, **others):
        assert go_on.wait(20)
        rmtree(path, **others)

    monkeypatch.setattr(shutil, "rmtree", slow)
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(post, server, files=form(("a", bytes(2 << 20))))
        server.wait_for(lambda: server.jobs.n_in_flight == 1 and list(server.folder.iterdir()))
        assert post(server).status_code == 429
        go_on.set()
        assert refused.result().status_code == 413
    server.wait_for(lambda: server.jobs.n_in_flight == 0)
    assert not list(server.folder.iterdir())
    assert post(server).status_code == 202


def test_an_early_request_for_the_result_gets_409(stage, slow_model):
    server = stage(slow_model)
    url = post(server).json()["url"]
    for what in ("result", "report"):
        assert httpx.get(f"{server.url}{url}/{what}").status_code == 409


def test_internal_errors_are_reported_without_their_message(stage):
    def explain(path, *, watch):
        raise InputError(f"{path} of MUSTERFRAU")

    server = stage(explain)
    failed = post(server, "/api/predict")
    assert failed.status_code == 500
    assert "MUSTERFRAU" not in failed.text + server.log.read_text()
    assert "InputError" in server.log.read_text()
    assert "test_limits.py" in server.log.read_text()
    assert httpx.get(f"{server.url}/healthz").is_success


def test_a_dead_worker_is_reported(stage, monkeypatch):
    class Death(BaseException):
        pass

    def explain(path, *, watch):
        raise Death

    died = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_type))
    server = stage(explain)
    assert post(server, "/api/predict").status_code == 503
    server.wait_for(lambda: died)
    assert died == [Death]
    assert httpx.get(f"{server.url}/healthz").status_code == 503
    assert post(server).status_code == 503


def test_answers_are_kept_in_bounded_number_size_and_time(stage):
    server = stage(lambda path, watch: answer("x" * 200_000), answers=3, answers_mib=1)
    urls = []
    for _ in range(4):
        urls.append(post(server).json()["url"])
        server.wait_for(lambda: state(server, urls[-1])["state"] == "done")
    # Three may be kept, but only two fit.
    assert [httpx.get(server.url + url).status_code for url in urls] == [404, 404, 200, 200]


def test_answers_expire(stage):
    server = stage(lambda path, watch: answer(), answer_minutes=0.01)
    url = post(server).json()["url"]
    server.wait_for(lambda: state(server, url).get("state") == "done")
    server.wait_for(lambda: httpx.get(server.url + url).status_code == 404)


def test_shutdown_refuses_queued_jobs_and_finishes_the_running_one(stage, slow_model):
    server = stage(slow_model, shutdown_seconds=20.0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, server, "/api/predict")
        server.wait_for(lambda: slow_model.calls == 1)
        second = pool.submit(post, server, "/api/predict")
        server.wait_for(lambda: server.jobs.n_in_flight == 2)
        closing = threading.Thread(target=server.jobs.close)
        closing.start()
        assert second.result(10).status_code == 503
        assert httpx.get(f"{server.url}/healthz").status_code == 503
        assert not first.done()
        slow_model.go_on.set()
        assert first.result(10).status_code == 200
        closing.join()


def test_a_running_job_is_cancelled_when_shutdown_times_out(stage, slow_model):
    server = stage(slow_model, shutdown_seconds=0.2)
    post(server)
    server.wait_for(lambda: slow_model.calls == 1)
    start = time.monotonic()
    server.jobs.close()
    assert time.monotonic() - start < 5
    assert server.jobs.n_in_flight == 0


def test_a_refusal_gives_the_reason_without_the_path(stage):
    def explain(path, *, watch):
        raise CtError(f"{path} holds nothing; fix it.", "nothing at all.")

    refused = post(stage(explain), "/api/predict")
    assert refused.status_code == 422
    assert refused.json() == {"error": "invalid input: nothing at all."}


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_must_be_positive(value):
    with pytest.raises(InputError, match=r"--config\.places="):
        default_limits(places=value)


def test_unknown_limits_are_refused():
    with pytest.raises(InputError, match="places_of"):
        default_limits(places_of=3)
