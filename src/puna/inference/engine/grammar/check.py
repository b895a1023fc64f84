"""A stranger's grammar -> what is wrong with it, found in a process that may be killed.

llguidance bounds most of its work, but not all: intersecting a few patterns can take it for ever, in a thread that
nothing can stop. What passes here in time is compiled again where it is used. Run as a module it is that process.
"""

import json
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

SECONDS = 3.0  # Of the processor's time.
MEMORY_BYTES = 2 << 30
STACK_BYTES = 2 << 20


class GrammarCheck:
    """Keeps a process for each thread that checks, from its first check on."""

    def __init__(self, limits: dict[str, Any]):
        self._limits = limits
        self._of_thread = threading.local()

    def problem(self, grammar: str) -> str:
        """Return why a grammar cannot be followed, as far as that shows without a tokenizer; "" if nothing shows."""
        process = self._started()
        try:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(grammar) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        self._of_thread.process = None
        process.communicate()
        if process.returncode == -signal.SIGPROF:
            return f"it takes more than {SECONDS:g} seconds to compile"
        return "its compilation fails, or needs too much memory"

    def _started(self) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] | None = getattr(self._of_thread, "process", None)
        if process is None or process.poll() is not None:
            command = [sys.executable, "-m", __name__, json.dumps(self._limits), str(SECONDS)]
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
            )
            self._of_thread.process = process
        return process


def answer_checks(limits: dict[str, Any], seconds: float) -> None:
    """Read a grammar a line and write a verdict a line; a check that takes too long ends the process."""
    import llguidance

    bounds = llguidance.LLParserLimits(**limits)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        problem = llguidance.LLMatcher.validate_grammar(json.loads(line), None, limits=bounds)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(problem) + "\n")
        sys.stdout.flush()


def main() -> None:
    with suppress(BrokenPipeError):
        answer_checks(json.loads(sys.argv[1]), float(sys.argv[2]))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Ctrl-C is for the server, which ends this process by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A grammar that overflows a stack does so here, where the stack is smaller than in the server's threads.
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
