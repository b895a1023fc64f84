"""Puna's engine beside llama.cpp, OpenVINO GenAI and transformers: the same random weights, in one run, alternating.

    python benchmarks/engine.py /tmp/bench --size 1b --kinds 4bit --rounds 5 --write docs/results/engine.md

Takes whichever peers are installed (`pip install -e '.[bench]'`). Writes the model once, in each program's own form,
into the folder given. Each contestant is a process that stays; only one of them computes at a time, each measures the
same before the next measurement comes, and the table has medians over the rounds. Two limits of the hardware are
measured in the same run: how fast memory is read, and how fast torch multiplies in bfloat16.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from full_size import random_source

from puna.checkpoint.checkpoint import Checkpoint, save_checkpoint, write_checkpoint
from puna.checkpoint.gguf.writer import write_gguf
from puna.kernels.threads import cpu_limit
from puna.model.quantized import round_linears, rounded
from puna.model.scheme import Scheme

MODULES = {"llama.cpp": "llama_cpp", "openvino": "openvino_genai", "transformers": "transformers"}
# Contestants of each kind: (program, form of the weights).
KINDS: dict[str, list[tuple[str, str]]] = {
    "4bit": [("puna", "int4"), ("llama.cpp", "Q4_0"), ("llama.cpp", "Q4_K_M"), ("openvino", "Q4_0")],
    "8bit": [("puna", "int8"), ("llama.cpp", "Q8_0"), ("openvino", "Q8_0")],
    "16bit": [("puna", "bf16"), ("llama.cpp", "F16"), ("transformers", "bf16")],
}
MEASURES: dict[str, dict[str, Any]] = {
    "prefill 512": {"measure": "prefill", "tokens": 512},
    "prefill 2048": {"measure": "prefill", "tokens": 2048},
    "decode": {"measure": "decode", "tokens": 32, "context": 128},
    "16 streams": {"measure": "streams", "streams": 16, "context": 256, "tokens": 128},
}
# Puna alone: shares, not speeds.
OWN: dict[str, dict[str, Any]] = {
    "first token, 2,000 of 2,032 cached": {"measure": "cached", "tokens": 2000, "context": 2032},
    "first token, nothing cached": {"measure": "prefill", "tokens": 2032},
    "engine's share of 16 streams": {"measure": "overhead", "streams": 16, "context": 256, "tokens": 64},
}


@dataclass
class Contestant:
    """A running program and what it took, in seconds."""

    name: str
    process: subprocess.Popen[str]
    weight_bytes: int
    times: dict[str, list[float]] = field(default_factory=dict)

    def ask(self, label: str, told: dict[str, Any]) -> None:
        assert self.process.stdin and self.process.stdout
        print(json.dumps(told), file=self.process.stdin, flush=True)
        self.times.setdefault(label, []).append(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with status {self.process.wait()}")

    def median(self, label: str) -> float:
        return statistics.median(self.times[label])


def prepare(folder: Path, size: str, form: str) -> Path:
    """Return the model in this form, written if it is not there yet."""
    path = folder / f"{size}-{form}" if form in ("bf16", "int4", "int8") else folder / f"{size}-{form}.gguf"
    if path.exists():
        return path
    print(f"writing {path.name}", file=sys.stderr)
    part = path.with_name(f"part-{path.name}")
    if form == "bf16":
        part.mkdir(parents=True)
        write_checkpoint(part, random_source(size))
    elif form in ("int4", "int8"):
        part.mkdir(parents=True)
        _write_quantized(prepare(folder, size, "bf16"), part, 4 if form == "int4" else 8)
    elif form == "Q4_K_M":
        _quantize_by_llama_cpp(prepare(folder, size, "F16"), part)
    else:
        write_gguf(part, random_source(size), kind=form, name="random", template="")  # type: ignore[arg-type]
    part.rename(path)
    return path


def _write_quantized(source: Path, path: Path, bits: int) -> None:
    """Layers in `bits`, in groups of 128; embeddings and head in 8 bits, one scale a row."""
    checkpoint = Checkpoint.open(source)
    model = checkpoint.load()
    round_linears(model, Scheme("int", bits, 128))
    model.embed_tokens = rounded(model.embed_tokens, Scheme("int", 8))  # type: ignore[assignment]
    if model.lm_head is not None:
        model.lm_head = rounded(model.lm_head, Scheme("int", 8))  # type: ignore[arg-type]
    save_checkpoint(path, model, checkpoint.tokenizer(), like=checkpoint.source())


def _quantize_by_llama_cpp(source: Path, path: Path) -> None:
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params) == 0


def start(folder: Path, size: str, program: str, form: str, threads: int) -> Contestant:
    """Start a contestant and wait until it has loaded."""
    path = prepare(folder, size, form)
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    worker = Path(__file__).with_name("engine_peers.py")
    process = subprocess.Popen(
        [sys.executable, str(worker), program, str(path), str(threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    contestant = Contestant(f"{program} {form}", process, sum(file.stat().st_size for file in files))
    contestant._answer()
    return contestant


def memory_bandwidth(threads: int) -> float:
    """Return the bytes a second that all threads read together, the best of several times."""
    parts = torch.ones(threads, 2**26, dtype=torch.int64)
    best = 0.0
    for _ in range(5):
        workers = [threading.Thread(target=part.max) for part in parts]
        begin = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, parts.nbytes / (time.perf_counter() - begin))
    return best


def product_speed() -> float:
    """Return the bfloat16 operations a second of torch's own product, the best of several times."""
    a, best = torch.randn(2048, 2048).bfloat16(), 0.0
    for _ in range(5):
        begin = time.perf_counter()
        a @ a
        best = max(best, 2 * 2048**3 / (time.perf_counter() - begin))
    return best


