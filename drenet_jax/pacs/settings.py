"""The settings of the node, and its peers."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Mapping
from typing import NamedTuple

from drenet_jax.errors import InputError

_LONGEST_AE_TITLE = 16


class Peer(NamedTuple):
    """A DICOM application entity elsewhere.

    Attributes:
      ae_title: its AE title.
      host: its address.
      port: where it listens; 0 of a peer that only sends.
    """

    ae_title: str
    host: str
    port: int = 0


@dataclasses.dataclass(frozen=True)
class NodeSettings:
    """The settings of the node; `configs/node.py` has the values, their units and reasons."""

    senders: str
    destination: str
    source: str
    storage_commitment: bool
    commitment_minutes: float
    quiet_seconds: float
    missing_minutes: float
    attempts: int
    work_seconds: float
    reader_mib: int
    retry_seconds: float
    retry_most_seconds: float
    retry_hours: float
    keep_hours: float
    spool_gib: float
    study_instances: int
    study_mib: int
    instance_mib: int
    associations: int
    pdu_kib: int
    network_seconds: float
    tls_certificate: str
    tls_key: str
    tls_authorities: str
    status_port: int
    dicomweb_poll_seconds: float
    dicomweb_backlog: bool
    dicomweb_body_parts: str
    dicomweb_seconds: float

    @classmethod
    def from_dict(cls, values: Mapping) -> NodeSettings:
        """The settings from a mapping with exactly these fields.

        Raises:
          InputError: a field is missing or unknown, a number is not above 0, or a peer is not
            written as it must be.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if set(values) != fields:
            raise InputError(
                "the config of the node has missing or unknown fields: "
                f"{', '.join(sorted(fields ^ set(values)))}; see configs/node.py."
            )
        for name, value in values.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and name != "status_port" and not value > 0:  # also refuses NaN
                raise InputError(f"--config.{name}={value} must be above 0.")
        if not 0 <= values["status_port"] <= 65535:
            raise InputError(f"--config.status_port={values['status_port']} is no port.")
        settings = cls(**values)
        if bool(settings.tls_certificate) != bool(settings.tls_key):
            raise InputError("--config.tls_certificate and --config.tls_key go together; set both.")
        if settings.tls_certificate and not settings.tls_authorities:
            raise InputError(
                "--config.tls_authorities is empty, so no certificate of a peer could be verified; "
                "name the PEM file of its authority."
            )
        if settings.storage_commitment and not settings.destination:
            raise InputError(
                "--config.storage_commitment needs a --config.destination to request it from."
            )
        # Each is parsed once here, so that mistakes end the node at its start.
        _ = settings.allowed_senders, settings.destination_peer, settings.source_peer
        return settings

    @property
    def allowed_senders(self) -> tuple[Peer, ...]:
        """Who may send; anybody if empty."""
        texts = filter(None, (text.strip() for text in self.senders.split(",")))
        return tuple(_peer(text, "senders", with_port=False) for text in texts)

    @property
    def destination_peer(self) -> Peer | None:
        return _peer(self.destination, "destination") if self.destination else None

    @property
    def source_peer(self) -> Peer | None:
        return _peer(self.source, "source") if self.source else None

    def retry_delay_s(self, n_failed: int) -> float:
        """How long to wait after a failed try, before which so many others failed."""
        # Beyond that a power of 2 would overflow.
        delay_s = self.retry_seconds * 2.0 ** min(n_failed, 30)
        return min(delay_s, self.retry_most_seconds)

    def server_tls(self) -> ssl.SSLContext | None:
        """The TLS context of the port: peers must show a certificate. None without TLS.

        Raises:
          InputError: a file cannot be read as what it should be.
        """
        return self._tls(ssl.PROTOCOL_TLS_SERVER)

    def client_tls(self) -> ssl.SSLContext | None:
        """The TLS context towards destination and source; raises as `server_tls`."""
        return self._tls(ssl.PROTOCOL_TLS_CLIENT)

    def _tls(self, protocol: int) -> ssl.SSLContext | None:
        if not self.tls_certificate:
            return None
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Certificates of modalities seldom name the address; the authority is the hospital's own.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.tls_certificate, self.tls_key)
            context.load_verify_locations(self.tls_authorities)
        except OSError as error:
            raise InputError(
                f"--config.tls_certificate={self.tls_certificate}, tls_key={self.tls_key} and "
                f"tls_authorities={self.tls_authorities} cannot be used for TLS ({error}); name "
                "PEM files that belong together."
            ) from error
        return context


def check_ae_title(ae_title: str, flag: str) -> None:
    """Refuses what DICOM does not allow as an AE title (PS3.5, VR AE).

    Raises:
      InputError: it is empty, too long, or has characters that it must not have.
    """
    if (
        not 0 < len(ae_title) <= _LONGEST_AE_TITLE
        or not ae_title.isascii()
        or not ae_title.isprintable()
        or "\\" in ae_title
        or ae_title != ae_title.strip()
    ):
        raise InputError(
            f"{flag}={ae_title} is no AE title; use up to {_LONGEST_AE_TITLE} letters and digits."
        )


def _peer(text: str, field: str, *, with_port: bool = True) -> Peer:
    """Parses "AET@host:port", or "AET@address"."""
    ae_title, at, place = text.partition("@")
    form = "AET@host:port" if with_port else "AET@address"
    host, port = place, "0"
    if with_port:
        host, _, port = place.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not at or not host or not port.isdecimal() or not (0 < int(port) < 65536) == with_port:
        raise InputError(f"--config.{field}: {text!r} is no peer; write it as {form}.")
    check_ae_title(ae_title, f"--config.{field}")
    return Peer(ae_title, host, int(port))
