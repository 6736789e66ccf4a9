"""What can be seen of the node: its log, Prometheus metrics and a status page; no patient data."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from drenet_jax.html_templates import render
from drenet_jax.pacs.study_database import Study
from drenet_jax.pacs.study_queue import StudyQueue
from drenet_jax.version import __version__

_SHOWN_STUDIES = 100
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

_REGISTRY = CollectorRegistry()
ASSOCIATIONS = Counter(
    "drenet_node_associations",
    "Connections by what became of them: accepted, rejected, refused, failed, broken_off.",
    ["outcome"],
    registry=_REGISTRY,
)
INSTANCES = Counter(
    "drenet_node_instances",
    "Received instances by outcome: stored, refused.",
    ["outcome"],
    registry=_REGISTRY,
)
RESULTS = Counter(
    "drenet_node_results", "Studies by outcome: answered, parked.", ["outcome"], registry=_REGISTRY
)
DELIVERIES = Counter(
    "drenet_node_deliveries", "Tries to deliver: sent, failed.", ["outcome"], registry=_REGISTRY
)
DICOMWEB_LOOKS = Counter(
    "drenet_node_dicomweb_looks",
    "Looks at the DICOMweb server by outcome: done, failed.",
    ["outcome"],
    registry=_REGISTRY,
)
WORK_SECONDS = Histogram(
    "drenet_node_work_seconds",
    "Seconds to read and score a study.",
    buckets=(0.5, 1, 2.5, 5, 10, 25, 60, 120, 300),
    registry=_REGISTRY,
)
_STUDIES = Gauge("drenet_node_studies", "Studies by state.", ["state"], registry=_REGISTRY)
_SPOOL_BYTES = Gauge(
    "drenet_node_spool_bytes", "Of all kept instances and results.", registry=_REGISTRY
)


def make_app(queue: StudyQueue, is_alive: Callable[[], bool]) -> Starlette:
    """The status page `/`, `/healthz` and `/metrics`.

    Args:
      queue: whose studies are shown.
      is_alive: whether the node works.
    """

    def page(request: Request) -> HTMLResponse:
        text = render(
            "drenet_jax.pacs",
            "status.html.j2",
            counts=queue.database.counts(),
            studies=[_row(study) for study in queue.database.latest(_SHOWN_STUDIES)],
            spool_mib=queue.n_bytes / (1 << 20),
            version=__version__,
        )
        return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})

    def health(request: Request) -> JSONResponse:
        if is_alive():
            return JSONResponse({"status": "ok", "version": __version__})
        error = "a part of the node has ended; see its log."
        return JSONResponse({"error": error, "version": __version__}, 503)

    def metrics(request: Request) -> Response:
        for state, count in queue.database.counts().items():
            _STUDIES.labels(state).set(count)
        _SPOOL_BYTES.set(queue.n_bytes)
        return Response(generate_latest(_REGISTRY), headers={"Content-Type": _METRICS_TYPE})

    routes = [Route("/", page), Route("/healthz", health), Route("/metrics", metrics)]
    return Starlette(routes=routes)


def _row(study: Study) -> dict[str, object]:
    return {
        "name": study.name,
        "state": study.state,
        "reason": study.reason,
        "n_instances": study.n_instances,
        "expected": study.n_expected,
        "changed": _utc(study.changed_s),
        "since": _utc(study.state_since_s),
    }


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
