"""The web page and the JSON API: FastAPI routes."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from drenet_jax.evaluation.person_report import REPORT_POLICY
from drenet_jax.html_templates import render
from drenet_jax.private_log import log_error
from drenet_jax.serving import jobs, monitoring, uploads
from drenet_jax.serving.jobs import Job, Jobs
from drenet_jax.serving.limits import Limits
from drenet_jax.serving.middleware import PAGE_POLICY, AuthMiddleware, DrainMiddleware
from drenet_jax.serving.responses import HttpError, SafeJSONResponse, error_response
from drenet_jax.version import __version__

PACKAGE = "drenet_jax.serving"

# The HTTP status of a job that ended without an answer.
_HTTP_STATUS = {jobs.REFUSED: 422, jobs.FAILED: 500, jobs.TIMED_OUT: 504}

# Sandboxed, so that a report's script reaches neither the page nor the server.
_REPORT_HEADERS = {
    "Content-Security-Policy": f"{REPORT_POLICY}; frame-ancestors 'self'; sandbox allow-scripts",
    # A sandboxed page must not request a browsing context group of its own.
    "Cross-Origin-Opener-Policy": "unsafe-none",
}


class Ticket(BaseModel):
    """Where the answer will be."""

    id: str = Field(description="Of the job; whoever knows it may fetch the answer.")
    url: str = Field(description="Where the job's state is.")


class Status(BaseModel):
    """The state of a job."""

    id: str
    state: str = Field(
        description="waiting, reading, scoring, drawing; at the end done, refused (no chest CT), "
        "failed or timed_out."
    )
    before: int | None = Field(description="While it waits: the number of jobs before it.")
    error: str | None = Field(description="One sentence, if it was refused, failed or timed out.")
    result: str | None = Field(description="Where the result is, once it is done.")
    report: str | None = Field(description="Where the report is, once it is done.")
    view: str | None = Field(
        description="Where a browser shows the report: a name that cannot be guessed, in place of "
        "the token."
    )


class Problem(BaseModel):
    """What went wrong."""

    error: str = Field(description="One sentence.")


class UploadForm(BaseModel):
    """The CT of one patient: a zip, a volume, or files whose names may include subfolders."""

    files: list[bytes]


_FORM = {
    "requestBody": {
        "description": UploadForm.__doc__,
        "content": {"multipart/form-data": {"schema": UploadForm.model_json_schema()}},
        "required": True,
    }
}

router = APIRouter(
    default_response_class=SafeJSONResponse,
    responses={"default": {"model": Problem, "description": "An error."}},
)


async def _jobs(request: Request) -> Jobs:
    return request.app.state.jobs


JobQueue = Annotated[Jobs, Depends(_jobs)]


async def _find_job(id: str, queue: JobQueue) -> Job:
    return queue.find(id)


RequestedJob = Annotated[Job, Depends(_find_job)]


async def _receive_job(request: Request, queue: JobQueue) -> Job:
    """Receives and queues the upload; the slot is acquired before the body is read."""
    start_s = time.monotonic()
    queue.acquire_slot()
    folder = request.app.state.uploads / secrets.token_hex(16)
    try:
        upload = await uploads.receive(request, folder, request.app.state.limits)
    except BaseException as error:
        try:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        finally:
            # Only now: the next upload in this slot may fill the disk space of the files.
            queue.release_slot()
        outcome = "broken_off"
        if isinstance(error, HttpError):
            outcome = f"refused_{error.status_code}"
        monitoring.record_outcome(folder.name, outcome, time.monotonic() - start_s)
        raise
    monitoring.UPLOAD_BYTES.inc(upload.n_bytes)
    monitoring.STAGE_SECONDS.labels("sending").observe(time.monotonic() - start_s)
    job = Job(folder, upload)
    queue.submit(job)
    return job


UploadedJob = Annotated[Job, Depends(_receive_job)]


def _require_done(job: RequestedJob) -> Job:
    """The job if it is done; HttpError if it has not ended, or ended without an answer."""
    if job.state not in jobs.ENDED:
        raise HttpError(409, f"the job has not ended: it is {job.state}.")
    if job.state != jobs.DONE:
        status = 503 if job.error == jobs.STOPPED else _HTTP_STATUS[job.state]
        raise HttpError(status, job.error)
    return job


DoneJob = Annotated[Job, Depends(_require_done)]


@router.post("/api/jobs", status_code=202, openapi_extra=_FORM)
async def post_job(job: UploadedJob, response: Response) -> Ticket:
    """Queues the CT of a patient."""
    url = f"/api/jobs/{job.id}"
    response.headers["Location"] = url
    return Ticket(id=job.id, url=url)


@router.get("/api/jobs/{id}")
async def get_job(job: RequestedJob, queue: JobQueue) -> Status:
    """Returns the state of a job."""
    is_done = job.state == jobs.DONE
    return Status(
        id=job.id,
        state=job.state,
        before=queue.n_before(job),
        error=job.error or None,
        result=f"/api/jobs/{job.id}/result" if is_done else None,
        report=f"/api/jobs/{job.id}/report" if is_done else None,
        view=f"/reports/{job.view}" if is_done else None,
    )


@router.delete("/api/jobs/{id}", status_code=204)
async def delete_job(job: RequestedJob, queue: JobQueue) -> None:
    """Cancels a job, or removes its answer."""
    await asyncio.to_thread(queue.remove, job)


@router.get("/api/jobs/{id}/result", response_model=dict)
async def get_result(job: DoneJob) -> Response:
    """Returns the result, as predict writes it to result.json."""
    return Response(job.result, media_type="application/json")


@router.get("/api/jobs/{id}/report", response_class=HTMLResponse)
async def get_report(job: DoneJob) -> HTMLResponse:
    """Returns the report, as predict writes it to report.html."""
    return HTMLResponse(job.report, headers=_REPORT_HEADERS)


@router.post("/api/predict", response_model=dict, openapi_extra=_FORM)
async def predict(request: Request, job: UploadedJob, queue: JobQueue) -> Response:
    """Queues the CT of a patient and waits for the result, as predict writes it to result.json."""
    # Shielded: only the worker may end the job's future.
    ended = asyncio.shield(asyncio.wrap_future(job.ended))
    disconnected = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((ended, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            raise ClientDisconnect
        return Response(_require_done(job).result, media_type="application/json")
    finally:
        disconnected.cancel()
        ended.cancel()
        # Nobody else knows the job.
        queue.remove(job)


@router.get("/api/status")
async def get_status(request: Request, queue: JobQueue) -> dict:
    """Returns how busy the server is."""
    return {"places": request.app.state.limits.places, "present": queue.n_in_flight}


@router.get("/healthz", response_model=dict)
async def healthz(request: Request, queue: JobQueue) -> Response:
    """Returns whether the server works; 503 if it is stopping or out of order."""
    model = request.app.state.model
    facts = {"model": model["name"], "step": model["step"], "version": __version__}
    if not queue.is_alive:
        error = "the server is stopping or out of order."
        return SafeJSONResponse({"error": error, **facts}, 503)
    return SafeJSONResponse({"status": "ok", **facts})


@router.get("/metrics", response_class=Response)
async def get_metrics() -> Response:
    """Returns uploads by outcome, seconds by stage, in-flight requests and bytes for Prometheus."""
    return Response(monitoring.metrics_text(), headers={"Content-Type": monitoring.CONTENT_TYPE})


@router.get("/reports/{view}", include_in_schema=False)
async def view_report(view: str, queue: JobQueue) -> HTMLResponse:
    return HTMLResponse(queue.find_view(view).report, headers=_REPORT_HEADERS)


@router.get("/", include_in_schema=False)
async def get_page(request: Request) -> HTMLResponse:
    state = request.app.state
    return _page("page.html.j2", limits=state.limits, model=state.model, version=__version__)


@router.get("/docs", include_in_schema=False)
async def get_docs(request: Request) -> HTMLResponse:
    return _page("docs.html.j2", schema=request.app.openapi())


def _page(template: str, **values: object) -> HTMLResponse:
    text = render(PACKAGE, template, **values)
    return HTMLResponse(text, headers={"Content-Security-Policy": PAGE_POLICY})


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    return error_response(error)


async def _on_disconnect(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)


async def _on_internal_error(request: Request, error: Exception) -> Response:
    log_error(error)
    return error_response(HttpError(500, "internal server error; see the server's log."))


def make_app(
    queue: Jobs, *, model: dict, folder: Path, limits: Limits, token: str, local_only: bool
) -> ASGIApp:
    """The ASGI application.

    Args:
      queue: does the work.
      model: what `result.json` says of the model.
      folder: for uploads; each gets a subfolder, which is removed with the answer.
      limits: of the requests.
      token: required by the API; empty for none.
      local_only: accept only host names of this machine.
    """
    app = FastAPI(
        title="drenet_jax",
        version=__version__,
        description="Diagnoses a patient from a chest CT and shows the relevant slices. For "
        "research only, not for clinical use.",
        # FastAPI's own pages load scripts from another server.
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_internal_error,
        },
    )
    app.state.jobs, app.state.limits = queue, limits
    app.state.model, app.state.uploads = model, folder
    app.include_router(router)
    app.mount("/static", StaticFiles(packages=[(PACKAGE, "static")]))
    return DrainMiddleware(AuthMiddleware(app, token=token, local_only=local_only), limits=limits)
