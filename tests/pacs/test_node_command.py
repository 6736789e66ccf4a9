"""What `python -m drenet_jax.node` refuses before it starts."""

from __future__ import annotations

import importlib
import socket

import pytest

from drenet_jax.errors import InputError
from drenet_jax.pacs.settings import NodeSettings, Peer


def _settings(**changes: object) -> NodeSettings:
    config = importlib.import_module("drenet_jax.configs.node").get_config()
    return NodeSettings.from_dict({**config.to_dict(), **changes})


def test_peers():
    settings = _settings(
        senders="CT 1@10.0.0.7, PACS@::1", destination="A@host.local:104", source="B@[::1]:11112"
    )

    assert settings.allowed_senders == (Peer("CT 1", "10.0.0.7"), Peer("PACS", "::1"))
    assert settings.destination_peer == Peer("A", "host.local", 104)
    assert settings.source_peer == Peer("B", "::1", 11112)
    assert _settings().allowed_senders == ()
    assert _settings().destination_peer is None


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("senders", "CT1", "no peer"),
        ("senders", "@10.0.0.7", "no AE title"),
        ("senders", "CT1@", "no peer"),
        ("destination", "PACS@host", "no peer"),
        ("destination", "PACS@host:0", "no peer"),
        ("destination", "PACS@host:70000", "no peer"),
        ("destination", "A_TITLE_OF_17_CHA@host:104", "no AE title"),
        ("source", "PÄCS@host:104", "no AE title"),
        ("quiet_seconds", 0.0, "must be above 0"),
        ("keep_hours", float("nan"), "must be above 0"),
        ("status_port", 70000, "no port"),
        ("tls_certificate", "cert.pem", "go together"),
        ("storage_commitment", True, "needs a --config.destination"),
    ],
)
def test_settings_that_are_refused(field, value, sentence):
    with pytest.raises(InputError, match=sentence):
        _settings(**{field: value})


def test_tls_files_must_fit(tmp_path):
    (tmp_path / "no.pem").write_text("nothing")
    name = str(tmp_path / "no.pem")
    settings = _settings(tls_certificate=name, tls_key=name, tls_authorities=name)

    with pytest.raises(InputError, match="cannot be used for TLS"):
        settings.server_tls()


def _refusal(command, *flags: str) -> str:
    process = command("node", *flags)
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("\n") == 1
    return process.stderr


def test_a_node_that_others_can_reach_needs_a_list_of_senders(command, tmp_path):
    flags = ("--workdir=nowhere", f"--spool={tmp_path / 'spool'}", "--host=0.0.0.0")

    assert "list who may send in --config.senders" in _refusal(command, *flags)
    assert not (tmp_path / "spool").exists()


def test_a_workdir_without_a_run(command, tmp_path):
    refusal = _refusal(command, f"--workdir={tmp_path}/none", f"--spool={tmp_path / 'spool'}")

    assert f"{tmp_path}/none" in refusal
    assert not (tmp_path / "spool").exists()


def test_a_taken_port(command, trained, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = (f"--workdir={trained}", f"--spool={tmp_path / 'spool'}")
        listening = _refusal(command, *flags, f"--port={port}", "--config.status_port=0")
        page = _refusal(command, *flags, "--port=0", f"--config.status_port={port}")

    assert f"--port={port}" in listening
    assert f"--config.status_port={port} is taken" in page


def test_two_nodes_of_one_spool(command, trained, tmp_path):
    from drenet_jax.output_files import locked_folder

    with locked_folder(tmp_path / "spool", name="lock", use="used", flag="--spool"):
        refusal = _refusal(command, f"--workdir={trained}", f"--spool={tmp_path / 'spool'}")

    assert "is being used in by another process" in refusal
