"""Exceptions and payloads -> JSON bodies; every error has the shape {"error": {"message", "type", "param", "code"}}.

Shows no traceback and nothing of another request: an unforeseen exception is a bare 500 and a line in the log.
"""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from puna.errors import ChatError, PunaError, RequestError

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
    503: "overloaded_error",
}
CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
MAX_SHOWN = 80


class Refusal(Exception):
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


def overloaded(message: str) -> Refusal:
    """Build the 503 that asks the client to come back in a second."""
    return Refusal(503, message, code="overloaded", headers={"retry-after": "1"})


def encode_json(payload: Any) -> bytes:
    """Encode compactly as UTF-8; a lone surrogate, which a model can write as an escape, becomes a question mark."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def json_response(payload: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with a JSON body."""
    return Response(encode_json(payload), status, headers, media_type="application/json")


def as_refusal(error: Exception) -> Refusal:
    """Say what an exception means to the client."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, RequestError):
        return Refusal(400, str(error), param=error.param)
    if isinstance(error, ChatError):
        return Refusal(400, str(error), param="messages")
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, MemoryError):
        message = "The server's memory does not suffice for this request; ask for less at once."
        return Refusal(503, message, code="out_of_memory", headers={"retry-after": "1"})
    if isinstance(error, HTTPException):
        headers = dict(error.headers) if error.headers else None
        return Refusal(error.status_code, str(error.detail), headers=headers)
    return Refusal(500, "The server failed on this request; its log says why.", code="internal_error")


def add_error_handlers(app: FastAPI) -> None:
    """Give every exception that a route can raise an answer in our format."""

    async def answer(_: Request, error: Exception) -> Response:
        return as_refusal(error).response()

    for kind in (Refusal, PunaError, RequestValidationError, HTTPException, MemoryError, Exception):
        app.add_exception_handler(kind, answer)


def _invalid(error: RequestValidationError) -> Refusal:
    """Turn pydantic's findings into one: the deepest, for the shallower ones are other branches of a union."""
    findings = error.errors()
    if findings[0]["type"] == "json_invalid":
        reason, position = findings[0]["ctx"]["error"], findings[0]["loc"][-1]
        return Refusal(400, f"The body is not valid JSON: {reason} at character {position}.", code="invalid_json")
    places = [_place(finding["loc"][1:], error.body, finding["type"]) for finding in findings]
    deepest = max(places, key=lambda place: place.count(".") + place.count("["))
    finding = findings[places.index(deepest)]
    if finding["type"] == "refused":
        return Refusal(400, finding["msg"], param=finding["ctx"]["param"] or None)
    if not deepest:
        return Refusal(400, "The body is not a JSON object sent as application/json.")
    reasons = [found["msg"] for found, place in zip(findings, places, strict=True) if place == deepest]
    given = "" if finding["type"] == "missing" else f" (given: {_shown(finding['input'])})"
    return Refusal(400, f"{deepest}: {' or '.join(dict.fromkeys(reasons))}{given}", param=deepest)


def _place(location: Sequence[Any], body: Any, kind: str) -> str:
    """Spell a location as the client would, leaving out pydantic's names of union branches."""
    place = ""
    for index, part in enumerate(location):
        if isinstance(part, int) and isinstance(body, list) and part < len(body):
            place, body = f"{place}[{part}]", body[part]
        elif isinstance(body, dict) and part in body:
            place, body = f"{place}.{part}".lstrip("."), body[part]
        elif kind == "missing" and index == len(location) - 1:
            place = f"{place}.{part}".lstrip(".")
    return place


def _shown(value: Any) -> str:
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else type(value).__name__
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
