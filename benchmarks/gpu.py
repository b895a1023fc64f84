"""Puna on a GPU beside transformers and beside the device's own limits, on the same random weights in one run.

    python benchmarks/gpu.py --size 8b --write docs/results/gpu.md
    python benchmarks/gpu.py --size demo-student --prompt 128 --context 64 --tokens 24 --batches 1 4    # on a CPU

The weights are drawn on the device, in bfloat16; then their nearest float8 values take their place. Speed is that of
whole steps: Puna's engine from the plan to the chosen tokens, transformers' `generate` with its static cache. What the
device reads and multiplies at most is measured in the same run. The first round warms up and is not counted.
"""

import argparse
import datetime
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from random_models import wide_tokenizer
from transformers import LlamaConfig as Theirs
from transformers import LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

from puna.formats.checkpoint.hf.config import render_config
from puna.inference.engine.engine import Engine
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.config import SIZES, LlamaConfig, layer_shapes
from puna.model.llama import Llama
from puna.model.quantization import float8
from puna.model.quantization.float8 import Float8Linear
from puna.model.quantization.quantized import round_linears
from puna.model.quantization.scheme import FP8

# Ids that every tokenizer has; the rest of the vocabulary gets logits of zero, which are never the greatest.
NUM_IDS = 256


def random_model(config: LlamaConfig, device: torch.device) -> Llama:
    """Return a network in bfloat16 that was never anywhere but on its device."""
    with torch.device("meta"):
        model = Llama(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02, generator=generator) if parameter.dim() > 1 else parameter.fill_(1.0)
        head = model.embed_tokens if model.lm_head is None else model.lm_head
        head.get_parameter("weight")[NUM_IDS:] = 0
    return model


def prompts_for(count: int, length: int) -> list[list[int]]:
    return torch.randint(NUM_IDS, (count, length), generator=torch.Generator().manual_seed(count)).tolist()


class Puna:
    """The engine, opened anew for each model."""

    def __init__(self, model: Llama, told: argparse.Namespace):
        tokenizer = wide_tokenizer(model.config.vocab_size)
        context = max(told.context + told.tokens + max(told.batches) * told.context // 256, told.prompt) + 32
        options = {"max_batch": max(told.batches), "max_context": min(context, model.config.max_context)}
        cache_tokens = max(told.batches) * (context + 32)
        self._engine = Engine(model, tokenizer, cache_tokens=cache_tokens, dtype=torch.bfloat16, **options)

    def prefill(self, prompt: list[int]) -> float:
        return self._run([prompt], 1)[0]

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Return the median of the steps in which all were given a token."""
        # While others generate, prompts are read 256 tokens a step.
        waiting = sum(map(len, prompts)) // 256 if len(prompts) > 1 else 0
        times = self._run(prompts, num_tokens + waiting + 1)
        return statistics.median(times[-num_tokens:])

    def _run(self, prompts: list[list[int]], max_tokens: int) -> list[float]:
        """Return what each of the steps took in which all were given a token."""
        params, times = SamplingParams(max_tokens=max_tokens), []
        # A tenant of its own: nothing is found in the cache.
        tenant = str(time.perf_counter())
        for prompt in prompts:
            self._engine.submit(prompt, params, tenant=tenant)
        while self._engine.has_work:
            begin = time.perf_counter()
            chunks = self._engine.step()
            assert not any(chunk.error for _, chunk in chunks), chunks
            if len(chunks) == len(prompts):
                times.append(time.perf_counter() - begin)
        return times


class Clock(StoppingCriteria):
    """Notes when each token was there; stops nothing."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        input_ids[:, -1].tolist()  # Waits for the device.
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Transformers:
    """LlamaForCausalLM with Puna's own tensors; `generate` compiles its step on a GPU, for the static cache."""

    def __init__(self, model: Llama):
        raw = render_config(model.config, dtype=torch.bfloat16, bos_id=0, pad_id=0, stop_ids=())
        with torch.device("meta"):
            self._model = LlamaForCausalLM(Theirs(**raw)).to(torch.bfloat16)
        names = {name: name if name.startswith("lm_head") else f"model.{name}" for name in model.state_dict()}
        self._model.load_state_dict(
            {names[name]: tensor for name, tensor in model.state_dict().items()}, strict=False, assign=True
        )
        self._model.tie_weights()
        self._model.generation_config.eos_token_id = None
        inner = self._model.model
        inner.rotary_emb = type(inner.rotary_emb)(self._model.config).to(model.device)
        assert not any(tensor.is_meta for tensor in (*self._model.parameters(), *self._model.buffers()))
        self._device = model.device

    def prefill(self, prompt: list[int]) -> float:
        return self._run([prompt], 1)[0]

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        return statistics.median(self._run(prompts, num_tokens + 1)[1:])

    def _run(self, prompts: list[list[int]], max_tokens: int) -> list[float]:
        """Return what each token took, the first with its prompt."""
        ids, clock = torch.tensor(prompts, device=self._device), Clock()
        self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0,
            cache_implementation="static", stopping_criteria=StoppingCriteriaList([clock]),
        )  # fmt: skip
        return [after - before for before, after in itertools.pairwise(clock.times)]


