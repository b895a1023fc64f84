"""The answers of a server under test, held to its /openapi.json while the tests run."""

import json
from functools import cache
from typing import Any

import jsonschema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.serving.openapi.document import OPERATIONS, openapi_document

MAX_BYTES = 4 << 20
MAX_EVENTS = 100
DOCUMENT = openapi_document(is_strict=False)


@cache
def validator(model: str) -> jsonschema.Draft202012Validator:
    """Return what validates JSON as one of the models."""
    schema = {"$ref": f"#/components/schemas/{model}", "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(schema)


def problems(method: str, path: str, status: int, kind: str, body: bytes) -> list[str]:
    """Return how an answer differs from the document; answers of the chat page's files are not described."""
    path = "/v1/models/{model}" if path.startswith("/v1/models/") else path
    operation = OPERATIONS.get((method, path))
    place = f"{method} {path} {status}"
    if status >= 400 and status != 499:
        found = [] if operation is None or status in (405, *operation.errors) else [f"{place}: not in the document"]
        return found + _differences(place, "Error", body)
    if operation is None or status == 499:
        return []
    if kind.startswith("text/event-stream") and operation.event:
        *events, end = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line] or [b""]
        shown = [*events[:MAX_EVENTS], *events[MAX_EVENTS:][-2:]]
        found = [] if end == b"[DONE]" else [f"{place}: ends in {end[:80]!r}"]
        for event in shown:
            model = "Error" if event.startswith(b'{"error"') else operation.event.__name__
            found += _differences(place, model, event)
        return found
    if operation.answer is None:
        return [] if kind.startswith("text/plain") else [f"{place}: Content-Type {kind}"]
    if kind != "application/json":
        return [f"{place}: Content-Type {kind}"]
    return _differences(place, operation.answer.__name__, body)


def _differences(place: str, model: str, body: bytes) -> list[str]:
    if len(body) > MAX_BYTES:
        return []
    try:
        data = json.loads(body)
    except ValueError:
        return [f"{place}: no JSON: {body[:80]!r}"]
    return [f"{place}: {error.json_path}: {error.message}"[:300] for error in validator(model).iter_errors(data)]


class Recorder:
    """Middleware that keeps the answers of an application, to be checked when the server has stopped."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.answers: list[tuple[str, str, int, str, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start: dict[str, Any] = {}
        body = bytearray()
        is_whole = False

        async def record(message: Message) -> None:
            nonlocal is_whole
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))
                is_whole = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, record)
        finally:
            if is_whole and scope["method"] in ("GET", "POST"):
                headers = dict(start["headers"])
                kind = headers.get(b"content-type", b"").decode()
                self.answers.append((scope["method"], scope["path"], start["status"], kind, bytes(body)))

    def check(self) -> None:
        found = [problem for answer in self.answers for problem in problems(*answer)]
        assert not found, "\n".join(dict.fromkeys(found))