def speed(label: str, seconds: float) -> float:
    """Return tokens a second: of the prompt, or of what is generated."""
    told = MEASURES[label]
    return told["tokens"] * told.get("streams", 1) / seconds


def rows(contestants: list[Contestant], measures: Collection[str], limits: dict[str, float]) -> Iterator[str]:
    """Yield a Markdown table: tokens/s and the ratios of Puna's to the others'."""
    yield "| | " + " | ".join(f"{label}, tokens/s" for label in measures) + " | decode, share of the bandwidth |"
    yield "|---|" + "---:|" * (len(measures) + 1)
    for contestant in contestants:
        speeds = [f"{speed(label, contestant.median(label)):,.1f}" for label in measures]
        read = ""
        if "decode" in measures:
            share = contestant.weight_bytes * speed("decode", contestant.median("decode")) / limits["bandwidth"]
            read = f"{share:.0%}"
        yield f"| {contestant.name} | {' | '.join(speeds)} | {read} |"
    ours, others = contestants[0], contestants[1:]
    for other in others:
        ratios = [f"{other.median(label) / ours.median(label):.2f}" for label in measures]
        yield f"| **Puna / {other.name}** | {' | '.join(f'**{ratio}**' for ratio in ratios)} | |"


def compare(told: argparse.Namespace, kind: str) -> Iterator[str]:
    """Run one kind's contestants and yield its part of the report."""
    threads, measures = cpu_limit(), {label: MEASURES[label] for label in told.measures}
    named = [(program, form) for program, form in KINDS[kind] if program == "puna" or _is_installed(program)]
    contestants = [start(told.folder, told.size, program, form, threads) for program, form in named]
    bandwidths, products = [], []
    for turn in range(told.rounds + 1):
        bandwidths.append(memory_bandwidth(threads))
        products.append(product_speed())
        for label, what in measures.items():
            for contestant in contestants:
                contestant.ask(label, what)
                print(
                    f"{turn}/{told.rounds} {contestant.name}: {label} {contestant.times[label][-1]:.2f} s",
                    file=sys.stderr,
                )
        for label, what in OWN.items():
            contestants[0].ask(label, what)
        if turn == 0:  # The first round only warms up.
            for contestant in contestants:
                contestant.times.clear()
    limits = {"bandwidth": statistics.median(bandwidths), "products": statistics.median(products)}
    yield f"## {told.size}, {kind}\n"
    yield from rows(contestants, measures, limits)
    ours = contestants[0]
    cached, uncached, share = (ours.median(label) for label in OWN)
    yield (
        f"\nMemory is read at {limits['bandwidth'] / 1e9:.1f} GB/s, torch multiplies bfloat16 at "
        f"{limits['products'] / 1e9:,.0f} GFLOP/s. First token with 2,000 of 2,032 prompt tokens cached: "
        f"{cached / uncached:.1%} of the time without. Everything but the kernels: {share:.1%} of 16 streams' time.\n"
    )
    for contestant in contestants:
        contestant.process.stdin.close()  # type: ignore[union-attr]
        contestant.process.wait(timeout=60)


def _is_installed(program: str) -> bool:
    return importlib.util.find_spec(MODULES[program]) is not None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    """Measure what is asked for, print the report, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the random models are kept")
    parser.add_argument("--size", default="1b", choices=("1b", "3b", "8b"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--measures", nargs="+", default=list(MEASURES), choices=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="Markdown file for the report")
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    head = (
        f"# Engine: {datetime.date.today()}, {cpu_limit()} threads of {_processor()}\n\n"
        f"Random weights; medians of {told.rounds} rounds; `python benchmarks/engine.py FOLDER --size {told.size} "
        f"--kinds {' '.join(told.kinds)} --rounds {told.rounds}`.\n"
    )
    report = "\n".join((head, *(line for kind in told.kinds for line in compare(told, kind))))
    print(report)
    if told.write:
        told.write.write_text(report + "\n")


if __name__ == "__main__":
    main()
