"""Figures of the server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From a picture to a series on a slow machine, in seconds.
_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of their own registry.

    Attributes:
      present: persons being sent, waiting, or in work.
    """

    def __init__(self):
        self._registry = CollectorRegistry()
        self.present = Gauge(
            "drenet_persons_present",
            "Persons being sent, waiting or in work.",
            registry=self._registry,
        )
        self._outcomes = Counter(
            "drenet_requests", "Uploads by how they ended.", ["outcome"], registry=self._registry
        )
        self._seconds = Histogram(
            "drenet_stage_seconds",
            "Seconds of work on a person, by stage.",
            ["stage"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._bytes = Counter(
            "drenet_upload_bytes", "Bytes of uploads that came whole.", registry=self._registry
        )

    def outcome(self, outcome: str) -> None:
        self._outcomes.labels(outcome).inc()

    def received(self, n_bytes: int) -> None:
        self._bytes.inc(n_bytes)

    def took(self, stage: str, seconds: float) -> None:
        self._seconds.labels(stage).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)
