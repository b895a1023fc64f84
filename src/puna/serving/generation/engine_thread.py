"""An engine in a thread of this process, for tests and programs; `puna serve` starts a separate process."""

import asyncio
import threading
from contextlib import suppress

from puna.serving.errors import HttpError, overloaded
from puna.serving.generation.engine_client import EngineClient
from puna.serving.generation.engine_loop import EngineLoop, StepEngine
from puna.serving.generation.messages import Command, Leave, Report

STOP_SECONDS = 30.0


class EngineThread(EngineClient):
    """Runs the engine's loop in a thread. Several failures of the engine in a row are final."""

    def __init__(self, engine: StepEngine, *, max_jobs: int = 256):
        super().__init__(max_jobs=max_jobs)
        self._engine = engine
        self._engine_loop = EngineLoop(engine, self._hand_over)
        self._thread = threading.Thread(target=self._engine_loop.run, name="engine", daemon=True)

    def start(self) -> None:
        self._event_loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        self._is_stopping = True
        self._send(Leave())
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def problem(self) -> HttpError | None:
        if self._thread.is_alive() and not self._engine_loop.is_broken:
            return None
        return overloaded("The engine is not running.")

    def _send(self, command: Command) -> None:
        self._engine_loop.put(command)

    def _hand_over(self, report: Report) -> None:
        # The event loop is closed only when the server is going down and nobody waits any more.
        with suppress(RuntimeError):
            self._event_loop.call_soon_threadsafe(self._receive, report)
