"""Errors of a DICOMweb server, and what is sent to it."""

from __future__ import annotations

import contextlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pydicom
import pytest
from pacs.dicomweb_servers import Answer, answer_with, failing_server, quick_settings

from drenet_jax.errors import InputError
from drenet_jax.pacs.dicomweb_server import DicomwebServer
from drenet_jax.pacs.peer_error import PeerError

_FILES = 'multipart/related; type="application/dicom"; boundary=x'
_PART = b"--x\r\nContent-Type: application/dicom\r\n\r\n%s\r\n"
_SERIES = (
    b'[{"0020000E": {"vr": "UI", "Value": ["1.2.3"]}, "00080060": {"vr": "CS", "Value": ["CT"]},'
    b' "00201209": {"vr": "IS", "Value": ["2"]}}]'
)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (answer_with(200, _FILES, _PART % b"one" + b"--x--"), "it sent 1 of 2 instances"),
        (answer_with(200, _FILES, _PART % b"one" + _PART % b"two"), "its answer was cut off"),
        (answer_with(200, _FILES, b"no boundary"), "a damaged multipart message"),
        (answer_with(200, "text/html", b"<html>"), "something else than a multipart message"),
        (answer_with(200, _FILES, _PART % bytes(2 << 20)), "an instance is larger than 1 MiB"),
        (answer_with(401, "text/plain", b""), "it refused the credentials"),
        (answer_with(500, "text/plain", b""), "HTTP status 500"),
        (lambda handler: handler.connection.close(), "cannot be reached, or ended the connection"),
    ],
)
def test_a_series_that_does_not_come_whole_is_an_error(answer, sentence, tmp_path):
    answers = [answer_with(200, "application/dicom+json", _SERIES)] * 2 + [answer]
    with failing_server(answers) as url:
        server = DicomwebServer(url, "", quick_settings(instance_mib=1))
        (series,) = server.ct_series("1.2")
        with pytest.raises(PeerError, match=sentence):
            list(server.fetch_series("1.2", series, tmp_path))


def test_a_server_that_takes_no_asterisk_is_asked_again(tmp_path):
    body = _PART % b"one" + _PART % b"two" + b"--x--\r\n"
    answers = [answer_with(200, "application/dicom+json", _SERIES)] * 2
    answers += [answer_with(406, "text/plain", b""), answer_with(200, _FILES, body)]
    with failing_server(answers) as url:
        server = DicomwebServer(url, "", quick_settings())
        (series,) = server.ct_series("1.2")
        files = list(server.fetch_series("1.2", series, tmp_path))
    assert [file.read_bytes() for file in files] == [b"one", b"two"]


@pytest.mark.parametrize(
    "page", [b"", b"[", b'"text"', b'{"error": 1}', b"[1]", b'[{"0020000D": {"Value": [{}]}}]']
)
def test_listings_of_another_form_have_no_studies_or_are_an_error(page):
    with failing_server([answer_with(200, "application/dicom+json", page)] * 2) as url:
        server = DicomwebServer(url, "", quick_settings())
        with contextlib.suppress(PeerError):
            assert server.ct_studies() == {}


def _stow(status: int, body: bytes = b"{}") -> Answer:
    return answer_with(status, "application/dicom+json", body)


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (_stow(409), "HTTP status 409"),
        (
            _stow(
                202,
                b'{"00081198": {"vr": "SQ", "Value": '
                b'[{"00081197": {"vr": "US", "Value": [272]}}]}}',
            ),
            "reason 0x0110",
        ),
        (_stow(200), "does not say"),
        (answer_with(200, "application/json", b"[]"), "something else than DICOM JSON"),
    ],
)
def test_a_result_that_is_refused_is_stored_if_the_server_has_it(
    answer, sentence, is_there, persons, tmp_path
):
    file = next(persons[0].iterdir())
    uid = pydicom.dcmread(file).SOPInstanceUID
    found = f'[{{"00080018": {{"vr": "UI", "Value": ["{uid}"]}}}}]'.encode()
    page = answer_with(200, "application/dicom+json", found if is_there else b"[]")
    stored: list[Path] = []
    with failing_server([answer, page, page]) as url:
        server = DicomwebServer(url, "", quick_settings())
        if is_there and "JSON" not in sentence:
            server.store([file], stored.append)
            assert stored == [file]
        else:
            with pytest.raises(PeerError, match=sentence):
                server.store([file], stored.append)
            assert stored == []


def test_the_token_is_sent_and_netrc_does_not_replace_it(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    headers = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        headers.append(handler.headers["Authorization"])
        headers.append(handler.headers["Host"])
        answer_with(200, "application/dicom+json", b"[]")(handler)

    with failing_server([note, note]) as url:
        DicomwebServer(url, "secret-token", quick_settings()).ct_studies()
        DicomwebServer(url, "", quick_settings()).ct_studies()
    host = url.split("/")[2]
    assert headers == ["Bearer secret-token", host, "Basic YTpi", host]


@pytest.mark.parametrize(
    ("url", "token", "sentence"),
    [
        ("ftp://pacs/dicom-web", "", "is no URL of a server"),
        ("http://", "", "is no URL of a server"),
        ("http://[::1", "", "is no URL of a server"),
        ("http://pacs:99999/", "", "is no URL of a server"),
        ("http://pacs/?a=b", "", "is no URL of a server"),
        ("https://user:secret@pacs/", "", "has a password in it"),
        ("http://pacs/dicom-web", "token", "would send DICOMWEB_TOKEN unencrypted"),
        ("https://pacs/dicom-web", "to\nken", "is no token"),
    ],
)
def test_urls_and_tokens_that_are_refused(url, token, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        DicomwebServer(url, token, quick_settings())
    assert "secret" not in str(error.value)
