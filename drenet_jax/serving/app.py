"""The page and the API."""

from __future__ import annotations

import asyncio
import importlib.resources
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, Response

from drenet_jax.evaluation.report.person_report import REPORT_POLICY
from drenet_jax.html_templates import render
from drenet_jax.serving import jobs, uploads
from drenet_jax.serving.access_log import Log, where
from drenet_jax.serving.jobs import Job, Jobs
from drenet_jax.serving.limits import Limits
from drenet_jax.serving.middleware import PAGE_POLICY, AuthMiddleware, DrainMiddleware
from drenet_jax.serving.monitoring import CONTENT_TYPE, Metrics
from drenet_jax.serving.responses import HttpError, json_response
from drenet_jax.version import __version__

PACKAGE = "drenet_jax.serving"

# How HTTP says that nothing came of a job.
_STATUS = {jobs.REFUSED: 422, jobs.FAILED: 500, jobs.TIMED_OUT: 504}

# An iframe of another origin, so that a report's script reaches nothing, on its own tab, too.
_REPORT_HEADERS = {
    "Content-Security-Policy": f"{REPORT_POLICY}; frame-ancestors 'self'; sandbox allow-scripts",
    # A page that opens in a sandbox may not ask for a browsing group of its own.
    "Cross-Origin-Opener-Policy": "unsafe-none",
}

_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Ticket(BaseModel):
    """Where to ask for an answer."""

    id: str = Field(description="Of the job; who knows it may ask for the answer.")
    url: str = Field(description="URL of the job's state.")


class Status(BaseModel):
    """How far a job is."""

    id: str
    state: str = Field(
        description="waiting, reading, scoring, drawing; at the end done, refused (no chest CT), "
        "failed or timed_out."
    )
    before: int | None = Field(description="While it waits: how many persons are before it.")
    error: str | None = Field(description="One sentence, if it was refused, failed or timed out.")
    result: str | None = Field(description="Where the result is, once it is done.")
    report: str | None = Field(description="Where the report is, once it is done.")
    view: str | None = Field(
        description="Where a browser shows the report: a name that cannot be guessed, in place of "
        "the token."
    )


class Problem(BaseModel):
    """What is wrong."""

    error: str = Field(description="One sentence.")


_UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "One person's CT: a zip, a volume, or files of one folder, whose names may "
        "hold the folders before them.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [uploads.FIELD],
                    "properties": {
                        uploads.FIELD: {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            }
        },
    }
}

_PROBLEMS = {
    400: "The form is damaged or was cut off.",
    401: "The token is missing or wrong.",
    403: "The request comes from another site.",
    404: "There is no such job, or its answer is no longer kept.",
    408: "The upload comes too slowly.",
    409: "The job has not ended.",
    413: "Too many bytes, too many files, or a zip that unpacks to too much.",
    415: "The body is no multipart form.",
    422: "Invalid input: this is no chest CT.",
    429: "The server is busy; Retry-After says when to come again, in seconds.",
    500: "The server made a mistake.",
    503: "The server is ending, out of order or out of space.",
    504: "The work took too long.",
}


