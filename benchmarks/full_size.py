"""A random checkpoint of a published shape: written, read once, opened, and made to generate; prints times and memory.

    python benchmarks/full_size.py /tmp/full --size 8b --form int4

Each measurement is a process of its own and begins with the files out of the page cache (or, with --cached, in it).
"Ready" is the time from the start of loading, Python and torch being there, to the end of a first forward pass over
one token, which touches every weight.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from random_models import CHECKPOINT_FORMS, prepare

from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.inference.engine.local import LocalSampler
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.config import SIZES
from puna.model.kernels.native import shared_kernels

READ_BYTES = 2**24


def drop_cache(directory: Path) -> None:
    """Let the system forget the files' contents, so that the next reader reads the disk."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(directory: Path) -> dict[str, float]:
    """Read every file from end to end, and return seconds and bytes."""
    start, total, buffer = time.perf_counter(), 0, bytearray(READ_BYTES)
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return {"seconds": time.perf_counter() - start, "bytes": total}


def open_and_generate(directory: Path) -> dict[str, float]:
    """Open, load, run one token, then generate; return times, speed and the peak of resident memory."""
    shared_kernels()  # Compiled once for a machine.
    start = time.perf_counter()
    checkpoint = Checkpoint.open(directory)
    sampler = LocalSampler.open(directory, options=EngineOptions(max_batch=1, max_context=2048))
    loaded = time.perf_counter() - start
    ids = sampler.tokenizer.encode("The shop opens at nine.")
    sampler.complete([ids[:1]], SamplingParams(max_tokens=1, temperature=0.0))
    ready = time.perf_counter() - start
    begun = time.perf_counter()
    done = sampler.complete([ids], SamplingParams(max_tokens=16, temperature=0.0))[0]
    seconds = time.perf_counter() - begun
    weights = sum(stored.end - stored.start for stored in checkpoint.layout.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "loaded_seconds": loaded, "ready_seconds": ready, "tokens_per_second": len(done.ids) / seconds,
        "peak_bytes": peak, "weights_bytes": weights, "peak_over_weights": peak / weights,
    }  # fmt: skip


def measure(directory: Path, part: str, *, is_cached: bool = False) -> dict[str, float]:
    """Carry out one part in a process of its own."""
    command = [sys.executable, __file__, str(directory), "--part", part, *(["--cached"] if is_cached else [])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    """Write what is not there yet, then measure reading and loading twice, by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the random models are kept")
    parser.add_argument("--size", default="8b", choices=sorted(SIZES))
    parser.add_argument("--form", default="bf16", choices=CHECKPOINT_FORMS)
    parser.add_argument("--cached", action="store_true", help="read the files before each measurement")
    parser.add_argument("--part", choices=("read", "generate"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.part:
        read_once(told.directory) if told.cached else drop_cache(told.directory)
        print(json.dumps(read_once(told.directory) if told.part == "read" else open_and_generate(told.directory)))
        return
    start = time.perf_counter()
    path = prepare(told.directory, told.size, told.form)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("write", json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": peak}), flush=True)
    for part in ("read", "generate", "read", "generate"):
        print(part, json.dumps(measure(path, part, is_cached=told.cached)), flush=True)


if __name__ == "__main__":
    main()
