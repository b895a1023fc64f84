"""Exceptions -> HTTP error responses in OpenAI's layout: {"error": {"message", "type", "param", "code"}}.

Unforeseen exceptions become a 500 without details; the log has the traceback.
"""

import json
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from puna.pipeline.errors import ChatError, PunaError, RequestError

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
    503: "overloaded_error",
}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class HttpError(Exception):
    """An error response: HTTP status, message, field `param` and code.

    Example:
        >>> HttpError(404, "There is no such model.", param="model").body()["error"]["code"]
        'not_found'
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict[str, Any]:
        """Return the error body, for a response or an error event of a stream."""
        kind = ERROR_TYPES.get(self.status, "invalid_request_error")
        code = self.code or CODES.get(self.status)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}

    def response(self) -> Response:
        """Return the HTTP response."""
        return json_response(self.body(), status=self.status, headers=self.headers)


def overloaded(message: str) -> HttpError:
    """Return a 503 with a Retry-After of one second."""
    return HttpError(503, message, code="overloaded", headers={"retry-after": "1"})


def encode_json(payload: Any) -> bytes:
    """Encode compactly as UTF-8; lone surrogates, possible in generated JSON escapes, become question marks."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def json_response(payload: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    return Response(encode_json(payload), status, headers, media_type="application/json")


def to_http_error(error: Exception) -> HttpError:
    """Return the error response for an exception; subclasses of RequestError and ChatError are client errors (400)."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestError):
        return HttpError(400, str(error), param=error.param)
    if isinstance(error, ChatError):
        return HttpError(400, str(error), param="messages")
    if isinstance(error, MemoryError):
        message = "The server's memory does not suffice for this request; ask for less at once."
        return HttpError(503, message, code="out_of_memory", headers={"retry-after": "1"})
    if isinstance(error, HTTPException):
        headers = dict(error.headers) if error.headers else None
        return HttpError(error.status_code, str(error.detail), headers=headers)
    return HttpError(500, "The server failed on this request; its log says why.", code="internal_error")


def add_error_handlers(app: FastAPI) -> None:
    """Register error responses for every exception of a route."""

    async def answer(_: Request, error: Exception) -> Response:
        return to_http_error(error).response()

    for kind in (HttpError, PunaError, HTTPException, MemoryError, Exception):
        app.add_exception_handler(kind, answer)
