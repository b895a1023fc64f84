"""Warnings about an accepted request -> the response header X-Puna-Warning, and lines in the log.

A warning names fields, never values: header and log hold no content of a request.
"""

import logging
import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Puna-Warning"
MAX_CHARS = 1000
# The log repeats a warning after an hour, and holds so many different ones an hour.
LOG_SECONDS = 3600.0
MAX_LOGGED = 100

logger = logging.getLogger("uvicorn.error")


def warn(request: Request, text: str) -> None:
    """Add a warning to the response; only before the response starts.

    Example:
        >>> request = Request({"type": "http", "state": {"warnings": {}}})
        >>> warn(request, "verbosity has no effect")
        >>> header_value(request.state.warnings)
        b'verbosity has no effect'
    """
    request.state.warnings[text] = None


def header_value(warnings: dict[str, None]) -> bytes:
    """Join warnings to one line of at most MAX_CHARS printable ASCII characters."""
    value = ""
    for index, text in enumerate(warnings):
        line = "".join(char if char.isascii() and char.isprintable() else "?" for char in text)
        longer = f"{value}; {line}" if value else line
        rest = f"; and {len(warnings) - index} more"
        if len(longer) + len(rest) > MAX_CHARS:
            return (value + rest).removeprefix("; ").encode()
        value = longer
    return value.encode()


class WarningsMiddleware:
    """Collects the warnings of a request and writes the header."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self._logged: set[str] = set()
        self._since = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        warnings: dict[str, None] = {}
        scope.setdefault("state", {})["warnings"] = warnings

        async def send_with_warnings(message: Message) -> None:
            if message["type"] == "http.response.start" and warnings:
                self._log(warnings)
                header = (HEADER.lower().encode(), header_value(warnings))
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        return await self.app(scope, receive, send_with_warnings)

    def _log(self, warnings: dict[str, None]) -> None:
        if time.monotonic() - self._since > LOG_SECONDS:
            self._logged, self._since = set(), time.monotonic()
        for text in warnings:
            if text not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add(text)
                logger.warning("A request was accepted with a warning: %s", header_value({text: None}).decode())
