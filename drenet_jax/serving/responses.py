"""JSON responses and HTTP errors."""

from __future__ import annotations

import json

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse


class SafeJSONResponse(JSONResponse):
    """JSON that no browser can take for HTML: file names may contain markup."""

    def render(self, content: object) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        for sign in "<>&":
            text = text.replace(sign, f"\\u{ord(sign):04x}")
        # A file name that is not UTF-8 has lone surrogates.
        return text.encode("utf-8", "backslashreplace")


class HttpError(HTTPException):
    """A refused request; `detail` is one sentence for the client."""


def error_response(error: HTTPException) -> SafeJSONResponse:
    """The response to a refused request, `{"error": sentence}`."""
    sentence = error.detail
    if not isinstance(error, HttpError):  # raised by the framework
        sentences = {404: "there is no such page.", 405: "this page does not allow this method."}
        sentence = sentences.get(error.status_code, "the request cannot be answered.")
    return SafeJSONResponse({"error": sentence}, error.status_code, headers=error.headers)
