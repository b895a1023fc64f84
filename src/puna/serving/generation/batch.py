"""Chunks of all continuations of an HTTP request, in order of arrival."""

import asyncio
from collections.abc import AsyncIterator, Callable

from puna.inference.engine.outputs import Chunk
from puna.pipeline.errors import RequestError
from puna.serving.errors import HttpError, overloaded


class Batch:
    """Continuations of an HTTP request: iterate over (index, chunk), then `close`. Example: see `EngineClient`."""

    def __init__(self, size: int, abort: Callable[["Batch"], None]):
        self._open = set(range(size))
        self._arrived: asyncio.Queue[tuple[int, Chunk] | HttpError] = asyncio.Queue()
        self._abort = abort

    def add(self, index: int, chunk: Chunk) -> None:
        """Append a chunk of one continuation."""
        self._arrived.put_nowait((index, chunk))

    def fail(self, refusal: HttpError) -> None:
        """End all continuations with an error."""
        self._arrived.put_nowait(refusal)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Yield chunks until every continuation has ended; raise HttpError for a failed continuation."""
        while self._open:
            arrived = await self._arrived.get()
            if isinstance(arrived, HttpError):
                raise arrived
            index, chunk = arrived
            if isinstance(chunk.error, RequestError):
                raise HttpError(400, str(chunk.error), param=chunk.error.param, code="generation_failed")
            if chunk.finish_reason == "error":
                # The error's text may reveal internals to the client; the engine has logged the error.
                raise HttpError(500, "Generation failed; the server's log says why.", code="generation_failed")
            if chunk.finish_reason == "abort":
                raise overloaded("The server is shutting down.")
            if chunk.finish_reason:
                self._open.discard(index)
            yield index, chunk

    def close(self) -> None:
        """Abort running continuations; a second call has no effect."""
        if self._open:
            self._open.clear()
            self._abort(self)
