"""ASGI middleware around the app: access control, security headers, draining of uploads.

It wraps the app from outside, not by `add_middleware`, so that answers to unhandled errors pass
through it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from drenet_jax.serving.limits import Limits
from drenet_jax.serving.responses import HttpError, error_response

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

# Set on every answer that does not set its own.
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_TOKEN_PATHS = ("/api/", "/metrics")


def is_local(host: str) -> bool:
    """Whether `host` is a name or address of the loopback interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AuthMiddleware:
    """Checks token, host and origin; adds security headers; answers HEAD as GET.

    Starlette's TrustedHostMiddleware does not understand IPv6 hosts such as `[::1]:8000`.

    Args:
      app: the ASGI application.
      token: required by the API; empty for none.
      local_only: accept only hosts of the loopback interface, against DNS rebinding.
    """

    def __init__(self, app: ASGIApp, *, token: str, local_only: bool):
        self._app = app
        self._token = token.encode()
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app
        try:
            self._check(scope)
        except HttpError as error:
            app = error_response(error)
        if scope["method"] == "HEAD":
            # FastAPI has no HEAD for its routes; uvicorn leaves the body out.
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._local_only and not is_local(_host_name(host)):
            raise HttpError(403, "the server accepts only host names of its own machine.")
        if scope["method"] not in ("GET", "HEAD"):
            own_origins = (None, f"http://{host}", f"https://{host}")
            if headers.get("origin") not in own_origins or (
                headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
            ):
                raise HttpError(403, "the request comes from a page of another site.")
        if self._token and scope["path"].startswith(_TOKEN_PATHS):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(token.strip().encode(), self._token)
            if scheme.lower() != "bearer" or not is_right:
                raise HttpError(
                    401,
                    "the token is missing or wrong; send it as Authorization: Bearer TOKEN.",
                    {"WWW-Authenticate": "Bearer"},
                )


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class DrainMiddleware:
    """Reads and drops the rest of a refused upload before the answer ends.

    Otherwise the connection would be reset while the client sends, and the client would not see
    the answer.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits):
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        is_received = headers.get("content-length", "0") == "0"
        is_received = is_received and "transfer-encoding" not in headers

        async def tracked_receive() -> Message:
            nonlocal is_received
            message = await receive()
            is_received |= not message.get("more_body", False)  # also for http.disconnect
            return message

        async def drain() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.linger_seconds):
                    while not is_received:
                        await tracked_receive()

        async def checked_send(message: Message) -> None:
            # uvicorn has already answered a client that broke the protocol, and takes no more.
            with contextlib.suppress(h11.LocalProtocolError):
                await send(message)

        async def send_after_drain(message: Message) -> None:
            if not is_received and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            elif not is_received and not message.get("more_body", False):
                await checked_send({**message, "more_body": True})
                await drain()
                message = {"type": "http.response.body", "body": b""}
            await checked_send(message)

        await self._app(scope, tracked_receive, send_after_drain)
