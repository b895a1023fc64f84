"""Regular expressions and names on standard input -> the matching names, one line of JSON per expression.

An isolated process started by patterns.py, with the standard library only. Memory and time are bounded, since the
expressions come from untrusted files.
"""

import json
import re
import resource
import sys
from contextlib import suppress

MEMORY_BYTES = 512 * 2**20
CPU_SECONDS = 3


def main() -> None:
    """Answer every expression with {"matches": {name: group idx}} or {"error": text}."""
    asked = json.load(sys.stdin)
    for kind, most in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CPU, CPU_SECONDS)):
        with suppress(ValueError, OSError):  # a stricter limit of the system stands
            resource.setrlimit(kind, (most, most))
    for method, text in asked["expressions"]:
        try:
            search = getattr(re.compile(text), method)
            matches = {name: match.groupdict().get("idx") for name in asked["names"] if (match := search(name))}
        except (re.error, RecursionError, MemoryError, OverflowError) as error:
            print(json.dumps({"error": str(error) or type(error).__name__}), flush=True)
        else:
            print(json.dumps({"matches": matches}), flush=True)


if __name__ == "__main__":
    main()
