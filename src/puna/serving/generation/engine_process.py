"""Supervisor of an engine in a child process: start, watchdog, restart after a crash. Imports no torch.

After a crash or a step beyond the time limit, every open request ends with an error, and a new process loads the
model. Requests are never resent: the request that caused the crash would crash the next process too.
"""

import asyncio
import contextlib
import json
import logging
import math
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.formats.checkpoint.adapters.folder import adapter_names, has_adapter
from puna.pipeline.errors import CheckpointError
from puna.serving.errors import HttpError
from puna.serving.generation.engine_client import EngineClient
from puna.serving.generation.messages import (
    LENGTH,
    Command,
    Facts,
    Leave,
    body_length,
    command_to_json,
    error_from_json,
    facts_from_json,
    frame,
    read_frame,
    report_from_json,
)

COMMAND = (sys.executable, "-m", "puna.serving.generation.engine_child")
# Back-off in seconds before restarts of an engine without a token since the last crash. A crash after STABLE_SECONDS
# is no crash loop.
BACK_OFF = (0.0, 0.5, 1.0, 2.0, 4.0)
STABLE_SECONDS = 60.0
LOAD_SECONDS = 900.0
STOP_SECONDS = 30.0
WATCH_SECONDS = 0.5
LARGE_FRAME_BYTES = 1 << 20
LOST = "The engine died while it worked on this request, and is being started again. The request may be sent again."

logger = logging.getLogger("puna.serving")


