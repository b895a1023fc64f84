"""The engine's process: loads a checkpoint, takes commands from a socket and sends reports, until the socket closes.

Run as a module with the socket's number and an engine_spec as JSON. Opens no network connection, dies with the server.
"""

import contextlib
import ctypes
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from puna.inference.engine.outputs import Chunk
from puna.pipeline import offline
from puna.pipeline.errors import PunaError, RequestError
from puna.serving.generation.engine_loop import EngineLoop, StepEngine
from puna.serving.generation.messages import (
    Abort,
    Command,
    EndAll,
    Facts,
    Job,
    Leave,
    Report,
    Submit,
    error_to_json,
    facts_to_json,
    frame,
    params_from_json,
    read_frame,
    report_to_json,
)

if TYPE_CHECKING:
    from puna.inference.engine.grammar.grammar import Grammar
    from puna.serving.generation.loading import CompileGrammar

PR_SET_PDEATHSIG = 1
# Linux's OOM killer ends this process first, so the server survives to report the cause.
OOM_SCORE = "500"
MAX_REPORTS = 256
NUM_GRAMMAR_THREADS = 2


def main() -> None:
    """Load the engine of the arguments and answer commands."""
    connection, spec = take_connection(), json.loads(sys.argv[2])
    try:
        from puna.serving.generation.loading import load_engine

        engine, facts, compile_grammar = load_engine(spec)
    except PunaError as error:
        connection.sendall(frame({"error": error_to_json(error)}))
        sys.exit(1)
    answer(connection, engine, facts, compile_grammar)


def take_connection() -> socket.socket:
    """Return the socket of the first argument, and bind the process's life to the server's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # The server decides when the engine ends.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(OOM_SCORE)
    offline.enforce()
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    return connection


def answer(
    connection: socket.socket, engine: StepEngine, facts: Facts, compile_grammar: "CompileGrammar | None" = None
) -> None:
    """Send the facts, then carry out commands until the server leaves; exit status 1 if the engine is broken."""
    reports: queue.Queue[Report | None] = queue.Queue(MAX_REPORTS)
    loop = _ChildLoop(engine, reports.put)
    commands = _Commands(connection, loop, compile_grammar)
    connection.sendall(frame({"facts": facts_to_json(facts)}))
    threading.Thread(target=commands.run, daemon=True).start()
    writer = threading.Thread(target=_write, args=(connection, reports), daemon=True)
    writer.start()
    # NOTE: 5 % faster than in the main thread, where glibc returns the freed memory of large tensors at once.
    steps = threading.Thread(target=loop.run, name="engine")
    steps.start()
    steps.join()
    reports.put(None)
    writer.join()
    sys.stderr.flush()
    # NOTE: not sys.exit, which waits for threads that may never end.
    os._exit(1 if loop.is_broken else 0)


class _ChildLoop(EngineLoop):
    """Loop that ends with a broken engine; the supervisor starts the next process."""

    def _obey(self) -> bool:
        return not self.is_broken and super()._obey()


class _Commands:
    """Reader of commands; requests with grammars wait for the compilation before the loop receives them."""

    def __init__(self, connection: socket.socket, loop: EngineLoop, compile_grammar: "CompileGrammar | None"):
        self._connection, self._loop, self._compile = connection, loop, compile_grammar
        self._threads = ThreadPoolExecutor(NUM_GRAMMAR_THREADS, thread_name_prefix="grammar")
        self._lock = threading.Lock()
        self._compiling: set[int] = set()  # jobs that the loop does not know yet
        self._aborted: set[int] = set()  # aborted jobs among `_compiling`

    def run(self) -> None:
        """Read commands until the server closes the connection, then end the process."""
        with contextlib.suppress(OSError), self._connection.makefile("rb") as stream:
            while (message := read_frame(stream)) is not None:
                self._take(message)
        os._exit(0)

    def _take(self, message: Mapping[str, Any]) -> None:
        if "ticket" not in message:
            command: Command = Leave() if message.get("end") else EndAll()
            if "abort" in message:
                command = Abort(message["abort"])
                with self._lock:
                    self._aborted |= self._compiling & {*message["abort"]}
            self._loop.put(command)
        elif message["grammars"]:
            with self._lock:
                self._compiling |= {job for job, *_ in message["jobs"]}
            self._threads.submit(self._submit, message)
        else:
            self._submit(message)

    def _submit(self, message: Mapping[str, Any]) -> None:
        try:
            grammars = [self._compiled(*grammar) for grammar in message["grammars"]]
        except Exception as error:
            return self._loop.refuse(message["ticket"], error)
        jobs = [
            Job(job, message["prompts"][prompt], params_from_json(params, grammar=None if at is None else grammars[at]))
            for job, prompt, at, params in message["jobs"]
        ]
        self._loop.put(Submit(message["ticket"], jobs, message["tenant"], message["adapter"]))
        with self._lock:
            known = {job.id for job in jobs}
            aborted = self._aborted & known
            self._aborted -= known
            self._compiling -= known
        return self._loop.put(Abort(list(aborted))) if aborted else None

    def _compiled(self, text: str, param: str, begun: list[int]) -> "Grammar":
        if self._compile is None:
            raise RequestError("a grammar", expected="no grammar: this model has no grammar compiler", param=param)
        grammar = self._compile(text, param)
        return grammar.after(begun) if begun else grammar


def _write(connection: socket.socket, reports: "queue.Queue[Report | None]") -> None:
    with contextlib.suppress(OSError):
        while (report := reports.get()) is not None:
            for part in _encoded(report):
                connection.sendall(part)


def _encoded(report: Report) -> list[bytes]:
    """Return a report as a single frame, or as a frame per chunk if a single frame would be too large."""
    try:
        return [frame(report_to_json(report))]
    except ValueError:
        if len(report.chunks) > 1:
            return [part for chunk in report.chunks for part in _encoded(Report([chunk]))]
        ((job, _),) = report.chunks
        error = RequestError(
            "an answer with too many log-probabilities", expected="fewer log-probabilities, or shorter prompts"
        )
        return _encoded(Report([(job, Chunk(finish_reason="error", error=error))]))


if __name__ == "__main__":
    main()
