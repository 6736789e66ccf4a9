"""Who may come in, and what every answer says of itself: ASGI layers round the app."""

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
from drenet_jax.serving.responses import HttpError

# For what is no page: nothing of it may run or be framed.
DATA_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

_EVERY_ANSWER = {
    "Content-Security-Policy": DATA_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_NEED_TOKEN = ("/api/", "/metrics")


def is_local(host: str) -> bool:
    """Whether only programs of this machine reach this address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AuthMiddleware:
    """Lets in who knows the token, if there is one, and no page of another site."""

    def __init__(self, app: ASGIApp, *, token: str, local_only: bool):
        """Wraps the app.

        Args:
          app: the ASGI application.
          token: that the API asks for; empty if it asks for none.
          local_only: the server is reached under names of this machine only. Another name then
            means that a site has its name point here (DNS rebinding).
        """
        self._app = app
        self._token = token.encode()
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_head = scope["method"] == "HEAD"

        async def with_headers(message: Message) -> None:
            if is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _EVERY_ANSWER.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
        except HttpError as refused:
            await refused.response()(scope, receive, with_headers)
        else:
            # FastAPI answers HEAD to none of its own pages; what HEAD asks for are GET's headers.
            result = {**scope, "method": "GET"} if is_head else scope
            await self._app(result, receive, with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._local_only and not is_local(_host_name(host)):
            raise HttpError(403, "the server answers to names of its own machine only.")
        if scope["method"] not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if origin is not None and (urlsplit(origin).netloc or "null") != host:
                raise HttpError(403, "the request comes from a page of another site.")
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                raise HttpError(403, "the request comes from a page of another site.")
        if self._token and scope["path"].startswith(_NEED_TOKEN):
            kind, _, given = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(given.strip().encode(), self._token)
            if kind.lower() != "bearer" or not is_right:
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
    """Ends requests decently: the rest of a refused upload is dropped before the answer ends."""

    def __init__(self, app: ASGIApp, *, limits: Limits):
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_received = not _may_have_body(scope)
        is_broken = False

        async def counted_receive() -> Message:
            nonlocal is_received
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                is_received = True
            return message

        async def send_if_whole(message: Message) -> None:
            nonlocal is_broken
            # A client that breaks HTTP midway has its answer from uvicorn, which then takes no
            # other answer.
            try:
                if not is_broken:
                    await send(message)
            except h11.LocalProtocolError:
                is_broken = True

        async def drop_rest() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.linger_seconds):
                    while not is_received:
                        await counted_receive()

        async def send_after_drain(message: Message) -> None:
            if is_received:
                await send_if_whole(message)
            elif message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
                await send_if_whole(message)
            elif message.get("more_body", False):
                await send_if_whole(message)
            else:
                await send_if_whole({**message, "more_body": True})
                await drop_rest()
                await send_if_whole({"type": "http.response.body", "body": b""})

        await self._app(scope, counted_receive, send_after_drain)


def _may_have_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
