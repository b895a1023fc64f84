"""What adapters cost: many requests in one batch, spread over 0, 1, 8, 64 and 256 adapters of one base.

    python benchmarks/adapters.py FOLDER/1b-int4 --streams 256 --write docs/results/adapters.md

The base is a checkpoint of any kind (benchmarks/engine.py writes random ones); the adapters are random, of one rank, on
all seven matrices of each layer. For each number of adapters: the time to read them, what they take in memory, and the
tokens a second of requests that all generate, medians over rounds that alternate between the numbers.
"""

import argparse
import datetime
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from puna.formats.checkpoint.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from puna.formats.checkpoint.adapters.keys import PREFIX
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.checkpoint.source import tensor_shapes
from puna.inference.engine.engine import Engine
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.config import ADAPTED, LlamaConfig
from puna.model.kernels.threads import cpu_limit

COUNTS = (0, 1, 8, 64, 256)
PROMPT_TOKENS = 16


def write_adapters(folder: Path, config: LlamaConfig, rank: int, count: int) -> None:
    """Write adapters 0, 1, ...: each a name of its own for one random file, which is read anew for each."""
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        module = name.removesuffix(".weight")
        if module.endswith(ADAPTED):
            tensors[f"{PREFIX}{module}.lora_A.weight"] = (torch.randn(rank, shape[1]) * shape[1] ** -0.5).bfloat16()
            tensors[f"{PREFIX}{module}.lora_B.weight"] = (torch.randn(shape[0], rank) * 0.01).bfloat16()
    save_file(tensors, folder / WEIGHTS_NAME)
    for index in range(count):
        (folder / str(index)).mkdir()
        os.link(folder / WEIGHTS_NAME, folder / str(index) / WEIGHTS_NAME)
        (folder / str(index) / CONFIG_NAME).write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))


def load_seconds(engine: Engine, count: int) -> float:
    """Make sure that so many adapters are in memory; return what that took."""
    assert engine.adapters is not None
    begin = time.perf_counter()
    for index in range(count):
        key = engine.adapters.find(str(index))
        assert key is not None
        engine.adapters.hold(key)
        engine.adapters.load(key)
        engine.adapters.release(key)
    return time.perf_counter() - begin


def tokens_a_second(engine: Engine, count: int, streams: int, steps: int) -> float:
    """Return how fast requests generate together, each with the next adapter, once all have begun."""
    for index in range(streams):
        prompt = random.choices(range(1000, 90_000), k=PROMPT_TOKENS)
        adapter = str(index % count) if count else ""
        engine.submit(prompt, SamplingParams(max_tokens=1000), adapter=adapter)
    begun: set[int] = set()
    while len(begun) < streams:
        begun |= {request for request, _ in engine.step()}
    begin = time.perf_counter()
    for _ in range(steps):
        assert len(engine.step()) == streams
    seconds = time.perf_counter() - begin
    for request in begun:
        engine.abort(request)
    engine.step()
    return streams * steps / seconds


def rows(speeds: dict[int, list[float]], loads: dict[int, float], bytes_each: int) -> Iterator[str]:
    """Yield the table."""
    yield "| adapters | tokens/s | of the base's | memory | read in |"
    yield "|---:|---:|---:|---:|---:|"
    base = statistics.median(speeds[0])
    for count, each in speeds.items():
        speed = statistics.median(each)
        memory, load = f"{count * bytes_each / 2**20:,.0f} MiB", f"{loads[count]:.2f} s"
        yield f"| {count} | {speed:,.0f} | {speed / base:.0%} | {memory} | {load} |"


def main() -> None:
    """Measure and print, and write if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--write", type=Path, help="Markdown file for the report")
    told = parser.parse_args()
    checkpoint, counts = Checkpoint.open(told.base), sorted({0, *told.counts})
    with tempfile.TemporaryDirectory(dir=told.base.parent) as name:
        write_adapters(Path(name), checkpoint.config, told.rank, max(counts))
        cache_tokens = told.streams * (PROMPT_TOKENS + told.steps + 64)
        options = EngineOptions(told.streams, 1024, cache_tokens, adapters=Path(name), adapter_bytes=64 << 30)
        engine = Engine(checkpoint.load(), checkpoint.tokenizer(), options=options)
        engine.tokenizer.is_special = lambda _: True  # type: ignore[method-assign]  # any id decodes to something
        loads = {count: load_seconds(engine, count) for count in counts}
        assert engine.adapters is not None
        bytes_each = engine.adapters.loaded_bytes // max(1, engine.adapters.num_loaded)
        speeds: dict[int, list[float]] = {count: [] for count in counts}
        for turn in range(told.rounds + 1):
            for count in counts:
                speed = tokens_a_second(engine, count, told.streams, told.steps)
                print(f"{turn}/{told.rounds} {count} adapters: {speed:.1f} tokens/s", file=sys.stderr)
                if turn:  # the first round only warms up
                    speeds[count].append(speed)
    head = (
        f"# Adapters: {datetime.date.today()}, {cpu_limit()} threads\n\n"
        f"{told.streams} requests that generate together, adapters of rank {told.rank} on all matrices "
        f"of {told.base.name}; medians of {told.rounds} rounds; "
        f"`python benchmarks/adapters.py FOLDER/{told.base.name} --streams {told.streams} --rank {told.rank}`.\n"
    )
    report = "\n".join((head, *rows(speeds, loads, bytes_each)))
    print(report)
    if told.write:
        told.write.write_text(report + "\n")


if __name__ == "__main__":
    main()