def _problems(*statuses: int) -> dict:
    """What else an operation answers, for the schema."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {
        status: {
            "description": _PROBLEMS[status],
            "content": {"application/json": {"schema": schema}},
        }
        for status in sorted((*statuses, 401, 403))
    }


def make_app(
    queue: Jobs,
    *,
    model: dict,
    folder: Path,
    limits: Limits,
    metrics: Metrics,
    log: Log,
    token: str,
    local_only: bool,
) -> Callable:
    """The ASGI application.

    Args:
      queue: does the work.
      model: what `result.json` says of the model.
      folder: for uploads; each has a folder of its own in it, which goes with its answer.
      limits: what the visitors may cost.
      metrics: counters that are updated.
      log: gets a line for each upload that never became a job.
      token: that the API asks for; empty if it asks for none.
      local_only: the server is reached under names of this machine only.
    """
    app = FastAPI(
        title="drenet_jax",
        version=__version__,
        description="A person's diagnosis from a chest CT, with the slices that show why. For "
        "research only, not for clinical use.",
        # FastAPI's own pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    static = _static_files()
    page = render(
        PACKAGE,
        "page.html.j2",
        limits=limits,
        model=model,
        needs_token=bool(token),
        version=__version__,
    )

    async def received(request: Request) -> Job:
        """The upload as a job that waits; a place is taken before its body is read."""
        start_s = time.monotonic()
        queue.acquire_slot()
        try:
            own = Path(tempfile.mkdtemp(dir=folder))
        except OSError:
            queue.give_place_back()
            raise
        try:
            upload = await uploads.receive(request, own, limits)
        except BaseException as error:
            try:
                await asyncio.to_thread(shutil.rmtree, own, ignore_errors=True)
            finally:
                # After its files: the next upload may need their disk space.
                queue.give_place_back()
            outcome = f"refused_{error.status}" if isinstance(error, HttpError) else "broken_off"
            metrics.outcome(outcome)
            log.request(own.name[-8:], outcome, time.monotonic() - start_s)
            raise
        metrics.received(upload.n_bytes)
        metrics.took("sending", time.monotonic() - start_s)
        job = Job(own, upload)
        queue.submit(job)
        return job

    @app.post(
        "/api/jobs",
        status_code=202,
        response_model=Ticket,
        summary="Sends a person's CT",
        responses=_problems(400, 408, 413, 415, 429, 503),
        openapi_extra=_UPLOAD,
        response_description="The upload is here, and waits.",
    )
    async def post_job(request: Request) -> Response:
        job = await received(request)
        url = f"/api/jobs/{job.id}"
        return json_response({"id": job.id, "url": url}, 202, {"Location": url})

    @app.get(
        "/api/jobs/{id}",
        response_model=Status,
        summary="Says how far a job is",
        response_description="The job's state.",
        responses=_problems(404),
    )
    async def get_job(id: str) -> Response:
        job = queue.find(id)
        is_done = job.state == jobs.DONE
        return json_response(
            {
                "id": job.id,
                "state": job.state,
                "before": queue.place_of(job),
                "error": job.error or None,
                "result": f"/api/jobs/{job.id}/result" if is_done else None,
                "report": f"/api/jobs/{job.id}/report" if is_done else None,
                "view": f"/reports/{job.view}" if is_done else None,
            }
        )

    @app.delete(
        "/api/jobs/{id}",
        status_code=204,
        summary="Gives a job up, or has its answer forgotten",
        response_description="It is forgotten.",
        responses=_problems(404),
    )
    async def delete_job(id: str) -> Response:
        await asyncio.to_thread(queue.forget, queue.find(id))
        return Response(status_code=204)

    @app.get(
        "/api/jobs/{id}/result",
        summary="Gives the result",
        response_description="What predict writes to result.json.",
        response_model=dict,
        responses=_problems(404, 409, 422, 500, 504),
    )
    async def get_result(id: str) -> Response:
        return Response(_ended(queue.find(id)).result, media_type="application/json")

    @app.get(
        "/api/jobs/{id}/report",
        summary="Gives the report",
        response_description="What predict writes to report.html.",
        response_class=HTMLResponse,
        responses=_problems(404, 409, 422, 500, 504),
    )
    async def get_report(id: str) -> Response:
        return HTMLResponse(_ended(queue.find(id)).report, headers=_REPORT_HEADERS)

    @app.post(
        "/api/predict",
        response_model=dict,
        summary="Sends a person's CT and waits for the result",
        response_description="What predict writes to result.json.",
        responses=_problems(400, 408, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=_UPLOAD,
    )
    async def predict(request: Request) -> Response:
        job = await received(request)
        await _ended_or_left(request, job, queue)
        try:
            return Response(_ended(job).result, media_type="application/json")
        finally:
            # It has its answer; no other client knows the job.
            queue.forget(job)

    @app.get(
        "/api/status",
        response_model=dict,
        summary="Says how busy the server is",
        responses=_problems(),
    )
    async def get_status() -> Response:
        return json_response({"places": limits.places, "present": queue.n_present})

    @app.get(
        "/healthz",
        response_model=dict,
        summary="Says whether the server works",
        response_description="It does.",
        responses={503: {"model": Problem, "description": "It is ending or out of order."}},
    )
    async def healthz() -> Response:
        facts = {"model": model["name"], "step": model["step"], "version": __version__}
        if not queue.is_alive:
            return json_response({"error": "the server is ending or out of order.", **facts}, 503)
        return json_response({"status": "ok", **facts})

    @app.get(
        "/metrics",
        summary="Gives figures for Prometheus",
        response_description="Uploads by outcome, seconds by stage, persons present, bytes.",
        response_class=Response,
        responses=_problems(),
    )
    async def get_metrics() -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/reports/{view}", include_in_schema=False)
    async def view_report(view: str) -> Response:
        return HTMLResponse(queue.seen(view).report, headers=_REPORT_HEADERS)

    @app.get("/", include_in_schema=False)
    async def get_page() -> Response:
        return _page(page)

    @app.get("/docs", include_in_schema=False)
    async def get_docs(request: Request) -> Response:
        return _page(render(PACKAGE, "docs.html.j2", schema=app.openapi()))

    @app.get("/static/{name}", include_in_schema=False)
    async def get_static(name: str) -> Response:
        if name not in static:
            raise HttpError(404, "there is no such file.")
        return static[name]

    @app.exception_handler(HttpError)
    async def tell_refusal(request: Request, error: HttpError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def tell_http(request: Request, error: HTTPException) -> Response:
        sentence = {404: "there is no such page.", 405: "this page takes other methods."}
        result = sentence.get(error.status_code, "the request cannot be answered.")
        return HttpError(error.status_code, result, error.headers).response()

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)

    @app.exception_handler(Exception)
    async def tell_mistake(request: Request, error: Exception) -> Response:
        log.mistake(where(error))
        return HttpError(500, "the server made a mistake; its log says where.").response()

    return DrainMiddleware(AuthMiddleware(app, token=token, local_only=local_only), limits=limits)


def _ended(job: Job) -> Job:
    """The job if it is done.

    Raises:
      Refused: it is not, or ended otherwise.
    """
    if job.state not in jobs.ENDED:
        raise HttpError(409, f"the job has not ended: it is {job.state}.")
    if job.error == jobs.STOPPED:
        raise HttpError(503, job.error)
    if job.state != jobs.DONE:
        raise HttpError(_STATUS[job.state], job.error)
    return job


async def _ended_or_left(request: Request, job: Job, queue: Jobs) -> None:
    """Waits for the job's end; gives it up if the visitor goes."""
    # Shielded: the job's own future is the worker's to end.
    ended = asyncio.shield(asyncio.wrap_future(job.ended))
    left = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((ended, left), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            queue.forget(job)
            raise ClientDisconnect
    finally:
        left.cancel()
        ended.cancel()


def _page(text: str) -> Response:
    return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY})


def _static_files() -> dict[str, Response]:
    folder = importlib.resources.files(PACKAGE) / "static"
    return {
        file.name: Response(file.read_bytes(), media_type=_MEDIA_TYPES[Path(file.name).suffix])
        for file in folder.iterdir()
    }
