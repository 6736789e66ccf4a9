"""What visitors may cost: places, bytes, files, time; a stand-in plays the model."""

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
from serving.visitors import (
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
    """A model that works until it is told to end; it looks at `watch` as the reader does."""

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


def test_those_who_wait_are_told_their_place_and_the_next_is_told_429(stage, slow_model):
    at = stage(slow_model, places=3)
    urls = [post(at).json()["url"] for _ in range(3)]
    at.wait_for(lambda: state(at, urls[0])["state"] == "reading")
    assert [state(at, url)["before"] for url in urls] == [None, 1, 2]
    refused = post(at)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert list(refused.json()) == ["error"]
    assert httpx.get(f"{at.url}/api/status").json() == {"places": 3, "present": 3}
    # Who gives up makes room.
    assert httpx.delete(at.url + urls[1]).status_code == 204
    assert post(at).status_code == 202
    assert state(at, urls[2])["before"] == 1
    slow_model.go_on.set()
    at.wait_for(lambda: state(at, urls[2])["state"] == "done")
    assert not [path for path in at.folder.rglob("*") if path.is_file()]


def test_a_full_house_is_told_before_the_body_is_read(stage, slow_model):
    at = stage(slow_model, places=1, linger_seconds=0.2)
    post(at)
    with connected(at.port) as connection:
        connection.sendall(
            b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
        )
        told = connection.recv(10_000)
        assert told.startswith(b"HTTP/1.1 429")
        assert b"connection: close" in told.lower()
        # And the connection is closed though the body never came.
        while connection.recv(10_000):
            pass
    with connected(at.port) as connection:
        connection.sendall(
            b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
            b"Expect: 100-continue\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        assert connection.recv(10_000).startswith(b"HTTP/1.1 429")


def test_a_refused_upload_is_read_to_its_end_so_that_the_answer_arrives(stage, slow_model):
    at = stage(slow_model, places=1)
    post(at)
    for _ in range(5):
        assert post(at, files=form(("a", bytes(20 << 20)))).status_code == 429


def test_too_many_bytes_are_told_whether_announced_or_not(stage):
    at = stage(lambda path, watch: answer(), upload_mib=1)
    large = multipart((b"a", bytes(2 << 20)))
    assert post(at, files=None, content=large, headers=FORM_HEADERS).status_code == 413

    def in_pieces():
        for start in range(0, len(large), 100_000):
            yield large[start : start + 100_000]

    refused = post(at, files=None, content=in_pieces(), headers=FORM_HEADERS)
    assert refused.status_code == 413
    assert "1 MiB" in refused.json()["error"]
    assert not list(at.folder.iterdir())


def test_too_many_files_are_told(stage):
    at = stage(lambda path, watch: answer(), files=5)
    assert post(at, files=form(*[("a", b"1")] * 5)).status_code == 202
    refused = post(at, files=form(*[("a", b"1")] * 6))
    assert refused.status_code == 413
    assert "5 files" in refused.json()["error"]


def zip_of(*sizes: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, size in enumerate(sizes):
            archive.writestr(f"{i}.dcm", bytes(size))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("sizes", "told"), [([3 << 20, 3 << 20], "unpacks to more than 5 MiB"), ([1] * 9, "8 files")]
)
def test_a_zip_that_unpacks_to_too_much_is_told(sizes, told, stage):
    called = []
    at = stage(lambda path, watch: called.append(path) or answer(), unpacked_mib=5, files=8)
    refused = post(at, files=form(("a.zip", zip_of(*sizes))))
    assert refused.status_code == 413
    assert told in refused.json()["error"]
    assert post(at, files=form(("a.zip", zip_of(1, 1)))).status_code == 202
    at.wait_for(lambda: len(called) == 1)


def test_a_slow_body_is_told(stage):
    at = stage(
        lambda path, watch: answer(),
        patience_seconds=0.3,
        least_kib_a_second=100.0,
        linger_seconds=0.1,
    )
    with connected(at.port) as connection:
        connection.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + multipart((b"a", b""))[:-9]
        )
        start = time.monotonic()
        connection.settimeout(0.01)
        told = b""
        # A drop now and then keeps no place.
        while not told and time.monotonic() < start + 10:
            connection.sendall(b"-")
            try:
                told = connection.recv(10_000)
            except TimeoutError:
                time.sleep(0.02)
        assert told.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start < 5
    at.wait_for(lambda: at.jobs.n_in_flight == 0)
    assert not list(at.folder.iterdir())


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /healthz HTTP/1.1\r\nHost: loc", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET"],
)
def test_a_connection_without_a_request_is_closed(sent, stage):
    at = stage(lambda path, watch: answer(), patience_seconds=0.3)
    with connected(at.port) as connection:
        connection.sendall(sent)
        start = time.monotonic()
        while connection.recv(10_000):
            pass
        # Between requests it may be silent for five seconds, as uvicorn has it.
        assert time.monotonic() - start < 8


