"""A foreign chat template -> what it makes of conversations, rendered in a confined child process (template_child.py).

The template's text reaches Jinja in the child only. A child that dies, hangs or writes nonsense is an answer as well.
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
    """One rendering: text, or an error with its kind: syntax, refused, security, memory, time or died."""

    text: str
    error: str = ""
    kind: str = ""


def render(template: str, conversations: list[dict[str, Any]]) -> list[Rendered]:
    """Render each conversation's variables; where the child ends early the answers end too, with an error."""
    given = json.dumps({"template": template, "conversations": conversations}).encode()
    # NOTE: a file, and not a pipe, so that RLIMIT_FSIZE bounds what a template that escaped can write.
    with tempfile.TemporaryFile() as output:
        ending = _run(given, output)
        output.seek(0)
        lines = output.read(MAX_ANSWER_BYTES).split(b"\n")
    rendered = [answer for line in lines for answer in _read(line)][: len(conversations)]
    is_stopped = any(answer.kind in ("syntax", "security", "memory", "time") for answer in rendered)
    if is_stopped or len(rendered) == len(conversations):
        return rendered
    return [*rendered, ending or Rendered("", "the renderer ended early", "died")]


def _run(given: bytes, output: Any) -> Rendered | None:
    """Run the child; return how it ended if that was not its own end."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-B", str(CHILD)], input=given, stdout=output, stderr=subprocess.DEVNULL,
            env={}, cwd=tempfile.gettempdir(), timeout=KILL_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Rendered("", f"still rendering after {KILL_SECONDS:g} seconds", "time")
    if done.returncode in (-9, -24):  # SIGKILL and SIGXCPU: what the limit on processor time sends
        return Rendered("", "more than 2 seconds of processor time", "time")
    return Rendered("", f"the renderer ended with status {done.returncode}", "died") if done.returncode else None


def _read(line: bytes) -> list[Rendered]:
    """Return what one line of the child says, or nothing if it is no answer."""
    try:
        data = json.loads(line)
        return [Rendered(str(data.get("text", "")), str(data.get("error", "")), str(data.get("kind", "")))]
    except (ValueError, AttributeError, RecursionError):
        return []
