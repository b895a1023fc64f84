"""This machine -> what no program on it can exceed: bytes read a second, products a second."""

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from puna.model.kernels.build import FLAGS, NATIVE, SOURCES, find_compiler
from puna.model.kernels.memory import huge_memory

# More than the processors' caches hold, those that a virtual machine shares with others included.
BUFFER_BYTES = 2**30
NUM_TRIES = 5
MULTIPLY_ROUNDS = 2_000_000


class Hardware:
    """Measures with all threads, the best of several times."""

    def __init__(self, num_threads: int):
        self._library = _compile()
        self._library.open_team.restype = ctypes.c_void_p
        self._library.multiply_bytes.restype = ctypes.c_int64
        self._team = ctypes.c_void_p(self._library.open_team(num_threads))
        self._buffer = huge_memory(BUFFER_BYTES).fill_(1)

    def read_speed(self) -> float:
        """Return bytes a second out of memory, in huge pages and from several places at once."""
        address, size = ctypes.c_void_p(self._buffer.data_ptr()), ctypes.c_int64(BUFFER_BYTES)
        return BUFFER_BYTES / _best(lambda: self._library.read_memory(self._team, address, size))

    def int8_speed(self) -> float:
        """Return operations a second on bytes that are there already, by the fastest instructions the kernels know."""
        rounds, done = ctypes.c_int64(MULTIPLY_ROUNDS), []
        seconds = _best(lambda: done.append(self._library.multiply_bytes(self._team, rounds)))
        return 2 * done[0] / seconds

    def bfloat16_speed(self) -> float:
        """Return operations a second of torch's own product of large matrices."""
        a = torch.randn(2048, 2048).bfloat16()
        return 2 * 2048**3 / _best(lambda: a @ a)


def _best(work: Callable[[], object]) -> float:
    """Return the least seconds of several times."""
    least = float("inf")
    for _ in range(NUM_TRIES):
        start = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - start)
    return least


def _compile() -> ctypes.CDLL:
    compiler = find_compiler()
    assert compiler, "the machine's limits need a C++ compiler"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "hardware.so"
        source = Path(__file__).with_suffix(".cpp")
        options = (*FLAGS, NATIVE, "-fvisibility=default", f"-I{SOURCES}")
        subprocess.run((compiler, *options, str(source), "-o", str(target)), check=True)
        return ctypes.CDLL(str(target))
