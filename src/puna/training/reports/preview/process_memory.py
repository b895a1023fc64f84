"""Current and peak memory of the process: resident memory on a CPU, allocated memory on a GPU.

Functions return None on systems without /proc.
"""

import ctypes
import re
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5), of clear_refs


def held_bytes(device: torch.device) -> int | None:
    """Return the current memory in bytes, after freeing unused memory of the allocator."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(device)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return _status("VmRSS")


def peak_bytes(device: torch.device) -> int | None:
    """Return the peak memory in bytes since `forget_peak`, or since the process started if resets are unsupported."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def forget_peak(device: torch.device) -> bool:
    """Reset the peak memory; return whether the system supports resets."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
