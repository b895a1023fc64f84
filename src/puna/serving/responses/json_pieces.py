"""A JSON response -> pieces: encoding and sending a large response never blocks the event loop for long."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puna.serving.errors import encode_json
from puna.serving.responses.logprob_budget import LogprobReservation

PIECE_BYTES = 64 * 1024


class JsonList:
    """A list in a payload, stored as encoded JSON bytes.

    Example:
        >>> tokens = JsonList()
        >>> tokens.extend(["a"])
        >>> tokens.extend(["b", None])
        >>> b"".join(json_parts({"tokens": tokens}))
        b'{"tokens":["a","b",null]}'
    """

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def extend(self, items: Sequence[Any]) -> None:
        if items:
            self.parts.append(encode_json(items)[1:-1])


def json_pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join parts to pieces of about 64 KiB."""
    piece: list[bytes] = []
    num_bytes = 0
    for part in parts:
        piece.append(part)
        num_bytes += len(part)
        if num_bytes >= PIECE_BYTES:
            yield b"".join(piece)
            piece, num_bytes = [], 0
    if piece:
        yield b"".join(piece)


def json_parts(value: Any) -> Iterator[bytes]:
    """Encode a payload with JsonLists, without copies of the encoded bytes."""
    if isinstance(value, JsonList):
        for index, part in enumerate(value.parts):
            yield b"," if index else b"["
            yield part
        yield b"]" if value.parts else b"[]"
    elif isinstance(value, dict):
        for index, (name, item) in enumerate(value.items()):
            yield (b"," if index else b"{") + encode_json(name) + b":"
            yield from json_parts(item)
        yield b"}" if value else b"{}"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield b"," if index else b"["
            yield from json_parts(item)
        yield b"]" if value else b"[]"
    else:
        yield encode_json(value)


class JsonResponse(Response):
    """Response with a payload of plain JSON and JsonLists; other tasks run between two pieces."""

    media_type = "application/json"

    def __init__(self, payload: Any):
        super().__init__()
        try:
            self._parts = [encode_json(payload)]
        except TypeError:  # The payload holds a JsonList.
            self._parts = list(json_parts(payload))
        self.reservation: LogprobReservation | None = None  # closed after sending, or after a disconnect
        self.headers["content-length"] = str(sum(map(len, self._parts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            last = b""
            for piece in json_pieces(self._parts):
                if last:
                    await send({"type": "http.response.body", "body": last, "more_body": True})
                    await asyncio.sleep(0)
                last = piece
            await send({"type": "http.response.body", "body": last, "more_body": False})
        finally:
            if self.reservation:
                self.reservation.close()
