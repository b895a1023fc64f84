"""The engine's process without a model: says what its spec tells it to, and dies or hangs where it is told to."""

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from puna.inference.engine.outputs import Chunk, Usage
from puna.inference.engine.sampling.params import SamplingParams
from puna.pipeline.errors import CheckpointError, RequestError
from puna.serving.generation.engine_child import answer, take_connection
from puna.serving.generation.messages import Facts, error_to_json, frame

CRASH, HANG, REFUSED, FAILING = 200, 201, 202, 203  # first ids of prompts


class TooComplexError(RequestError):
    """A request error from outside the error tree, as a library in the engine could define it."""


class ScriptedEngine:
    """Answers every prompt with one token a step, `slots` at once, in turns of the tenants."""

    def __init__(self, spec: dict[str, Any]):
        self.pause, self.slots = spec.get("pause", 0.0), spec.get("slots", 1000)
        self.waiting: list[tuple[int, list[int], SamplingParams, str]] = []
        self.running: dict[int, list[Any]] = {}
        self.aborted: list[int] = []
        self.next_id = 0
        self.had: Counter[str] = Counter()  # tokens by tenant

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.aborted)

    def usage(self) -> Usage:
        waiting = Counter(tenant for *_, tenant in self.waiting)
        running = Counter(tenant for *_, tenant in self.running.values())
        return Usage(90 - len(self.running), len(self.running), 10, running, waiting, 16, [0.25])

    def submit(self, prompt: list[int], params: SamplingParams, *, tenant: str, adapter: str) -> int:
        if prompt[0] == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        if prompt[0] == REFUSED:
            raise RequestError("a wrong one", expected="a right one", hint="Send another", param="prompt")
        self.next_id += 1
        self.waiting.append((self.next_id, prompt, params, tenant))
        return self.next_id

    def abort(self, request_id: int) -> None:
        self.aborted.append(request_id)

    def step(self) -> list[tuple[int, Chunk]]:
        time.sleep(self.pause)
        gone, self.aborted = set(self.aborted), []
        chunks = [(request, Chunk(finish_reason="abort")) for request in gone if self._remove(request)]
        while self.waiting and len(self.running) < self.slots:
            place = min(range(len(self.waiting)), key=lambda place: self.had[self.waiting[place][3]])
            request, prompt, params, tenant = self.waiting.pop(place)
            self.had[tenant] += params.max_tokens
            self.running[request] = [prompt, params.max_tokens, tenant]
        for request, running in list(self.running.items()):
            if running[0][0] == HANG:
                time.sleep(1000)
            running[1] -= 1
            reason = None if running[1] > 0 else "length"
            if running[0][0] == FAILING:
                error = TooComplexError("what came later", expected="something simpler", param="response_format")
                chunks.append((request, Chunk(finish_reason="error", error=error)))
                self._remove(request)
                continue
            chunks.append((request, Chunk((65,), "A", finish_reason=reason)))
            if reason:
                self._remove(request)
        return chunks

    def _remove(self, request: int) -> bool:
        num_waiting = len(self.waiting)
        self.waiting = [each for each in self.waiting if each[0] != request]
        return self.running.pop(request, None) is not None or len(self.waiting) < num_waiting


def main() -> None:
    connection, spec = take_connection(), json.loads(sys.argv[2])
    assert "torch" not in sys.modules
    with open(spec["starts"], "a") as file:
        file.write(f"{os.getpid()}\n")
    if spec.get("dies_on_load") and len(Path(spec["starts"]).read_text().split()) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.get("has_no_model"):
        error = CheckpointError("no weights here", expected="weights", hint="Copy them")
        connection.sendall(frame({"error": error_to_json(error)}))
        return
    time.sleep(spec.get("load_seconds", 0.0))
    answer(connection, ScriptedEngine(spec), Facts(4096, (2,), SamplingParams(temperature=1.0), []))


if __name__ == "__main__":
    main()
