"""A random checkpoint of a published shape: written, read once, opened, and made to generate; prints times and memory.

    python benchmarks/full_size.py /tmp/full --size 8b

Each measurement is a process of its own and begins with the files out of the page cache. "Ready" is the time from the
start of loading to the end of a first forward pass over one token, which touches every weight.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path

import torch

from puna.checkpoint.checkpoint import Checkpoint, write_checkpoint
from puna.checkpoint.source import Source, tensor_shapes
from puna.engine.local import LocalSampler
from puna.engine.options import EngineOptions
from puna.engine.sampler import SamplingParams
from puna.model.config import SIZES
from puna.tokenizer import Tokenizer, train_tokenizer

READ_BYTES = 2**24


def random_source(size: str) -> Source:
    """Return a model whose tensors are drawn as they are asked for, in bfloat16."""
    config = SIZES[size]
    shapes = tensor_shapes(config)

    def read(name: str) -> torch.Tensor:
        if len(shapes[name]) == 1:
            return torch.ones(shapes[name], dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)

    return Source("random", config, torch.bfloat16, read, _tokenizer())


def _tokenizer() -> Tokenizer:
    """Return Llama 3's own where llama-models is installed, else a small one: ids are all that is needed here."""
    try:
        import llama_models
    except ModuleNotFoundError:
        return train_tokenizer(["some words and more words"] * 2, vocab_size=520, split_digits=False)
    return Tokenizer.load(Path(llama_models.__file__).parent / "llama3" / "tokenizer.model")


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


def main() -> None:
    """Write what is not there yet, then measure each part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", default="8b", choices=sorted(SIZES))
    parser.add_argument("--part", choices=("write", "read", "generate"), help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.part == "write":
        told.directory.mkdir(parents=True)
        start = time.perf_counter()
        write_checkpoint(told.directory, random_source(told.size))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": peak}))
    elif told.part:
        drop_cache(told.directory)
        print(json.dumps(read_once(told.directory) if told.part == "read" else open_and_generate(told.directory)))
    else:
        parts = [] if told.directory.exists() else ["write"]
        for part in (*parts, "read", "generate", "read", "generate"):
            command = [sys.executable, __file__, str(told.directory), "--size", told.size, "--part", part]
            print(
                part, subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip(), flush=True
            )


if __name__ == "__main__":
    main()
