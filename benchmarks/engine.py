"""Puna's engine beside llama.cpp, OpenVINO GenAI and transformers: the same random weights, in one run, alternating.

    python benchmarks/engine.py /tmp/bench --size 1b --kinds 4bit --rounds 5 --write docs/results/engine.md

Takes whichever peers are installed (`pip install -e '.[bench]'`). Writes the model once, in each program's own form,
into the folder given. Each contestant is a process that stays; only one of them computes at a time, each measures the
same before the next measurement comes. The table has medians over the rounds; a ratio is the median of the rounds' own
ratios, since a shared machine is not equally fast in all. Its limits (hardware.py) are measured in the same run: how
fast memory is read before and after each decoding, whose share is of the faster of the two, and products a second.
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
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from full_size import measure
from hardware import Hardware
from random_models import decoded_bytes, prepare

from puna.model.kernels.threads import cpu_limit

MODULES = {"llama.cpp": "llama_cpp", "openvino": "openvino_genai", "transformers": "transformers"}
# Contestants of each kind: (program, form of the weights).
KINDS: dict[str, list[tuple[str, str]]] = {
    "4bit": [("puna", "int4"), ("llama.cpp", "Q4_0"), ("llama.cpp", "Q4_K_M"), ("openvino", "Q4_0")],
    "8bit": [("puna", "int8"), ("llama.cpp", "Q8_0"), ("openvino", "Q8_0")],
    "16bit": [("puna", "bf16"), ("llama.cpp", "F16"), ("transformers", "bf16")],
}
DECODE, STREAMS = "decode", "16 streams"
MEASURES: dict[str, dict[str, Any]] = {
    "prefill 512": {"measure": "prefill", "tokens": 512},
    "prefill 2048": {"measure": "prefill", "tokens": 2048},
    DECODE: {"measure": "decode", "tokens": 32, "context": 128},
    STREAMS: {"measure": "streams", "streams": 16, "context": 256, "tokens": 128},
}
# Puna alone: shares, not speeds.
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "ready": {},
    "cached": {
        "cached": {"measure": "cached", "tokens": 2000, "context": 2032},
        "uncached": {"measure": "prefill", "tokens": 2032},
    },
    "overhead": {"overhead": {"measure": "overhead", "streams": 16, "context": 256, "tokens": 64}},
}


@dataclass
class Contestant:
    """A running program and what it took, in seconds, round by round."""

    name: str
    process: subprocess.Popen[str]
    decoded_bytes: int
    about: str = ""
    times: dict[str, list[float]] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)

    def ask(self, label: str, told: dict[str, Any]) -> None:
        assert self.process.stdin
        print(json.dumps(told), file=self.process.stdin, flush=True)
        self.times.setdefault(label, []).append(self.answer()["seconds"])

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with status {self.process.wait()}")

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def speed(self, label: str) -> float:
        """Tokens a second: of the prompt, or of what is generated."""
        return num_tokens(label) / statistics.median(self.times[label])

    def times_as_fast_as(self, other: "Contestant", label: str) -> float:
        pairs = zip(other.times[label], self.times[label], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def share_of_bandwidth(self) -> float:
        """The bytes of the weights that decoding reads, of those that could be read in the same time."""
        rounds = zip(self.times[DECODE], self.bandwidths, strict=True)
        return statistics.median(num_tokens(DECODE) * self.decoded_bytes / (time * speed) for time, speed in rounds)


def num_tokens(label: str) -> int:
    return MEASURES[label]["tokens"] * MEASURES[label].get("streams", 1)


def start(folder: Path, size: str, program: str, form: str, threads: int) -> Contestant:
    """Start a contestant and wait until it has loaded."""
    path = prepare(folder, size, form)
    worker = Path(__file__).with_name("engine_peers.py")
    # Each as its users have it: `puna` sets this, and llama.cpp, whose own threads are OpenMP's, is slower with it.
    spinning = {"GOMP_SPINCOUNT": "2000"} if program == "puna" else {}
    process = subprocess.Popen(
        [sys.executable, str(worker), program, str(path), str(threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)} | spinning,
    )  # fmt: skip
    contestant = Contestant(f"{program} {form}", process, decoded_bytes(path))
    contestant.about = contestant.answer()["ready"]
    return contestant


def run_round(contestants: list[Contestant], measures: Collection[str], own: Collection[str], limits: Hardware) -> None:
    """Ask every contestant for every measurement, and Puna, the first, for its own."""
    for label in measures:
        for contestant in contestants:
            before = limits.read_speed() if label == DECODE else 0.0
            contestant.ask(label, MEASURES[label])
            if label == DECODE:
                contestant.bandwidths.append(max(before, limits.read_speed()))
            print(f"{contestant.name}: {label} {contestant.times[label][-1]:.2f} s", file=sys.stderr)
    for name in own:
        for label, what in OWN[name].items():
            contestants[0].ask(label, what)


def rows(contestants: list[Contestant], measures: Collection[str]) -> Iterator[str]:
    """Yield a Markdown table: tokens/s and the ratios of Puna's to the others'."""
    has_decode = DECODE in measures
    last = ["decode, share of the bandwidth"] if has_decode else []
    yield "| | " + " | ".join([*(f"{label}, tokens/s" for label in measures), *last]) + " |"
    yield "|---|" + "---:|" * (len(measures) + has_decode)
    for contestant in contestants:
        speeds = [f"{contestant.speed(label):,.1f}" for label in measures]
        shares = [f"{contestant.share_of_bandwidth():.0%}"] if has_decode else []
        yield f"| {contestant.name} | {' | '.join([*speeds, *shares])} |"
    ours, others = contestants[0], contestants[1:]
    for other in others:
        ratios = [f"**{ours.times_as_fast_as(other, label):.2f}**" for label in measures]
        yield f"| **Puna / {other.name}** | {' | '.join([*ratios, *([''] * has_decode)])} |"


def own_sentences(ours: Contestant, own: Collection[str]) -> Iterator[str]:
    """Yield what Puna's own measurements gave."""
    median = {label: statistics.median(ours.times[label]) for name in own for label in OWN[name]}
    if "cached" in own:
        share = median["cached"] / median["uncached"]
        yield f"First token with 2,000 of 2,032 prompt tokens cached: {share:.1%} of the time without."
    if "overhead" in own:
        yield f"Everything but the kernels: {median['overhead']:.1%} of 16 streams' time."


