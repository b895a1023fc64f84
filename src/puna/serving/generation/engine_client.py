"""Requests of an event loop -> commands to an engine; reports of the engine -> batches.

Bounds the number of held continuations (admission.py) and counts (metrics.py). Subclasses run the engine.
"""

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from puna.inference.engine.outputs import Chunk
from puna.inference.engine.sampling.params import SamplingParams
from puna.serving.admission.admission import Admission, RefusalPace
from puna.serving.errors import HttpError, overloaded
from puna.serving.generation.batch import Batch
from puna.serving.generation.messages import Abort, Command, EndAll, Job, Report, Submit
from puna.serving.generation.metrics import Metrics

STOPPING = "The server is shutting down."


@dataclass(eq=False, slots=True)
class _Waiting:
    """A running continuation."""

    batch: Batch
    index: int
    tenant: str
    submitted: float = field(default_factory=time.monotonic)
    has_tokens: bool = False


class EngineClient(ABC):
    """An engine for the routes. Only the event loop may use the object, from `start` to `stop`.

    Example:
        >>> batch = await engine.submit([(prompt, params)], tenant="0")
        >>> async for index, chunk in batch: ...
        >>> batch.close()
    """

    def __init__(self, *, max_jobs: int):
        self.admission = Admission(max_jobs)
        self._pace = RefusalPace()
        self.metrics = Metrics()
        self._waiting: dict[int, _Waiting] = {}
        self._tickets: dict[int, tuple[asyncio.Future[None], list[int]]] = {}
        self._ids = itertools.count()
        self._is_stopping = False

    @abstractmethod
    def start(self) -> None:
        """Begin to answer, in the event loop that runs now."""

    @abstractmethod
    async def stop(self) -> None:
        """End all continuations and wait for the engine to finish the current step."""

    @abstractmethod
    def problem(self) -> HttpError | None:
        """Return the refusal for every request while the engine cannot answer, else None."""

    @abstractmethod
    def _send(self, command: Command) -> None:
        """Hand a command to the engine."""

    @property
    def is_alive(self) -> bool:
        return self.problem() is None

    async def expect_room(self, tenant: str, size: int) -> None:
        """Raise as `submit` would where a request cannot join now, before the work of preparing the request."""
        await self.admit(lambda: self._require_room(tenant, size), tenant, size)

    async def admit(self, take: Callable[[], None], tenant: str, size: int = 1) -> None:
        """Call `take`, which raises a HttpError where a queue of the server has no room.

        A tenant with many refusals waits longer for the next refusal, and joins if there is room by then.
        """
        try:
            await self._pace.admit(tenant, take)
        except HttpError:
            self.metrics.count_ended("refused", size)
            raise

    def _require_room(self, tenant: str, size: int) -> None:
        self._require_running()
        self.admission.require_room(tenant, size)

    def _require_running(self) -> None:
        if problem := overloaded(STOPPING) if self._is_stopping else self.problem():
            raise problem

    async def submit(
        self, requests: Sequence[tuple[list[int], SamplingParams]], *, tenant: str, adapter: str = ""
    ) -> Batch:
        """Hand all requests to the engine, or none of them; `adapter` "" is the model without an adapter.

        Raises:
            RequestError: The engine can never answer a request of the batch.
            HttpError: Status 503. The queue has no room, or the engine is not running.
        """
        self._require_running()
        self.admission.take(tenant, len(requests))
        batch = Batch(len(requests), self._abort)
        jobs = [Job(next(self._ids), *request) for request in requests]
        self._waiting |= {job.id: _Waiting(batch, index, tenant) for index, job in enumerate(jobs)}
        ticket, settled = next(self._ids), asyncio.get_running_loop().create_future()
        self._tickets[ticket] = settled, [job.id for job in jobs]
        self._send(Submit(ticket, jobs, tenant, adapter))
        try:
            await settled
        except BaseException:
            batch.close()
            raise
        # Continuations with the same prompt count the prompt once.
        self.metrics.num_prompt_tokens += sum(map(len, {id(prompt): prompt for prompt, _ in requests}.values()))
        return batch

    def refuse_and_end(self) -> None:
        """Take no more requests and end running requests with an error."""
        self._is_stopping = True
        self._send(EndAll())

    def _abort(self, batch: Batch) -> None:
        jobs = [job for job, waiting in self._waiting.items() if waiting.batch is batch]
        if jobs:
            self._send(Abort(jobs))

    def _receive(self, report: Report) -> None:
        """Hand on the results in a report."""
        for ticket, error in report.settled:
            settled, jobs = self._tickets.pop(ticket)
            if error:
                self._forget(jobs, "invalid")
            if not settled.done():
                settled.set_exception(error) if error else settled.set_result(None)
        for job, chunk in report.chunks:
            if waiting := self._waiting.get(job):
                self._deliver(job, waiting, chunk)
        if report.usage:
            self.metrics.take_usage(report.usage)

    def _deliver(self, job: int, waiting: _Waiting, chunk: Chunk) -> None:
        if chunk.ids:
            self.metrics.num_generated_tokens += len(chunk.ids)
            if not waiting.has_tokens:
                waiting.has_tokens = True
                self.metrics.first_token_seconds.observe(time.monotonic() - waiting.submitted)
        if chunk.finish_reason:
            self._forget([job], chunk.finish_reason)
        waiting.batch.add(waiting.index, chunk)

    def _forget(self, jobs: Sequence[int], outcome: str) -> None:
        for job in jobs:
            self.admission.release(self._waiting.pop(job).tenant)
        self.metrics.count_ended(outcome, len(jobs))

    def _lose_all(self, refusal: HttpError) -> None:
        """End all continuations with an error after a death of the engine."""
        batches = {waiting.batch for waiting in self._waiting.values()}
        self._forget(list(self._waiting), "lost")
        tickets, self._tickets = self._tickets, {}
        for settled, _ in tickets.values():
            if not settled.done():
                settled.set_exception(refusal)
        for batch in batches:
            batch.fail(refusal)
