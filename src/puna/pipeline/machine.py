"""This machine -> the bytes of memory that a process may fill, a container's limit counted in.

Knows nothing of an accelerator's memory.
"""

import os
import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
# Where a container finds what it is allowed, in control groups of version 2 and 1; neither is there on other systems.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine_memory() -> int:
    """Return all the memory that there is for this process and those beside it."""
    limits = [int(text) for text in map(_read, LIMITS) if text.isdecimal()]  # "max" where there is none.
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def free_memory() -> int:
    """Return how much of it is not in use, as far as the system tells; cached files don't count as use."""
    available = re.search(r"^MemAvailable: +(\d+) kB$", _read(MEMINFO), re.MULTILINE)
    return min(machine_memory(), int(available[1]) * 1024) if available else machine_memory()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
