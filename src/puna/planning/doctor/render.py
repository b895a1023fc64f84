"""A foreign chat template and conversations -> rendered texts, from a sandboxed child process (template_child.py).

Only the child gives the template to Jinja. A crash, a timeout or malformed output of the child becomes an error result.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

KILL_SECONDS = 5.0
CHILD = Path(__file__).with_name("template_child.py")
MAX_ANSWER_BYTES = 8 * 2**20


class Rendered(NamedTuple):
    """A rendered text, or an error of a kind: syntax, refused, security, memory, time or died."""

    text: str
    error: str = ""
    kind: str = ""


def render(template: str, conversations: list[dict[str, Any]]) -> list[Rendered]:
    """Render the template with the variables of every conversation; an error ends the list if the child stops early."""
    request = json.dumps({"template": template, "conversations": conversations}).encode()
    # NOTE: a file, and not a pipe, so that RLIMIT_FSIZE bounds what a template that escaped can write.
    with tempfile.TemporaryFile() as output:
        ending = _run(request, output)
        output.seek(0)
        lines = output.read(MAX_ANSWER_BYTES).split(b"\n")
    rendered = [answer for line in lines for answer in _read(line)][: len(conversations)]
    is_stopped = any(answer.kind in ("syntax", "security", "memory", "time") for answer in rendered)
    if is_stopped or len(rendered) == len(conversations):
        return rendered
    return [*rendered, ending or Rendered("", "the renderer ended early", "died")]


def _run(request: bytes, output: Any) -> Rendered | None:
    """Run the child; return an error for a timeout or a failed exit status, else None."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-B", str(CHILD)], input=request, stdout=output, stderr=subprocess.DEVNULL,
            env={}, cwd=tempfile.gettempdir(), timeout=KILL_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Rendered("", f"still rendering after {KILL_SECONDS:g} seconds", "time")
    if done.returncode in (-9, -24):  # SIGKILL and SIGXCPU: the limit on processor time
        return Rendered("", "more than 2 seconds of processor time", "time")
    return Rendered("", f"the renderer ended with status {done.returncode}", "died") if done.returncode else None


def _read(line: bytes) -> list[Rendered]:
    """Return the result of an output line of the child, or [] for a malformed line."""
    try:
        data = json.loads(line)
        return [Rendered(str(data.get("text", "")), str(data.get("error", "")), str(data.get("kind", "")))]
    except (ValueError, AttributeError, RecursionError):
        return []
