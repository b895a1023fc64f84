"""HttpError or MemoryError of an inner middleware -> error response; the rest of the request body is discarded."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.serving.errors import HttpError, to_http_error

DRAIN_SECONDS = 2.0


class ErrorsMiddleware:
    """Outermost middleware: sends error responses of inner middlewares; closes websockets."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        body = _Body(receive, is_asked_for=b"expect" not in dict(scope["headers"]))
        try:
            await self.app(scope, body.receive, send)
        except (HttpError, MemoryError) as error:
            await to_http_error(error).response()(scope, receive, _unfinished(send))
            await body.discard()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """Request body with a flag for the end."""

    def __init__(self, receive: Receive, *, is_asked_for: bool):
        self._receive = receive
        self._is_whole = not is_asked_for

    async def receive(self) -> Message:
        """Return the next message. With Expect: 100-continue, the first call asks the client for the body."""
        message = await self._receive()
        self._is_whole = not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read the rest of the body: closing the socket at once can lose the error response."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._is_whole:
                    await self.receive()


def _unfinished(send: Send) -> Send:
    async def sent(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    return sent