class Child:
    """The engine's process and the socket to the process."""

    def __init__(self, command: Sequence[str], spec: Mapping[str, Any]):
        self.connection, theirs = socket.socketpair()
        with theirs:
            # NOTE: the engine dies with the thread that starts it (prctl), which must live as long as the server.
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the server, which lets the engine finish
            )
        self.started = time.monotonic()

    def first_message(self) -> dict[str, Any]:
        """Wait for the result of loading, the first message; {} if the process ended without a message."""
        self.connection.settimeout(LOAD_SECONDS)
        with contextlib.suppress(OSError), self.connection.makefile("rb") as stream:
            return read_frame(stream) or {}
        return {}

    def end(self, seconds: float = 0.0) -> str:
        """Wait `seconds` for the process to end, then kill the process; return the cause of the end."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return "it hung and was killed"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class EngineProcess(EngineClient):
    """Runs `command` with a socket's number and `spec` as JSON; see engine_child.py.

    Args:
        stall_seconds: Time limit of a step while requests are open; beyond the limit the process is killed.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        max_jobs: int = 256,
        stall_seconds: float = 120.0,
        command: Sequence[str] = COMMAND,
    ):
        super().__init__(max_jobs=max_jobs)
        self._spec, self._command, self._stall_seconds = dict(spec), command, stall_seconds
        self._writer: asyncio.StreamWriter | None = None
        self._last_report = 0.0
        self._load_seconds = 1.0
        self._num_deaths = 0  # in a row, without a token between them
        self._last_death = ""
        self._has_given_up = False

    def open(self, meanwhile: Callable[[], object] = list) -> Facts:
        """Start the process and wait until the model is loaded.

        Args:
            meanwhile: Called once the process has been started.

        Raises:
            PunaError: The model cannot be loaded.
        """
        self._child = Child(self._command, self._spec)
        meanwhile()
        message = self._child.first_message()
        if "facts" not in message:
            how = self._child.end(10.0)
            self._child.connection.close()
            if "error" in message:
                raise error_from_json(message["error"])
            raise CheckpointError(
                f"the engine's process ended while it loaded the model ({how})", hint="Its log says more"
            )
        self._load_seconds = time.monotonic() - self._child.started
        return facts_from_json(message["facts"])

    def start(self) -> None:
        self._supervision = asyncio.get_running_loop().create_task(self._supervise())
        self._supervision.add_done_callback(_log_failure)

    async def stop(self) -> None:
        self._is_stopping = True
        self._send(Leave())
        if not self._writer:
            self._child.process.kill()
        await asyncio.to_thread(self._child.end, STOP_SECONDS)
        self._supervision.cancel()

    def kill(self) -> None:
        """End the process at once; may be called at any time after `open`."""
        self._child.process.kill()

    def problem(self) -> HttpError | None:
        if self._has_given_up:
            message = (
                f"The engine died {self._num_deaths} times in a row without a token ({self._last_death}) and is not "
                "started again. The server's log says more; restart the server."
            )
            return HttpError(503, message, code="engine_dead", headers={"retry-after": "60"})
        if self._writer is None:
            return self._restarting("The engine is being started again.")
        return None

    def _restarting(self, message: str) -> HttpError:
        seconds = min(max(math.ceil(self._load_seconds), 1), 60)
        return HttpError(503, message, code="engine_restarting", headers={"retry-after": str(seconds)})

    def _send(self, command: Command) -> None:
        if self._writer:
            self._writer.write(frame(command_to_json(command)))

    async def _supervise(self) -> None:
        """Exchange messages with successive processes."""
        watch = asyncio.create_task(self._watch())
        try:
            reader = await self._connect()
            while True:
                await self._exchange(reader)
                if writer := self._writer:
                    writer.close()
                self._writer = None
                self._lose_all(self._restarting(LOST))
                self._last_death = await asyncio.to_thread(self._child.end, 1.0)
                if self._is_stopping:
                    return
                logger.error("the engine's process ended: %s", self._last_death)
                if time.monotonic() - self._child.started > self._load_seconds + STABLE_SECONDS:
                    self._num_deaths = 0
                while (reader := await self._start_again()) is None:
                    if self._has_given_up or self._is_stopping:
                        return
        finally:
            watch.cancel()

    async def _connect(self) -> asyncio.StreamReader:
        self._child.connection.setblocking(False)
        self._last_report = time.monotonic()
        reader, self._writer = await asyncio.open_unix_connection(sock=self._child.connection)
        return reader

    async def _start_again(self) -> asyncio.StreamReader | None:
        """Start the next process and wait until the model is loaded; None after a failed start."""
        self._num_deaths += 1
        if self._num_deaths > len(BACK_OFF):
            self._has_given_up = True
            logger.error("the engine died %d times in a row without a token; it is not started again", self._num_deaths)
            return None
        await asyncio.sleep(BACK_OFF[self._num_deaths - 1])
        if self._is_stopping:
            return None
        # The files were verified when the server started: hashing them again would take longer than loading them.
        self._child = child = Child(self._command, self._spec | {"is_verified": True})
        message = await asyncio.to_thread(child.first_message)
        if "facts" not in message:
            self._last_death = await asyncio.to_thread(child.end, 10.0)
            child.connection.close()
            if "error" in message:
                self._last_death = str(error_from_json(message["error"]))
            logger.error("the engine's process did not start: %s", self._last_death)
            return None
        self._load_seconds = time.monotonic() - child.started
        self.metrics.num_restarts += 1
        logger.warning("the engine is back after %.1f seconds", self._load_seconds)
        return await self._connect()

    async def _exchange(self, reader: asyncio.StreamReader) -> None:
        """Hand on the reports of a process until the connection ends or brings an invalid report."""
        try:
            while True:
                length = body_length(await reader.readexactly(LENGTH.size))
                body = await reader.readexactly(length)
                is_large = length > LARGE_FRAME_BYTES
                message = await asyncio.to_thread(json.loads, body) if is_large else json.loads(body)
                self._last_report = time.monotonic()
                report = report_from_json(message)
                if any(chunk.ids for _, chunk in report.chunks):
                    self._num_deaths = 0
                self._receive(report)
        except (asyncio.IncompleteReadError, OSError):
            return
        except (ValueError, KeyError, TypeError):
            logger.exception("the engine's process sent an invalid report")
            self._child.process.kill()

    async def _watch(self) -> None:
        """Kill a process after a step that takes too long; `_exchange` notices the end."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not (self._writer and (self._waiting or self._tickets)):
                self._last_report = time.monotonic()
            if (stalled := time.monotonic() - self._last_report) > self._stall_seconds:
                logger.error("the engine finished no step for %.0f seconds; its process is killed", stalled)
                self._child.process.kill()
                self._last_report = time.monotonic()


class AdapterFolder:
    """Names of the adapters in a folder, without weights; the engine refuses unfit adapters when a request comes."""

    def __init__(self, folder: Path):
        self.folder = folder

    def names(self) -> list[str]:
        """Return the names in the folder now, fit for use or not."""
        return adapter_names(self.folder)

    def find(self, name: str) -> str | None:
        """Return the name if the folder holds the adapter."""
        return name if has_adapter(self.folder, name) else None


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("the engine's supervision failed", exc_info=error)
