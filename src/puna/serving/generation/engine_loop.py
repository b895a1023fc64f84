"""Commands -> steps of one engine -> reports: the loop of the engine's thread, in any process.

A failed step ends all running requests, and the loop goes on. After MAX_FAILURES failures in a row the loop is broken.
"""

import logging
import queue
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, runtime_checkable

from puna.inference.engine.outputs import Chunk, Usage
from puna.inference.engine.sampling.params import SamplingParams
from puna.pipeline.errors import RequestError
from puna.serving.generation.messages import Abort, Command, Job, Leave, Report, Submit

MAX_FAILURES = 3

logger = logging.getLogger("puna.serving")


class StepEngine(Protocol):
    """The methods of puna.inference.engine.engine.Engine that the loop calls."""

    def submit(self, prompt: list[int], params: SamplingParams, *, tenant: str, adapter: str) -> int: ...

    def step(self) -> list[tuple[int, Chunk]]: ...

    def abort(self, request_id: int) -> None: ...

    @property
    def has_work(self) -> bool: ...


@runtime_checkable
class ReportsUsage(Protocol):
    """An engine that reports usage."""

    def usage(self) -> Usage: ...


class EngineLoop:
    """Owns the engine: only the thread in `run` uses the engine. `put` may be called from any thread."""

    def __init__(self, engine: StepEngine, report: Callable[[Report], None]):
        self._engine, self._report = engine, report
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._job_of: dict[int, int] = {}  # by the engine's request id
        self._num_failures = 0

    @property
    def is_broken(self) -> bool:
        return self._num_failures >= MAX_FAILURES

    def put(self, command: Command) -> None:
        """Queue a command for execution before the next step."""
        self._commands.put(command)

    def refuse(self, ticket: int, error: Exception) -> None:
        """Report an error of a request that never reached the engine."""
        self._report(Report(settled=[(ticket, error)]))

    def run(self) -> None:
        """Step while the engine has work, otherwise wait for commands; return after Leave."""
        while self._obey():
            if self._has_work:
                self._step()

    @property
    def _has_work(self) -> bool:
        return self._engine.has_work and not self.is_broken

    def _obey(self) -> bool:
        """Execute queued commands; wait for a command if the engine is idle. Return False after Leave."""
        must_wait = not self._has_work
        with suppress(queue.Empty):
            while True:
                command = self._commands.get(block=must_wait)
                must_wait = False
                if isinstance(command, Submit):
                    self._admit(command)
                elif isinstance(command, Abort):
                    self._abort(set(command.jobs))
                else:
                    self._end_all(Chunk(finish_reason="abort"))
                    if isinstance(command, Leave):
                        return False
        return True

    def _step(self) -> None:
        try:
            chunks = self._engine.step()
        except Exception as error:
            logger.exception("the engine's step failed; all running requests end with an error")
            self._num_failures += 1
            self._end_all(Chunk(finish_reason="error", error=error))
            return
        # A step that only removes aborted requests proves nothing about the engine.
        if any(chunk.ids for _, chunk in chunks):
            self._num_failures = 0
        arrived = [(self._job_of[request], chunk) for request, chunk in chunks if request in self._job_of]
        for request, chunk in chunks:
            if chunk.finish_reason:
                self._job_of.pop(request, None)
        usage = self._engine.usage() if isinstance(self._engine, ReportsUsage) else None
        self._report(Report(arrived, usage=usage))

    def _admit(self, command: Submit) -> None:
        taken: list[int] = []
        error = None
        try:
            for job in command.jobs:
                taken.append(self._submit(job, command))
        except Exception as failure:
            error = failure
            if not isinstance(failure, RequestError):
                logger.exception("the engine failed to take a request")
            for request in taken:
                del self._job_of[request]
                self._engine.abort(request)
        self._report(Report(settled=[(command.ticket, error)]))

    def _submit(self, job: Job, command: Submit) -> int:
        request = self._engine.submit(job.prompt, job.params, tenant=command.tenant, adapter=command.adapter)
        self._job_of[request] = job.id
        return request

    def _abort(self, jobs: set[int]) -> None:
        for request, job in list(self._job_of.items()):
            if job in jobs:
                self._engine.abort(request)

    def _end_all(self, end: Chunk) -> None:
        for request in self._job_of:
            with suppress(Exception):
                self._engine.abort(request)
        self._report(Report([(job, end) for job in self._job_of.values()]))
        self._job_of.clear()
