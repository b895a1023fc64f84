"""Chunks of the continuations of one HTTP request, in the order of their arrival."""

import asyncio
from collections.abc import AsyncIterator, Callable

from puna.inference.engine.outputs import Chunk
from puna.pipeline.errors import RequestError
from puna.serving.errors import HttpError, overloaded


class Batch:
    """The continuations of one HTTP request: iterate over (index, chunk) in the order of arrival, then `close`."""

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
        """Yield until every continuation has ended; one that fails raises the HttpError to answer with."""
        while self._open:
            arrived = await self._arrived.get()
            if isinstance(arrived, HttpError):
                raise arrived
            index, chunk = arrived
            if isinstance(chunk.error, RequestError):
                raise HttpError(400, str(chunk.error), param=chunk.error.param, code="generation_failed")
            if chunk.finish_reason == "error":
                # What the engine says may hold more than a client should see; it has logged it.
                raise HttpError(500, "Generation failed; the server's log says why.", code="generation_failed")
            if chunk.finish_reason == "abort":
                raise overloaded("The server is shutting down.")
            if chunk.finish_reason:
                self._open.discard(index)
            yield index, chunk

    def close(self) -> None:
        """Stop what is still running; may be called twice."""
        if self._open:
            self._open.clear()
            self._abort(self)
