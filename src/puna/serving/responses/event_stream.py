"""Payloads of a stream -> server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import logging
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from puna.serving.errors import HttpError, encode_json, to_http_error
from puna.serving.generation.batch import Batch
from puna.serving.responses.logprob_budget import LogprobReservation

logger = logging.getLogger("puna.serving")


class EventStream(StreamingResponse):
    """Response of server-sent events; a failure of the batch becomes an error event, and [DONE] ends every stream."""

    media_type = "text/event-stream"

    def __init__(self, payloads: AsyncIterator[dict[str, Any]], batch: Batch, reservation: LogprobReservation):
        super().__init__(_events(payloads), headers={"cache-control": "no-cache"})
        self._batch, self._reservation = batch, reservation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["is_event_stream"] = True  # protocol/http.py may send a comment between events
        # Whatever ends the response stops the generation, also a disconnect of the client.
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._batch.close()
            self._reservation.close()


async def _events(payloads: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for payload in payloads:
            yield b"data: " + encode_json(payload) + b"\n\n"
    except Exception as error:
        if not isinstance(error, HttpError):
            logger.exception("a stream failed")
        yield b"data: " + encode_json(to_http_error(error).body()) + b"\n\n"
    yield b"data: [DONE]\n\n"
