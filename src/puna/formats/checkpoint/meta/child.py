"""The child process for parsing a .pth file: file on standard input -> JSON with tensors or an error.

The process has no network, no environment and no write access to files; memory and CPU time are limited. confine.py
starts the process, and shard.py validates the output as untrusted input.
"""

import json
import resource
import sys
from typing import Any

from puna.formats.checkpoint.meta.archive import read_table
from puna.pipeline.errors import CheckpointError

LIMITS = {
    resource.RLIMIT_AS: 2**30,
    resource.RLIMIT_CPU: 60,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_NOFILE: 64,
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_CORE: 0,
}


def main() -> None:
    """Print {"tensors": ...} or {"error": ...}."""
    confine_self()
    print(json.dumps(answer()))


def confine_self() -> None:
    """Set resource limits irrevocably."""
    for kind, limit in LIMITS.items():
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # Some systems lack some limits; the others hold.
            print(f"no limit {kind}", file=sys.stderr)


def answer() -> dict[str, Any]:
    """Parse the file on standard input."""
    try:
        with open(0, "rb", closefd=False) as file:
            return {"tensors": read_table(file)}
    except CheckpointError as error:
        return {"error": {"given": error.given, "expected": error.expected, "hint": error.hint}}
    except MemoryError:
        return {"error": {"given": "its directory needs more than 1 GiB of memory", "expected": "", "hint": ""}}
