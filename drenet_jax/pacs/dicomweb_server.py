"""What is requested of a DICOMweb server: QIDO-RS, WADO-RS and STOW-RS, by dicomweb-client.

Nothing here is logged, and no message has a URL in it: URLs name studies.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pydicom
import requests
import urllib3
from dicomweb_client import DICOMwebClient
from pydicom import config

from drenet_jax.ct.dicom.elements import without_warnings
from drenet_jax.errors import InputError
from drenet_jax.pacs.multipart_files import part_files
from drenet_jax.pacs.peer_error import PeerError
from drenet_jax.pacs.settings import NodeSettings

TOKEN_VARIABLE = "DICOMWEB_TOKEN"

# As stored, where the server knows how to say so (PS3.18, 8.7.3.5.2); else as it likes.
_ACCEPTED = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    'multipart/related; type="application/dicom"',
)
_NOT_ACCEPTABLE = (400, 406, 415)
_PAGE = 200
_CHUNK_BYTES = 1 << 16
# Larger than any result: dicomweb-client would send it in chunks, without a length, which not all
# servers take.
_SENT_AT_ONCE_BYTES = 1 << 30

_STUDY_UID, _SERIES_UID, _SOP_UID = "0020000D", "0020000E", "00080018"
_MODALITY, _BODY_PART, _SERIES_NUMBER = "00080060", "00180015", "00200011"
_STUDY_INSTANCES, _SERIES_INSTANCES = "00201208", "00201209"


class ServerAway(PeerError):
    """A server that does not answer at all."""


class CtSeries(NamedTuple):
    """A CT series on the server.

    Attributes:
      uid: its SeriesInstanceUID.
      number: as the scanner counts its series; None if not given.
      n_instances: on the server.
      is_chest: whether its BodyPartExamined is the chest, or not given.
    """

    uid: str
    number: int | None
    n_instances: int
    is_chest: bool


class DicomwebServer:
    """A DICOMweb server."""

    def __init__(self, url: str, token: str, settings: NodeSettings):
        """A server; no connection is made yet.

        Args:
          url: of its DICOMweb services.
          token: sent as the bearer token; where it is empty, ~/.netrc may have a password.
          settings: of the node.

        Raises:
          InputError: the URL cannot be used.
        """
        parts = _checked_url(url, token)
        # They log URLs.
        for name in ("dicomweb_client", "urllib3"):
            logging.getLogger(name).propagate = False
            logging.getLogger(name).addHandler(logging.NullHandler())
        self.url = url.rstrip("/")
        self._settings = settings
        self._session = requests.Session()
        if token:
            # As a header it would give way to ~/.netrc.
            self._session.auth = _Bearer(token)
        self._client = DICOMwebClient(
            self.url,
            self._session,
            chunk_size=_SENT_AT_ONCE_BYTES,
            timeout=settings.dicomweb_seconds,
        )
        # The port is part of the Host header.
        self._client.host = parts.netloc
        self._client.set_http_retry_params(retry=False)

    def ct_studies(self) -> dict[str, int | None]:
        """UID -> number of instances of every study with CT; None where the server does not say.

        Raises:
          PeerError: it cannot be reached, or does not answer.
        """
        filters = {"ModalitiesInStudy": "CT"}
        return {
            uid: _number(study, _STUDY_INSTANCES)
            for study in self._search("search_for_studies", _STUDY_UID, search_filters=filters)
            if is_uid(uid := _text(study, _STUDY_UID))
        }

    def ct_series(self, study_uid: str) -> list[CtSeries]:
        """The CT series of a study.

        Raises:
          PeerError: as `ct_studies`; or it does not say how many instances a series has.
        """
        found = []
        for series in self._search(
            "search_for_series",
            _SERIES_UID,
            study_instance_uid=study_uid,
            fields=["BodyPartExamined"],
            search_filters={"Modality": "CT"},
        ):
            uid = _text(series, _SERIES_UID)
            # Not all servers filter.
            if _text(series, _MODALITY) != "CT" or not is_uid(uid):
                continue
            n_instances = _number(series, _SERIES_INSTANCES)
            if n_instances is None:
                raise PeerError("it does not say how many instances a series has")
            is_chest = self._is_chest(_text(series, _BODY_PART))
            found.append(CtSeries(uid, _number(series, _SERIES_NUMBER), n_instances, is_chest))
        return found

    def fetch_series(self, study_uid: str, series: CtSeries, folder: Path) -> Iterator[Path]:
        """Yields the files of a series as they arrive, in the transfer syntax that they have there.

        Args:
          study_uid: of its study.
          series: what to fetch.
          folder: for the files; an empty one.

        Raises:
          PeerError: as `ct_studies`; or not all instances came, or one is too large.
        """
        url = f"{self.url}/studies/{study_uid}/series/{series.uid}"
        n_files = 0
        with _peer_errors(), contextlib.closing(self._get_files(url)) as answer:
            chunks = answer.iter_content(_CHUNK_BYTES)
            content_type = answer.headers.get("Content-Type", "")
            most_bytes = self._settings.instance_mib << 20
            for file in part_files(content_type, chunks, folder, most_bytes=most_bytes):
                n_files += 1
                yield file
        if n_files < series.n_instances:
            raise PeerError(f"it sent {n_files} of {series.n_instances} instances")

    def store(self, files: Sequence[Path], on_stored: Callable[[Path], None]) -> None:
        """Stores files; what the server has already counts as stored.

        Args:
          files: to send.
          on_stored: called for each file that the server has.

        Raises:
          PeerError: the server has not taken all of them.
        """
        for file in files:
            # Headers of a patient are sent as they are, and not quoted in warnings.
            with without_warnings(), config.disable_value_validation():
                dataset = pydicom.dcmread(file)
                why = self._store(dataset)
            if why and not self._has(dataset):
                raise PeerError(why)
            on_stored(file)

    def _store(self, dataset: pydicom.Dataset) -> str:
        """Sends an instance; returns why it may not be stored, or ''."""
        try:
            with _peer_errors():
                answer = self._client.store_instances([dataset])
        except PeerError as error:
            # Some servers have a status, or a reason of their own, for what they have already.
            if isinstance(error.__cause__, requests.HTTPError):
                return str(error)
            raise
        stored = [
            item.get("ReferencedSOPInstanceUID") for item in answer.get("ReferencedSOPSequence", ())
        ]
        if dataset.SOPInstanceUID in stored:
            return ""
        for item in answer.get("FailedSOPSequence", ()):
            return f"it refused a result with reason 0x{item.get('FailureReason', 0):04X}"
        return "it does not say that it stored a result"

    def _has(self, dataset: pydicom.Dataset) -> bool:
        try:
            found = self._search(
                "search_for_instances",
                _SOP_UID,
                study_instance_uid=dataset.StudyInstanceUID,
                series_instance_uid=dataset.SeriesInstanceUID,
                search_filters={"SOPInstanceUID": dataset.SOPInstanceUID},
            )
        except PeerError as error:
            # Such as 404, since it has nothing of the series.
            if isinstance(error.__cause__, requests.HTTPError):
                return False
            raise
        return any(_text(instance, _SOP_UID) == dataset.SOPInstanceUID for instance in found)

    def _search(self, method: str, uid_tag: str, **arguments: Any) -> list[dict]:
        """All pages of a search."""
        found: dict[str, dict] = {}
        n_seen = 0
        while True:
            with _peer_errors():
                page = getattr(self._client, method)(limit=_PAGE, offset=n_seen, **arguments)
            n_seen += len(page)
            n_found = len(found)
            found |= {_text(item, uid_tag): item for item in page if isinstance(item, dict)}
            # Some servers have smaller pages than requested, others give everything each time.
            if len(found) == n_found:
                return list(found.values())

    def _get_files(self, url: str) -> requests.Response:
        for accepted in _ACCEPTED:
            answer = self._session.get(
                url,
                headers={"Accept": accepted},
                stream=True,
                timeout=self._settings.dicomweb_seconds,
            )
            if answer.status_code not in _NOT_ACCEPTABLE:
                break
            answer.close()
        answer.raise_for_status()
        return answer

    def _is_chest(self, body_part: str) -> bool:
        letters = "".join(filter(str.isalpha, body_part.upper()))
        parts = self._settings.dicomweb_body_parts.split(",")
        return not letters or any(part and part in letters for part in map(str.strip, parts))


def take_token() -> str:
    """The bearer token of the environment; '' if there is none.

    It is removed there, so that the process that decodes files does not have it.
    """
    return os.environ.pop(TOKEN_VARIABLE, "").strip()


class _Bearer(requests.auth.AuthBase):
    def __init__(self, token: str):
        self._header = f"Bearer {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request


def _checked_url(url: str, token: str) -> Any:
    """The parts of a URL.

    Raises:
      InputError: it is not one of a server, or the token would be sent over it in the open.
    """
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or parts.query or parts.fragment or not url.isascii() or " " in url:
        raise InputError(
            f"--dicomweb={url} is no URL of a server; write it as https://pacs.example/dicom-web."
        )
    if "@" in parts.netloc:
        raise InputError(
            f"--dicomweb has a password in it; put it into ~/.netrc, or a token into "
            f"{TOKEN_VARIABLE}."
        )
    if token and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise InputError(
            f"--dicomweb={url} would send {TOKEN_VARIABLE} unencrypted; use https, or unset it."
        )
    if not token.isascii() or not token.isprintable():
        raise InputError(
            f"{TOKEN_VARIABLE} is no token; set it to letters and digits, or unset it."
        )
    return parts


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _peer_errors() -> Iterator[None]:
    """Raises a PeerError, in a few words, for what requests and dicomweb-client raise."""
    try:
        yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            raise PeerError(
                f"it refused the credentials (HTTP status {code}); set {TOKEN_VARIABLE} or ~/.netrc"
            ) from error
        hint = "; check the URL" if code == 404 else ""
        raise PeerError(f"it answered with HTTP status {code}{hint}") from error
    except requests.exceptions.SSLError as error:
        raise ServerAway("its certificate cannot be verified") from error
    except requests.Timeout as error:
        raise ServerAway("it did not answer in time") from error
    # What dicomweb-client and pydicom raise on JSON of another form.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PeerError("it answered with something else than DICOM JSON") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise ServerAway("it cannot be reached, or ended the connection") from error


def _values(item: dict, tag: str) -> list:
    """An element's values in DICOM JSON (PS3.18, F.2)."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _text(item: dict, tag: str) -> str:
    return next((value for value in _values(item, tag) if isinstance(value, str)), "")


def _number(item: dict, tag: str) -> int | None:
    # Some servers write numbers as text.
    for value in _values(item, tag):
        if isinstance(value, int | str) and str(value).strip().isdecimal():
            return int(value)
    return None


def is_uid(text: str) -> bool:
    """Whether a text is a DICOM UID, which can be a part of a URL."""
    return 0 < len(text) <= 64 and text.isascii() and text.replace(".", "").isdecimal()
