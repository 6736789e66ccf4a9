"""The API of the real server answers as predict does and leaves no files."""

from __future__ import annotations

import io
import json
import time
import zipfile

import cv2
import httpx
import numpy as np
import pytest
from html_pages import Page
from serving.servers import FORM_HEADERS, TOKEN, form, form_of, multipart, start

import drenet_jax


@pytest.fixture(scope="session")
def pipeline(trained):
    return drenet_jax.load(trained)


def zipped(folder) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return stream.getvalue()


def finished(client: httpx.Client, url: str) -> dict:
    """Polls until the job has ended; returns its last state."""
    states = []
    for _ in range(600):
        status = client.get(url).json()
        states.append(status["state"])
        if status["state"] in ("done", "refused", "failed", "timed_out"):
            return status
        time.sleep(0.02)
    raise AssertionError(states)


def assert_same(served: dict, predicted: dict) -> None:
    """Equal but for rounding: the tests' own process has eight devices."""
    assert served["excluded"] == predicted["excluded"]
    assert served["notes"] == predicted["notes"]
    assert served["model"] == predicted["model"]
    assert served["person"]["label"] == predicted["person"]["label"]
    assert served["person"]["probabilities"] == pytest.approx(
        predicted["person"]["probabilities"], abs=1e-4
    )
    assert len(served["slices"]) == len(predicted["slices"])
    for slice_, expected in zip(served["slices"], predicted["slices"], strict=True):
        assert (slice_["name"], slice_["index"]) == (expected["name"], expected["index"])
        for box, expected_box in zip(slice_["boxes"], expected["boxes"], strict=True):
            assert box == pytest.approx(expected_box, abs=1e-3)


def test_a_folder_gets_the_answer_of_predict(client, pipeline, person):
    served = client.post("/api/predict", files=form_of(person, within=f"{person.name}/"))
    assert served.status_code == 200, served.text
    assert_same(served.json(), pipeline.person(person))


def test_a_zip_gets_the_answer_of_predict(client, pipeline, person, tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(person))
    served = client.post("/api/predict", files=form(("a.zip", zipped(person))))
    assert_same(served.json(), pipeline.person(tmp_path / "a.zip"))


def test_a_single_slice_gets_the_answer_of_predict(client, pipeline, person):
    for path in sorted(person.iterdir()):
        if client.post("/api/predict", files=form((path.name, path.read_bytes()))).is_success:
            break
    served = client.post("/api/predict", files=form((f"x/{path.name}", path.read_bytes())))
    assert_same(served.json(), pipeline.person(path))


def test_the_predict_command_gives_the_same_result(client, command, trained, person, tmp_path):
    done = command(
        "predict", f"--workdir={trained}", f"--input={person}", f"--out={tmp_path / 'o'}"
    )
    assert done.returncode == 0, done.stderr
    predicted = json.loads((tmp_path / "o" / "result.json").read_text())
    assert_same(client.post("/api/predict", files=form_of(person)).json(), predicted)


def test_a_job_runs_and_is_deleted_on_request(client, served, person):
    sent = client.post("/api/jobs", files=form_of(person))
    assert sent.status_code == 202
    url = sent.json()["url"]
    assert sent.headers["location"] == url
    assert len(sent.json()["id"]) >= 32
    status = finished(client, url)
    assert status["state"] == "done"
    result, report = client.get(status["result"]), client.get(status["report"])
    assert result.json()["person"]["n_slices"] == len(result.json()["slices"])
    assert report.headers["content-type"].startswith("text/html")
    assert "research only, not for clinical use" in report.text.lower()
    # A browser, which sends no token with a page, uses an unguessable URL.
    seen = client.get(status["view"])
    assert seen.text == report.text
    policy = seen.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox allow-scripts" in policy
    assert client.delete(url).status_code == 204
    for gone in (url, status["result"], status["report"], status["view"]):
        assert client.get(gone).status_code == 404
    assert not served.left_files()


def test_file_names_are_sanitized(client, served, person):
    evil = '../../<img src=x onerror="alert(1)">'
    files = [
        (f"{evil}/{i}.dcm", path.read_bytes()) for i, path in enumerate(sorted(person.iterdir()))
    ]
    files.append(("notes\u202e.txt", b"hello"))
    sent = client.post("/api/jobs", files=form(*files)).json()
    status = finished(client, sent["url"])
    result = client.get(status["result"])
    assert "<img" not in result.text
    names = [slice_["name"] for slice_ in result.json()["slices"]]
    assert all(name.endswith(".dcm") and "<img src=x onerror=" in name for name in names)
    assert {file["name"] for file in result.json()["excluded"]} >= {"notes_.txt"}
    report = client.get(status["report"]).text
    assert "<img src=x" not in report
    assert not [image for image in Page(report).all("img") if image["src"] == "x"]
    assert str(served.temporary) not in result.text + report


