"""Training by Puna beside TRL with peft: tokens/s and memory, on the same weights and tokens, in one run, in turns.

    python benchmarks/train.py --peer PYTHON --tasks full lora distill labels --write docs/results/train.md

PYTHON is that of an environment with torch, transformers, peft and trl. Each contestant is a process of its own that
takes a step when it is told to (train_peers.py). All examples are of one length, so that the peer, which needs
flash-attn for batches without padding, has nothing to pad: its best case. The first step warms up and is not counted.
Memory is the most that the process held resident, with its libraries, and beyond what these took.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZES = {
    "tiny": {"dim": 64, "hidden_dim": 128, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "vocab_size": 640},
    "135m": {"dim": 576, "hidden_dim": 1536, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3, "vocab_size": 49_152},
    "1b": {"dim": 2048, "hidden_dim": 8192, "num_layers": 16, "num_heads": 32, "num_kv_heads": 8,
           "vocab_size": 128_256},
    "8b": {"dim": 4096, "hidden_dim": 14_336, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8,
           "vocab_size": 128_256},
}  # fmt: skip
TASKS = {
    "full": "Fine-tuning all weights",
    "lora": "LoRA",
    "distill": "Distillation with the teacher in memory, on both sides",
    "labels": "Distillation from labels, beside GKD with its teacher in memory",
}
CONTESTANTS = ("puna", "trl", "puna, recomputing", "trl, recomputing")


class Contestant:
    """A process that holds a model and takes steps."""

    def __init__(self, name: str, task: str, told: argparse.Namespace):
        settings = {
            "task": task,
            "widths": SIZES[told.size],
            "context": told.context,
            "batch": told.batch,
            "threads": told.threads,
            "device": told.device,
            "recomputes": "recomputing" in name,
        }
        python = sys.executable if name.startswith("puna") else told.peer
        environment = {**os.environ, "OMP_NUM_THREADS": str(told.threads), "GOMP_SPINCOUNT": "2000"}
        environment["THP_MEM_ALLOC_ENABLE"] = "1"  # as `puna` sets it; the peer gets the same
        command = [python, str(HERE / "train_peers.py"), name.split(",")[0], json.dumps(settings)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self.about = self._answer()["ready"]

    def step(self) -> dict[str, float]:
        """Return the seconds of a step, its processor time and loss, and the memory so far."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"'):
                return json.loads(line)
        raise SystemExit(f"a contestant ended: {self.process.wait()}")


def measure(task: str, told: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Let the contestants take steps in turns; return what each counted one took."""
    contestants = {name: Contestant(name, task, told) for name in told.contestants}
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    try:
        for turn in range(told.rounds + 1):
            for name, contestant in contestants.items():
                taken = contestant.step() | {"about": contestant.about}
                print(task, name, taken, file=sys.stderr, flush=True)
                steps[name] += [taken] if turn else []
    finally:
        for contestant in contestants.values():
            contestant.end()
    return steps


def rows(task: str, steps: dict[str, list[dict[str, float]]], told: argparse.Namespace) -> Iterator[str]:
    """Yield a table's lines: medians, and medians of the ratios of neighbouring steps."""
    tokens = told.batch * told.context
    yield f"\n## {TASKS[task]}\n"
    yield "| | tokens/s | of processor time | memory | beyond libraries | loss, step 2 |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, taken in steps.items():
        rate = tokens / statistics.median(step["seconds"] for step in taken)
        busy = tokens * told.threads / statistics.median(step["processor"] for step in taken)
        last = taken[-1]
        memory = f"{last['peak'] / 2**20:,.0f} MiB | {(last['peak'] - last['before']) / 2**20:,.0f} MiB"
        yield f"| {name} | {rate:,.1f} | {busy:,.1f} | {memory} | {taken[0]['loss']:.3f} |"
    for name, own in [(name, name.replace("trl", "puna")) for name in steps if name.startswith("trl")]:
        if own not in steps:
            continue
        pairs = list(zip(steps[own], steps[name], strict=True))
        faster = statistics.median(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
        busy = statistics.median(theirs["processor"] / ours["processor"] for ours, theirs in pairs)
        ours, theirs = pairs[-1]
        whole = ours["peak"] / theirs["peak"]
        beyond = (ours["peak"] - ours["before"]) / (theirs["peak"] - theirs["before"])
        yield f"| **Puna / {name}** | **{faster:.2f}** | **{busy:.2f}** | **{whole:.2f}** | **{beyond:.2f}** | |"
    if told.peak_tflops:
        widths = SIZES[told.size]
        taken = statistics.median(step["seconds"] for step in steps["puna"])
        share = flops(task, widths, told.context) * tokens / taken / (told.peak_tflops * 1e12)
        yield f"\nPuna reaches {share:.0%} of {told.peak_tflops:g} TFLOP/s."


def flops(task: str, widths: dict[str, int], context: int) -> float:
    """Return the FLOPs of a token: 6 a parameter of a product, 4 where it is frozen, and attention."""
    dim, head = widths["dim"], widths["dim"] // widths["num_heads"]
    layer = 2 * dim * head * (widths["num_heads"] + widths["num_kv_heads"]) + 3 * dim * widths["hidden_dim"]
    forward = 2 * (widths["num_layers"] * layer + dim * widths["vocab_size"])
    forward += 2 * widths["num_layers"] * dim * context
    return forward * (2 if task == "lora" else 3)


def report(told: argparse.Namespace) -> Iterator[str]:
    """Measure, and yield the lines of the page."""
    widths = ", ".join(f"{name} {value:,}" for name, value in SIZES[told.size].items())
    yield f"# Training: {datetime.date.today()}, {told.threads} threads, {told.size}\n"
    yield (
        f"Random weights ({widths}), {told.batch} examples of {told.context:,} tokens a step, bfloat16 with float32 "
        f"masters (adapters: rank 16, all matrices, over bfloat16); medians of {told.rounds} steps, taken in turns.\n"
    )
    yield f"    python benchmarks/train.py {' '.join(sys.argv[1:])}"
    for task in told.tasks:
        steps = measure(task, told)
        yield from rows(task, steps, told)
        yield "\n" + "; ".join(f"{name}: {taken[0]['about']}" for name, taken in steps.items()) + "."


def main() -> None:
    """Measure what is asked for, print the page, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=sys.executable, help="the Python that has trl and peft")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--size", default="135m", choices=list(SIZES))
    parser.add_argument("--context", type=int, default=512, help="tokens of an example")
    parser.add_argument("--batch", type=int, default=4, help="examples of a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cuda, where there is one")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bfloat16, to give the share reached")
    parser.add_argument("--write", type=Path, help="Markdown file for the page")
    told = parser.parse_args()
    lines = []
    for line in report(told):
        print(line, flush=True)
        lines.append(line)
    if told.write:
        told.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