def best(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of several times."""
    times = []
    for _ in range(10):
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limits_of(device: torch.device) -> dict[str, float]:
    """Return the bytes a second that are read and the operations a second in bfloat16 and, where they exist, float8."""
    size, width = (2**32, 8192) if device.type == "cuda" else (2**28, 1024)
    memory = torch.ones(size // 4, dtype=torch.int32, device=device)
    a = torch.randn(width, width, device=device).bfloat16()
    limits = {"bytes": size / best(memory.max, device), "bf16": 2 * width**3 / best(lambda: a @ a, device)}
    if float8.multiplies_float8(device):
        layer = Float8Linear.rounded(a)
        limits["fp8"] = 2 * width**3 / best(lambda: layer(a), device)
    return limits


def read_bytes(model: Llama, batch: int, context: int) -> int:
    """Return what a step has to read: all weights but the embeddings' other rows, keys and values."""
    config = model.config
    tensors = [x for name, x in model.state_dict().items() if config.tie_embeddings or not name.startswith("embed")]
    cached = 4 * config.num_layers * config.num_kv_heads * config.head_dim * batch * context
    return sum(tensor.nbytes for tensor in tensors) + cached


def prefill_operations(config: LlamaConfig, length: int) -> int:
    """Return a prompt's multiplications and additions, attention being causal, with one row of logits."""
    matrices = sum(rows * cols for rows, cols in layer_shapes(config).values())
    attention = 2 * length * config.num_heads * config.head_dim
    return config.num_layers * length * (2 * matrices + attention) + 2 * config.vocab_size * config.dim


def measure(told: argparse.Namespace, contestants: dict[str, Puna | Transformers]) -> dict[tuple[str, str], float]:
    """Return the median seconds of each contestant's prefill and of its steps with each batch, taken in turns."""
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(told.rounds + 1):
        for name, contestant in contestants.items():
            taken = {"prefill": contestant.prefill(prompts_for(1, told.prompt)[0])}
            for batch in told.batches:
                taken[f"{batch}"] = contestant.decode(prompts_for(batch, told.context), told.tokens)
            for label, seconds in taken.items():
                times.setdefault((name, label), []).extend([seconds] if turn else [])
    return {key: statistics.median(taken) for key, taken in times.items()}


def rows(told: argparse.Namespace, model: Llama, limits: dict[str, float], name: str, times: Any) -> Iterator[str]:
    """Yield the cells of one contestant: speeds with their shares of what the device can."""
    kind = "fp8" if "fp8" in name and "fp8" in limits else "bf16"
    seconds = times[name, "prefill"]
    share = prefill_operations(model.config, told.prompt) / seconds / limits[kind]
    yield f"{told.prompt / seconds:,.0f} ({share:.0%} of {kind})"
    for batch in told.batches:
        seconds = times[name, f"{batch}"]
        share = read_bytes(model, batch, told.context + told.tokens // 2) / seconds / limits["bytes"]
        yield f"{batch / seconds:,.1f} ({share:.0%})"


def report(told: argparse.Namespace) -> Iterator[str]:
    """Measure, and yield the lines of the report."""
    device = torch.device(told.device)
    model, limits = random_model(SIZES[told.size], device), limits_of(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    yield f"# {told.size} on {name}, {datetime.date.today()}, torch {torch.__version__}\n"
    yield (
        f"Random weights, a prompt of {told.prompt} tokens, {told.tokens} tokens behind {told.context}, medians of "
        f"{told.rounds} rounds. The device reads {limits['bytes'] / 1e9:,.0f} GB/s and multiplies "
        + ", ".join(f"{kind} at {limits[kind] / 1e12:,.2f} TFLOP/s" for kind in ("bf16", "fp8") if kind in limits)
        + ".\n"
    )
    yield "| | prefill, tokens/s | " + " | ".join(f"decode, batch {n}, tokens/s" for n in told.batches) + " |"
    yield "|---|" + "---:|" * (1 + len(told.batches))
    for group in (("Puna bf16", "transformers bf16"), ("Puna fp8",)):
        if group == ("Puna fp8",):
            round_linears(model, FP8)
        contestants = {each: Puna(model, told) if "Puna" in each else Transformers(model) for each in group}
        times = measure(told, contestants)
        for each in group:
            yield f"| {each} | {' | '.join(rows(told, model, limits, each, times))} |"
        del contestants


def main() -> None:
    """Measure what is asked for, print the report, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="8b", choices=list(SIZES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prompt whose prefill is measured")
    parser.add_argument("--context", type=int, default=512, help="tokens of the prompts behind which is decoded")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="Markdown file for the report")
    told = parser.parse_args()
    lines = []
    for line in report(told):
        print(line, flush=True)
        lines.append(line)
    if told.write:
        told.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