def picture(colour: bool) -> bytes:
    image = np.zeros((240, 320, 3), np.uint8)
    image[:] = (200, 120, 30) if colour else (120, 120, 120)
    cv2.circle(image, (80, 80), 40, (0, 220, 250) if colour else (250, 250, 250), -1)
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (("holiday.jpg", picture(colour=True)), "a colour picture, no CT slice"),
        (("grey.jpg", picture(colour=False)), "no lungs"),
        (("letter.txt", b"Dear colleague"), "not DICOM, PNG, JPEG"),
        (("empty.dcm", b""), "an empty file"),
        (("cut.zip", b"PK\x03\x04" + b"0" * 50), "a damaged zip"),
    ],
)
def test_input_that_is_no_chest_ct_is_refused_with_a_reason(file, why, client, served):
    refused = client.post("/api/predict", files=form(file))
    assert refused.status_code == 422
    assert refused.json()["error"].startswith("invalid input: ")
    assert why in refused.json()["error"]
    assert str(served.temporary) not in refused.text
    status = finished(client, client.post("/api/jobs", files=form(file)).json()["url"])
    assert status["state"] == "refused"
    assert status["error"] == refused.json()["error"]
    assert not served.left_files()


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": "multipart/form-data"}, b"", 415),
        (FORM_HEADERS, b"", 400),
        (FORM_HEADERS, b"--x--\r\n", 400),
        (FORM_HEADERS, b"no form at all", 400),
        (FORM_HEADERS, multipart((b"a", b"b"))[:-9], 400),
        (FORM_HEADERS, multipart((b"a", b"b")).replace(b'"files"', b'"others"'), 400),
        ({"Content-Type": "multipart/form-data; boundary=" + "y" * 300}, b"", 400),
    ],
)
def test_a_malformed_form_is_refused(headers, body, status, client):
    refused = client.post("/api/jobs", content=body, headers=headers)
    assert refused.status_code == status
    assert list(refused.json()) == ["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/jobs/nobody-knows", 404),
        ("DELETE", "/api/jobs/nobody-knows", 404),
        ("GET", "/reports/nobody-knows", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/app.py", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/api/predict", 405),
    ],
)
def test_unknown_paths_get_a_json_error(method, path, status, client):
    missing = client.request(method, path)
    assert missing.status_code == status
    assert list(missing.json()) == ["error"]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_other_servers(path, client):
    got = client.get(path)
    policy = dict(
        part.strip().split(" ", 1) for part in got.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in got.headers["content-security-policy"]
    page = Page(got.text)
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "/").startswith(("/", "#")), attributes
            assert not attributes.get(name, "/").startswith("//")
    assert not any(tag == "style" for tag, _ in page.elements)
    for loaded in [*page.all("script"), *page.all("img")]:
        assert client.get(loaded["src"]).is_success
    for linked in page.all("link"):
        file = client.get(linked["href"])
        assert file.is_success
        assert "url(" not in file.text
        assert "@import" not in file.text


def test_the_docs_name_every_path(client):
    schema = client.get("/openapi.json").json()
    page = client.get("/docs").text
    for path in schema["paths"]:
        assert path in page
    assert set(schema["paths"]) >= {"/api/jobs", "/api/predict", "/healthz", "/metrics"}


def test_every_response_has_security_headers(client):
    for path in ("/", "/docs", "/healthz", "/openapi.json", "/static/serve.js", "/nowhere"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8000"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_cross_site_requests_are_refused(headers, client):
    refused = client.post("/api/predict", files=form(("a", b"b")), headers=headers)
    assert refused.status_code == 403
    assert list(refused.json()) == ["error"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_local_host_names_are_accepted(host, client):
    assert client.get("/healthz", headers={"Host": f"{host}:8000"}).is_success
    origin = {"Host": f"{host}:8000", "Origin": f"http://{host}:8000"}
    assert client.post("/api/jobs", headers=origin).status_code == 415


def test_health_and_metrics(client, person):
    health = client.get("/healthz").json()
    assert health["status"] == "ok"
    assert health["model"] == "drenet"
    client.post("/api/predict", files=form_of(person))
    text = client.get("/metrics").text
    assert float(text.split('drenet_requests_total{outcome="done"} ')[1].split("\n")[0]) >= 1
    assert "drenet_persons_present 0.0" in text
    assert 'drenet_stage_seconds_count{stage="scoring"}' in text
    assert "drenet_upload_bytes_total" in text


def test_the_log_has_no_patient_data(client, served, person):
    files = [(f"MUSTERFRAU^ERIKA/{p.name}", p.read_bytes()) for p in sorted(person.iterdir())]
    client.post("/api/predict", files=form(*files))
    client.post("/api/predict", files=form(("MUSTERFRAU.dcm", b"PatientName MUSTERFRAU")))
    client.get("/MUSTERFRAU")
    client.get("/api/jobs/MUSTERFRAU")
    lines = served.log.splitlines()
    assert any("done " in line and f"{len(files)} files" in line for line in lines)
    assert "MUSTERFRAU" not in served.log
    assert ".dcm" not in served.log


def test_a_token_protects_the_api_only(trained, tmp_path, person):
    served = start(tmp_path, trained, token=TOKEN)
    try:
        with httpx.Client(base_url=served.url, timeout=60) as client:
            for path in ("/", "/healthz", "/docs", "/openapi.json", "/static/serve.css"):
                assert client.get(path).is_success
            for wrong in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}):
                for path in ("/api/status", "/metrics", "/api/jobs/some"):
                    refused = client.get(path, headers=wrong)
                    assert refused.status_code == 401
                    assert refused.headers["www-authenticate"] == "Bearer"
                assert client.post("/api/predict", headers=wrong).status_code == 401
            right = {"Authorization": f"Bearer {TOKEN}"}
            assert client.get("/metrics", headers=right).is_success
            url = client.post("/api/jobs", files=form_of(person), headers=right).json()["url"]
            client.headers.update(right)
            view = finished(client, url)["view"]
        assert httpx.get(served.url + view).is_success
        assert TOKEN not in served.log
    finally:
        assert served.stop() == 0
