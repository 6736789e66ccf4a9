"""Prometheus metrics; they contain no file names, tags or paths of a request."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from drenet_jax.private_log import logger

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Without the defaults of prometheus_client, which describe the process.
_REGISTRY = CollectorRegistry()
IN_FLIGHT = Gauge(
    "drenet_persons_present",
    "In-flight requests: uploading, waiting or in work.",
    registry=_REGISTRY,
)
OUTCOMES = Counter("drenet_requests", "Uploads by outcome.", ["outcome"], registry=_REGISTRY)
STAGE_SECONDS = Histogram(
    "drenet_stage_seconds",
    "Seconds per patient, by stage.",
    ["stage"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120),
    registry=_REGISTRY,
)
UPLOAD_BYTES = Counter("drenet_upload_bytes", "Bytes of complete uploads.", registry=_REGISTRY)


def metrics_text() -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(_REGISTRY)


def record_outcome(
    id: str, outcome: str, seconds: float, *, n_files: int = 0, n_bytes: int = 0
) -> None:
    """Counts and logs how an upload ended.

    Args:
      id: of the job. Only its beginning is logged: whoever knows all of it may fetch the answer.
      outcome: one word.
      seconds: since the request arrived.
      n_files: received.
      n_bytes: received.
    """
    OUTCOMES.labels(outcome).inc()
    logger.info("%.8s %s %.2f s, %d files, %d bytes", id, outcome, seconds, n_files, n_bytes)
