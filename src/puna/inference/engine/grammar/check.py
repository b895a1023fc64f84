"""A client's grammar -> a problem or "", found in a child process with time and memory limits.

llguidance bounds most work, but an intersection of a few patterns can run forever in an unstoppable thread. A grammar
passed by the child is compiled again in the caller's process. Run as a module, the file is the child.
"""

import json
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

SECONDS = 3.0  # Processor time.
MEMORY_BYTES = 2 << 30
STACK_BYTES = 2 << 20


class GrammarCheck:
    """A child process per checking thread, started by the first check.

    Example:
        >>> GrammarCheck(LIMITS).problem(regex_grammar("[a-z]+"))
        ''
    """

    def __init__(self, limits: dict[str, Any]):
        self._limits = limits
        self._of_thread = threading.local()

    def problem(self, grammar: str) -> str:
        """Return why a grammar cannot be followed, or "" without a problem; the check needs no tokenizer."""
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
        return "compilation fails, or needs too much memory"

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
    """Read a grammar per line and write a verdict per line; the time limit ends the process."""
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
    # Ctrl-C is for the server, which ends this process by closing stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A smaller stack than in the server: a grammar that overflows a stack overflows here first.
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