def ready_sentence(path: Path, num_rounds: int) -> str:
    """Return how long loading takes beside reading the files once, with them on the disk and in the page cache."""
    parts = []
    for is_cached in (False, True):
        reads, loads = ([] for _ in range(2))
        for _ in range(num_rounds):
            reads.append(measure(path, "read", is_cached=is_cached)["seconds"])
            loads.append(measure(path, "generate", is_cached=is_cached))
        times = statistics.median(load["ready_seconds"] / read for load, read in zip(loads, reads, strict=True))
        ready, read = statistics.median(load["ready_seconds"] for load in loads), statistics.median(reads)
        where = "page cache" if is_cached else "disk"
        parts.append(f"from the {where} {ready:.1f} s ({times:.2f} times the {read:.1f} s of reading the files once)")
    return f"Ready {' and '.join(parts)}; at its peak {loads[-1]['peak_over_weights']:.2f} of the weights in memory."


def compare(told: argparse.Namespace, kind: str) -> Iterator[str]:
    """Run one kind's contestants and yield its part of the report."""
    threads, limits = cpu_limit(), Hardware(cpu_limit())
    named = [each for each in KINDS[kind] if each[0] == "puna" or (each[0] in told.peers and _is_installed(each[0]))]
    named = [(program, form) for program, form in named if f"{program} {form}" not in told.without]
    # Before anything else has mapped the files: what is mapped stays in the page cache.
    ready = [ready_sentence(prepare(told.folder, told.size, named[0][1]), 3)] if "ready" in told.own else []
    contestants = [start(told.folder, told.size, program, form, threads) for program, form in named]
    products = []
    for turn in range(told.rounds + 1):
        print(f"{kind}, round {turn} of {told.rounds}", file=sys.stderr)
        products.append((limits.int8_speed(), limits.bfloat16_speed()))
        has_streams = 0 < turn <= told.stream_rounds
        measures = [label for label in told.measures if label != STREAMS or has_streams]
        run_round(contestants, measures, told.own, limits)
        if turn == 0:  # The first round only warms up.
            for contestant in contestants:
                contestant.times.clear()
                contestant.bandwidths.clear()
    yield f"## {told.size}, {kind}\n"
    yield from rows(contestants, told.measures)
    int8, bfloat16 = (statistics.median(speeds) / 1e9 for speeds in zip(*products, strict=True))
    yield ""
    if DECODE in told.measures:
        read = sorted(speed / 1e9 for contestant in contestants for speed in contestant.bandwidths)
        yield f"Memory was read at {read[0]:.1f} to {read[-1]:.1f} GB/s, {statistics.median(read):.1f} in the middle."
    yield f"The processor multiplies int8 at {int8:,.0f} Gop/s, torch bfloat16 at {bfloat16:,.0f}."
    yield from ready
    yield from own_sentences(contestants[0], told.own)
    builds = {each.name.partition(" ")[0]: each.about for each in contestants}
    yield "\n" + "; ".join(f"{program}: {about}" for program, about in builds.items()) + ".\n"
    for contestant in contestants:
        contestant.end()


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
    parser.add_argument("--peers", nargs="*", default=list(MODULES), choices=list(MODULES), help="if installed")
    parser.add_argument("--without", nargs="*", default=[], help="contestants to leave out, such as 'llama.cpp Q4_K_M'")
    parser.add_argument("--measures", nargs="+", default=list(MEASURES), choices=list(MEASURES))
    parser.add_argument("--own", nargs="+", default=list(OWN), choices=list(OWN), help="of Puna alone")
    parser.add_argument("--no-own", dest="own", action="store_const", const=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stream-rounds", type=int, default=1, help="of 16 streams, which take minutes a round")
    parser.add_argument("--write", type=Path, help="Markdown file for the report")
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    streams = f" (16 streams: {told.stream_rounds}, without a warm-up)" if STREAMS in told.measures else ""
    command = f"python benchmarks/engine.py FOLDER --size {told.size} --kinds {' '.join(told.kinds)}"
    head = (
        f"# Engine: {datetime.date.today()}, {cpu_limit()} threads of {_processor()}\n\n"
        f"Random weights; medians of {told.rounds} rounds{streams}; `{command} --rounds {told.rounds}`.\n"
    )
    report = "\n".join((head, *(line for kind in told.kinds for line in compare(told, kind))))
    print(report)
    if told.write:
        told.write.write_text(report + "\n")


if __name__ == "__main__":
    main()
