"""Memory straight from the system: provided as it is written, in large pages, and let go of before its tensor ends."""

import ctypes
import mmap
from bisect import bisect_right
from pathlib import Path

import torch

MAPPINGS = Path("/proc/self/maps")


def lazy_memory(size: int) -> torch.Tensor:
    """Return zeroed bytes that the system provides as they are written."""
    return torch.frombuffer(_map(size), dtype=torch.uint8)[:size]


def huge_memory(size: int) -> torch.Tensor:
    """Do the same in pages as large as the system gives: reading through 4 KiB ones costs a tenth of the speed."""
    memory = _map(size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


def let_go(tensor: torch.Tensor) -> None:
    """Take a mapped file's bytes out of this process's memory; they come back if they are read again.

    Does nothing to any other memory, nor where the system doesn't tell what is mapped. NOTE: what was written into the
    tensor, which a private mapping keeps from the file, would be lost.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and _is_of_a_file(start, end):
        address, size = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
        ctypes.CDLL(None).madvise(address, size, ctypes.c_int(mmap.MADV_DONTNEED))


def _is_of_a_file(start: int, end: int) -> bool:
    """Whether these addresses are one mapping's of a file on a disk."""
    try:
        mappings = MAPPINGS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    # In order of their addresses: "7f00-7f80 rw-p 00000000 fe:00 3047426    /path".
    at = bisect_right(mappings, start, key=lambda line: int(line.partition("-")[0], 16)) - 1
    addresses, _, _, _, node, *_ = mappings[at].split(maxsplit=5)
    return end <= int(addresses.partition("-")[2], 16) and node != "0"


def _map(size: int) -> mmap.mmap:
    return mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
