"""Limit on request bodies: HttpError for a large (413) or slow (408) body."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.serving.errors import HttpError


class BodyLimitMiddleware:
    """Middleware: reads the whole body before the route runs."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float):
        self.app, self.max_bytes, self.seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._read(Headers(scope=scope), receive)
        if body is not None:
            await self.app(scope, _replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """Return the whole body; None after a disconnect."""
        too_large = HttpError(413, f"The body has more than {self.max_bytes:,} bytes.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.max_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self.max_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise HttpError(408, f"The body took longer than {self.seconds:g} seconds.") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return unread.pop() if unread else await receive()

    return replayed
