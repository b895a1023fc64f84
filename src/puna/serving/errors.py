"""Exceptions and payloads -> JSON bodies; every error has the shape {"error": {"message", "type", "param", "code"}}.

Shows no traceback and nothing of another request: an unforeseen exception is a bare 500 and a line in the log.
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
    """An answer other than 200: its status and what the error body says."""

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
        """Return the error body, which is also what an error event in a stream carries."""
        kind = ERROR_TYPES.get(self.status, "invalid_request_error")
        code = self.code or CODES.get(self.status)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}

    def response(self) -> Response:
        """Return the whole HTTP response."""
        return json_response(self.body(), status=self.status, headers=self.headers)


def overloaded(message: str) -> HttpError:
    """Build the 503 that asks the client to come back in a second."""
    return HttpError(503, message, code="overloaded", headers={"retry-after": "1"})


def encode_json(payload: Any) -> bytes:
    """Encode compactly as UTF-8; a lone surrogate, which a model can write as an escape, becomes a question mark."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def json_response(payload: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with a JSON body."""
    return Response(encode_json(payload), status, headers, media_type="application/json")


def to_http_error(error: Exception) -> HttpError:
    """Say what an exception means to the client."""
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
    """Give every exception that a route can raise an answer in our format."""

    async def answer(_: Request, error: Exception) -> Response:
        return to_http_error(error).response()

    for kind in (HttpError, PunaError, HTTPException, MemoryError, Exception):
        app.add_exception_handler(kind, answer)
