"""The settings of `python -m drenet_jax.node`: peers, completion, delivery, retention, limits.

Used unless `--config` names another file; single fields are set as
`--config.destination=PACS@10.0.0.5:104`. The values are for one model on a hospital's workstation.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Who may send, as "AET@address" separated by commas: CT1@10.0.0.7,PACS@10.0.0.5. Any AE title
    # from any address if empty, which only a node on loopback may have.
    config.senders = ""

    # The peer that gets the results, as "AET@host:port". They stay in the spool if empty.
    config.destination = ""

    # The peer that is queried (C-FIND) for how many CT instances a study has, as "AET@host:port":
    # the archive that studies come from. A study is complete after `quiet_seconds` if empty.
    config.source = ""

    # Request storage commitment of the results from `destination`, which must know this node's
    # address and port for the answer.
    config.storage_commitment = False

    # Minutes after which a commitment without an answer is requested again.
    config.commitment_minutes = 10.0

    # Seconds without a new instance after which a study is complete. Archives send a study in
    # several associations, with pauses of some seconds.
    config.quiet_seconds = 30.0

    # Minutes for what is missing: a sender that broke off, or fewer instances than the source has.
    # The study is parked then, without a result.
    config.missing_minutes = 60.0

    # How often a study is read before it is parked, if the node ends each time.
    config.attempts = 5

    # Seconds for one study, without waiting.
    config.work_seconds = 300.0

    # Memory limit of the process that decodes files, in MiB. It needs about 1500 for a series of
    # slices.
    config.reader_mib = 6144

    # Seconds before a delivery is tried again, doubled each time up to `retry_most_seconds`.
    config.retry_seconds = 10.0
    config.retry_most_seconds = 600.0

    # Hours after which results that cannot be delivered are parked: a long weekend.
    config.retry_hours = 96.0

    # Hours for which the images and results of an answered or parked study are kept.
    config.keep_hours = 24.0

    # Disk space of the spool, in GiB. Further instances are refused (out of resources), and
    # senders repeat them.
    config.spool_gib = 50.0

    # Instances and MiB of one study: thin slices in several reconstructions have some thousands.
    config.study_instances = 5000
    config.study_mib = 4096

    # MiB of one instance: enhanced CT has all slices in one.
    config.instance_mib = 2048

    # Associations at once; more are rejected, and senders repeat them.
    config.associations = 20

    # The largest PDU that is received, in KiB; more is an error of the peer. Orthanc and DCMTK send
    # 16, large archives up to 256.
    config.pdu_kib = 256

    # Seconds in which a peer must send one whole PDU, an association request or a TLS handshake,
    # and for which an association may be idle.
    config.network_seconds = 30.0

    # TLS: PEM files of this node's certificate and key, and of the authorities whose certificates
    # peers must show, on the port and to the destination and the source. No TLS if empty.
    config.tls_certificate = ""
    config.tls_key = ""
    config.tls_authorities = ""

    # Port of the status page, /healthz and /metrics on loopback; 0 is any free one.
    config.status_port = 8081

    # Seconds between two looks at the DICOMweb server (--dicomweb).
    config.dicomweb_poll_seconds = 30.0

    # Also take studies that the DICOMweb server holds when it is first seen.
    config.dicomweb_backlog = False

    # Which series are fetched from the DICOMweb server: those with one of these words, in capitals,
    # in BodyPartExamined, or without that. Not HEART: cardiac CT shows a part of the lungs only.
    config.dicomweb_body_parts = "CHEST,THORA,TORA,LUNG,PULMO,BRUST,BODY"

    # Seconds for one answer of the DICOMweb server to begin or go on.
    config.dicomweb_seconds = 60.0

    return config
