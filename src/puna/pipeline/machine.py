"""The memory of this machine in bytes, within the limit of a container. Accelerators do not count."""

import os
import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
# Files with the memory limit of a container, in control groups of version 2 and 1; missing on other systems.
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine_memory() -> int:
    """Return the total memory of the machine or the container."""
    limits = [int(text) for text in map(_read, LIMITS) if text.isdecimal()]  # "max" stands for no limit.
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *limits])


def free_memory() -> int:
    """Return the unused memory; cached files count as unused."""
    available = re.search(r"^MemAvailable: +(\d+) kB$", _read(MEMINFO), re.MULTILINE)
    return min(machine_memory(), int(available[1]) * 1024) if available else machine_memory()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