def test_connections_are_bounded(stage):
    at = stage(lambda path, watch: answer(), connections=3)
    held = [socket.create_connection(("127.0.0.1", at.port), timeout=10) for _ in range(3)]
    try:
        for connection in held:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{at.url}/healthz")
    finally:
        for connection in held:
            connection.close()
    at.wait_for(lambda: _is_well(at))


def _is_well(at) -> bool:
    try:
        return httpx.get(f"{at.url}/healthz").is_success
    except httpx.TransportError:
        return False


def test_who_does_not_take_the_answer_is_left(stage):
    # More than the system holds on the way, some MiB at either end.
    n_bytes = 40 << 20
    at = stage(lambda path, watch: answer("x" * (n_bytes // 2)), send_seconds=0.3)
    url = post(at).json()["url"]
    at.wait_for(lambda: state(at, url)["state"] == "done")
    with connected(at.port) as connection:
        connection.sendall(f"GET {url}/result HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(1)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert 0 < received < n_bytes
    assert httpx.get(f"{at.url}/healthz").is_success


def test_a_visitor_who_breaks_http_is_told_so_and_nothing_is_our_mistake(stage):
    at = stage(lambda path, watch: answer())
    for _ in range(5):
        with connected(at.port) as connection:
            connection.sendall(
                b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\n"
                b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
            )
            assert connection.recv(10_000).startswith(b"HTTP/1.1 400")
    assert "error" not in at.log.read_text()


def test_work_that_takes_too_long_is_told_and_the_next_gets_its_turn(stage, slow_model):
    at = stage(slow_model, work_seconds=0.3)
    late = post(at, "/api/predict")
    assert late.status_code == 504
    assert "longer than 0.3 seconds" in late.json()["error"]
    url = post(at).json()["url"]
    at.wait_for(lambda: state(at, url)["state"] == "timed_out")
    slow_model.go_on.set()
    assert post(at, "/api/predict").json() == answer().result
    assert not [path for path in at.folder.rglob("*") if path.is_file()]


def test_a_visitor_who_leaves_is_worked_on_no_more(stage, slow_model):
    at = stage(slow_model)
    with pytest.raises(httpx.ReadTimeout):
        post(at, "/api/predict", timeout=0.5)
    at.wait_for(lambda: at.jobs.n_in_flight == 0)
    assert "given_up" in at.log.read_text()
    with connected(at.port) as connection:
        connection.sendall(
            b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        at.wait_for(lambda: at.jobs.n_in_flight == 1)
    at.wait_for(lambda: at.jobs.n_in_flight == 0)
    assert not list(at.folder.iterdir())


def test_a_place_is_free_when_the_files_of_a_refused_upload_are_gone(stage, monkeypatch):
    at = stage(lambda path, watch: answer(), places=1, upload_mib=1)
    go_on, rmtree = threading.Event(), shutil.rmtree

    def slow(path, **others):
        assert go_on.wait(20)
        rmtree(path, **others)

    monkeypatch.setattr(shutil, "rmtree", slow)
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(post, at, files=form(("a", bytes(2 << 20))))
        at.wait_for(lambda: at.jobs.n_in_flight == 1 and list(at.folder.iterdir()))
        assert post(at).status_code == 429
        go_on.set()
        assert refused.result().status_code == 413
    at.wait_for(lambda: at.jobs.n_in_flight == 0)
    assert not list(at.folder.iterdir())
    assert post(at).status_code == 202


def test_a_result_is_asked_for_too_early(stage, slow_model):
    at = stage(slow_model)
    url = post(at).json()["url"]
    for what in ("result", "report"):
        assert httpx.get(f"{at.url}{url}/{what}").status_code == 409


def test_our_own_mistakes_are_told_without_a_word_of_them(stage):
    def explain(path, *, watch):
        raise InputError(f"{path} of MUSTERFRAU")

    at = stage(explain)
    failed = post(at, "/api/predict")
    assert failed.status_code == 500
    assert "MUSTERFRAU" not in failed.text + at.log.read_text()
    assert "InputError" in at.log.read_text()
    assert "test_limits.py" in at.log.read_text()
    assert httpx.get(f"{at.url}/healthz").is_success


def test_a_worker_that_died_shows(stage, monkeypatch):
    class Death(BaseException):
        pass

    def explain(path, *, watch):
        raise Death

    died = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_type))
    at = stage(explain)
    assert post(at, "/api/predict").status_code == 503
    at.wait_for(lambda: died)
    assert died == [Death]
    assert httpx.get(f"{at.url}/healthz").status_code == 503
    assert post(at).status_code == 503


def test_answers_are_kept_in_bounded_number_size_and_time(stage):
    at = stage(lambda path, watch: answer("x" * 200_000), answers=3, answers_mib=1)
    urls = []
    for _ in range(4):
        urls.append(post(at).json()["url"])
        at.wait_for(lambda: state(at, urls[-1])["state"] == "done")
    # Three may be kept, but only two fit.
    assert [httpx.get(at.url + url).status_code for url in urls] == [404, 404, 200, 200]


def test_answers_go_with_time(stage):
    at = stage(lambda path, watch: answer(), answer_minutes=0.01)
    url = post(at).json()["url"]
    at.wait_for(lambda: state(at, url).get("state") == "done")
    at.wait_for(lambda: httpx.get(at.url + url).status_code == 404)


def test_an_end_tells_those_who_wait_and_lets_the_one_in_work_finish(stage, slow_model):
    at = stage(slow_model, shutdown_seconds=20.0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, at, "/api/predict")
        at.wait_for(lambda: slow_model.calls == 1)
        second = pool.submit(post, at, "/api/predict")
        at.wait_for(lambda: at.jobs.n_in_flight == 2)
        closing = threading.Thread(target=at.jobs.close)
        closing.start()
        assert second.result(10).status_code == 503
        assert httpx.get(f"{at.url}/healthz").status_code == 503
        assert not first.done()
        slow_model.go_on.set()
        assert first.result(10).status_code == 200
        closing.join()


def test_one_in_work_that_does_not_finish_is_given_up_in_the_end(stage, slow_model):
    at = stage(slow_model, shutdown_seconds=0.2)
    post(at)
    at.wait_for(lambda: slow_model.calls == 1)
    start = time.monotonic()
    at.jobs.close()
    assert time.monotonic() - start < 5
    assert at.jobs.n_in_flight == 0


def test_a_refusal_gives_the_reason_without_the_path(stage):
    def explain(path, *, watch):
        raise CtError(f"{path} holds nothing; fix it.", "nothing at all.")

    refused = post(stage(explain), "/api/predict")
    assert refused.status_code == 422
    assert refused.json() == {"error": "invalid input: nothing at all."}


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_that_limit_nothing_are_refused(value):
    with pytest.raises(InputError, match=r"--config\.places="):
        default_limits(places=value)


def test_unknown_limits_are_refused():
    with pytest.raises(InputError, match="places_of"):
        default_limits(places_of=3)
