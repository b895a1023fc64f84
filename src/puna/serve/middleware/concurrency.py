"""Requests that are being answered -> Refusal (503) beyond a number; open routes are answered always."""

from starlette.types import ASGIApp, Receive, Scope, Send

from puna.serve.middleware.keys import OPEN_PATHS
from puna.serve.refusals import overloaded


class ConcurrencyMiddleware:
    """Counts the requests that it has handed on."""

    def __init__(self, app: ASGIApp, max_requests: int):
        self.app, self.max_requests = app, max_requests
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._num_requests >= self.max_requests and scope["path"] not in OPEN_PATHS:
            raise overloaded(f"The server is answering {self.max_requests} requests already.")
        self._num_requests += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._num_requests -= 1
