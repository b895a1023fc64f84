"""Requests from an event loop -> one engine in one thread, and its chunks back.

Bounds how many requests the engine holds. Knows no HTTP and no text; when the engine itself fails it ends what was
running and goes on.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from puna.engine.sampler import Chunk, SamplingParams
from puna.errors import RequestError
from puna.serve.generation.admission import Admission
from puna.serve.refusals import Refusal, overloaded

MAX_FAILURES = 3

logger = logging.getLogger("puna.serve")


class StepEngine(Protocol):
    """What is driven here: puna.engine.engine.Engine."""

    def submit(self, prompt: list[int], params: SamplingParams, *, tenant: str, adapter: str) -> int: ...

    def step(self) -> list[tuple[int, Chunk]]: ...

    def abort(self, request_id: int) -> None: ...

    @property
    def has_work(self) -> bool: ...


class Batch:
    """The continuations of one HTTP request: iterate over (index, chunk) in the order of arrival, then `close`."""

    def __init__(self, size: int, abort: Callable[["Batch"], None]):
        self._open = set(range(size))
        self._arrived: asyncio.Queue[tuple[int, Chunk]] = asyncio.Queue()
        self._abort = abort

    def add(self, index: int, chunk: Chunk) -> None:
        self._arrived.put_nowait((index, chunk))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        """Yield until every continuation has ended; one that fails raises the Refusal to answer with."""
        while self._open:
            index, chunk = await self._arrived.get()
            if chunk.error.startswith(f"{RequestError.__name__}: "):
                raise Refusal(400, chunk.error.partition(": ")[2], code="generation_failed")
            if chunk.finish_reason == "error":
                # What the engine says may hold more than a client should see; it has logged it.
                raise Refusal(500, "Generation failed; the server's log says why.", code="generation_failed")
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


@dataclass(eq=False, slots=True)
class _Job:
    batch: Batch
    index: int
    prompt: list[int]
    params: SamplingParams
    tenant: str
    adapter: str


class EngineThread:
    """Owns the engine: only its thread touches it, and only the event loop touches batches and the count of jobs."""

    def __init__(self, engine: StepEngine, *, max_jobs: int = 256):
        self.admission = Admission(max_jobs)
        self._engine = engine
        self._jobs: dict[int, _Job] = {}
        self._num_failures = 0
        self._is_stopping = False
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_broken

    @property
    def _is_broken(self) -> bool:
        return self._num_failures >= MAX_FAILURES

    def start(self) -> None:
        """Start the thread; chunks go to the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def submit(
        self, requests: Sequence[tuple[list[int], SamplingParams]], *, tenant: str, adapter: str = ""
    ) -> Batch:
        """Hand all the requests of a tenant to the engine or none, to be answered by an adapter or the model itself.

        Raises RequestError for what the engine refuses, Refusal (503) when it has no room or is going down.
        """
        if self._is_stopping or not self.is_alive:
            raise overloaded("The engine is not running.")
        self.admission.take(tenant, len(requests))
        batch = Batch(len(requests), self._abort)
        jobs = [_Job(batch, index, *request, tenant, adapter) for index, request in enumerate(requests)]
        admitted: asyncio.Future[None] = self._loop.create_future()
        self._commands.put(partial(self._admit, jobs, admitted))
        try:
            await admitted
        except BaseException:
            batch.close()
            raise
        return batch

    def refuse_and_end(self) -> None:
        """Take no more requests and end those that run, each with an error."""
        self._is_stopping = True
        self._commands.put(partial(self._fail_all, "abort", ""))

    def stop(self) -> None:
        """End everything and wait for the thread, which finishes the step it is in."""
        self.refuse_and_end()
        self._commands.put(self._leave)
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _abort(self, batch: Batch) -> None:
        self._commands.put(partial(self._abort_jobs, batch))

    # What follows runs in the thread.

    def _run(self) -> None:
        with suppress(_Leave):
            while True:
                self._obey()
                if self._has_work:
                    self._step()

    @property
    def _has_work(self) -> bool:
        return self._engine.has_work and not self._is_broken

    def _leave(self) -> None:
        raise _Leave

    def _obey(self) -> None:
        """Carry out what was asked since the last step; wait for something if the engine is idle."""
        is_idle = not self._has_work
        with suppress(queue.Empty):
            while True:
                self._commands.get(block=is_idle)()
                is_idle = False

    def _step(self) -> None:
        try:
            chunks = self._engine.step()
        except Exception:
            logger.exception("the engine's step failed; everything that was running ends with an error")
            self._num_failures += 1
            self._fail_all("error", "the engine failed")
            return
        # A step that only clears away what was aborted is no sign of life.
        if any(chunk.ids for _, chunk in chunks):
            self._num_failures = 0
        arrived = [(self._jobs[request], chunk) for request, chunk in chunks if request in self._jobs]
        for request, chunk in chunks:
            if chunk.finish_reason:
                self._jobs.pop(request, None)
        self._call(self._deliver, arrived)

    def _admit(self, jobs: list[_Job], admitted: asyncio.Future[None]) -> None:
        for position, job in enumerate(jobs):
            try:
                request = self._engine.submit(job.prompt, job.params, tenant=job.tenant, adapter=job.adapter)
                self._jobs[request] = job
            except Exception as error:
                if not isinstance(error, RequestError):
                    logger.exception("the engine failed to take a request")
                self._call(self._settle, admitted, error, jobs[position:])
                return self._abort_jobs(job.batch)
        return self._call(self._settle, admitted, None, [])

    def _abort_jobs(self, batch: Batch) -> None:
        for request, job in list(self._jobs.items()):
            if job.batch is batch:
                self._engine.abort(request)

    def _fail_all(self, reason: str, error: str) -> None:
        end = Chunk(finish_reason="error" if reason == "error" else "abort", error=error)
        ended = [(job, end) for job in self._jobs.values()]
        for request in self._jobs:
            with suppress(Exception):
                self._engine.abort(request)
        self._jobs.clear()
        self._call(self._deliver, ended)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        # The loop is closed only when the server is going down and nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    # What follows runs in the event loop.

    def _settle(self, admitted: asyncio.Future[None], error: Exception | None, refused: list[_Job]) -> None:
        for job in refused:
            self.admission.release(job.tenant)
        if admitted.done():
            return
        if error:
            admitted.set_exception(error)
        else:
            admitted.set_result(None)

    def _deliver(self, arrived: list[tuple[_Job, Chunk]]) -> None:
        for job, chunk in arrived:
            if chunk.finish_reason:
                self.admission.release(job.tenant)
            job.batch.add(job.index, chunk)


class _Leave(Exception):
    """Leads out of the thread's loop."""
