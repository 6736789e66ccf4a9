"""How the server answers: JSON, and one sentence where something is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response


class HttpError(Exception):
    """A request that is not granted.

    Attributes:
      status: of HTTP.
      sentence: what is wrong and what to do, without anything that the server alone may know.
      headers: of the answer, besides.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(status, sentence)
        self.status = status
        self.sentence = sentence
        self.headers = dict(headers or {})

    def response(self) -> Response:
        return json_response({"error": self.sentence}, self.status, self.headers)


def json_text(content: object) -> bytes:
    """JSON that no browser takes for a page: names of files may hold markup."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    # A name that is not UTF-8 reaches us with lone surrogates.
    return text.encode("utf-8", "backslashreplace")


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        json_text(content), status, headers=dict(headers or {}), media_type="application/json"
    )
