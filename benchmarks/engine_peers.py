"""One contestant of engine.py in a process of its own: JSON requests on standard input -> seconds on standard output.

    {"measure": "prefill", "tokens": 512}                              time to the first token
    {"measure": "decode", "tokens": 64, "context": 32}                 time for so many further tokens of one request
    {"measure": "streams", "streams": 16, "context": 256, "tokens": 128}   time for all of them together

Each contestant is told how many threads it has, takes token ids and chooses greedily.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

SEED = 12_345


def new_prompt(length: int, seed: int) -> list[int]:
    """Return ids that no earlier measurement has used, so that no cache of prefixes helps."""
    value, ids = SEED + seed * 7919, []
    for _ in range(length):
        value = (value * 1_103_515_245 + 12_345) % 2**31
        ids.append(1000 + value // 64 % 90_000)
    return ids


class Contestant(Protocol):
    """What is measured of each; `about` says which build of it this is."""

    about: str

    def prefill(self, prompt: list[int]) -> float: ...

    def decode(self, prompt: list[int], num_tokens: int) -> float: ...

    def streams(self, prompts: list[list[int]], num_tokens: int) -> float: ...


class Runs:
    """What is measured of a program that tells when the first tokens and when all have come."""

    def _run(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        """Return when every request has had its first token and when all have ended, in seconds."""
        raise NotImplementedError

    def prefill(self, prompt: list[int]) -> float:
        return self._run([prompt], 1)[0]

    def decode(self, prompt: list[int], num_tokens: int) -> float:
        first, end = self._run([prompt], num_tokens + 1)
        return end - first

    def streams(self, prompts: list[list[int]], num_tokens: int) -> float:
        return self._run(prompts, num_tokens)[1]


class Puna(Runs):
    """The engine with its scheduler, cache and sampling, as `puna serve` drives it."""

    def __init__(self, path: Path, threads: int):
        import torch
        from random_models import wide_tokenizer

        from puna.formats.checkpoint.checkpoint import Checkpoint
        from puna.inference.engine.engine import Engine
        from puna.inference.engine.options import EngineOptions
        from puna.model.kernels.native import shared_kernels

        torch.set_num_threads(threads)
        model = Checkpoint.open(path).load()
        tokenizer = wide_tokenizer(model.config.vocab_size)
        # Any id decodes to something: what the text would be is not measured.
        tokenizer.is_special = lambda _: True  # type: ignore[method-assign]
        options = EngineOptions(max_batch=32, max_context=8192, cache_tokens=2**15)
        self.engine = Engine(model, tokenizer, options=options)
        self.computing = 0.0
        self._time_runner()
        kernels = shared_kernels()
        self.about = kernels.instructions if kernels else "torch, for lack of a compiler"

    def _time_runner(self) -> None:
        """Sum up what the runner takes; the rest of a step is the engine's own."""
        runner = self.engine.runner

        def timed(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                start = time.perf_counter()
                try:
                    return function(*arguments)
                finally:
                    self.computing += time.perf_counter() - start

            return call

        runner.forward, runner.logits = timed(runner.forward), timed(runner.logits)  # type: ignore[method-assign]

    def _run(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        from puna.inference.engine.sampling.params import SamplingParams

        start, first = time.perf_counter(), 0.0
        waiting = {self.engine.submit(prompt, SamplingParams(max_tokens=num_tokens)) for prompt in prompts}
        while self.engine.has_work:
            waiting -= {request for request, _ in self.engine.step()}
            if not waiting and not first:
                first = time.perf_counter() - start
        return first, time.perf_counter() - start

    def cached(self, prompt: list[int], num_cached: int) -> float:
        """Time the first token of a prompt whose first `num_cached` tokens were computed before."""
        self._run([prompt[:num_cached]], 1)
        return self._run([prompt], 1)[0]

    def overhead(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Return the share of a run that is not the runner's."""
        self.computing = 0.0
        total = self._run(prompts, num_tokens)[1]
        return 1 - self.computing / total


class LlamaCpp:
    """llama.cpp by its own functions: no server, no sampling, no copying of logits."""

    def __init__(self, path: Path, threads: int):
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 2**14, 2048, 512, 16
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(2048, 0, 1)
        features = re.findall(r"(\w+) = 1", llama_cpp.llama_print_system_info().decode())
        self.about = f"llama-cpp-python {llama_cpp.__version__} with {', '.join(features)}"

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """Compute (token, position, sequence, wants logits) for each entry."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for index, (token, position, sequence, wants) in enumerate(entries):
            batch.token[index], batch.pos[index], batch.logits[index] = token, position, wants
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        status = self.api.llama_decode(self.context, batch)
        assert status == 0, f"llama_decode gave {status}"
        self.api.llama_get_logits_ith(self.context, len(entries) - 1)  # Waits until they are there.

    def _read(self, prompts: list[list[int]]) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        entries = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for start in range(0, len(entries), 2048):
            self._decode(entries[start : start + 2048])

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self._read([prompt])
        return time.perf_counter() - start

    def decode(self, prompt: list[int], num_tokens: int) -> float:
        self._read([prompt])
        start = time.perf_counter()
        for step in range(num_tokens):
            self._decode([(1000 + step, len(prompt) + step, 0, True)])
        return time.perf_counter() - start

    def streams(self, prompts: list[list[int]], num_tokens: int) -> float:
        start = time.perf_counter()
        self._read(prompts)
        for step in range(num_tokens - 1):
            self._decode([(1000 + step, len(prompt) + step, index, True) for index, prompt in enumerate(prompts)])
        return time.perf_counter() - start


class OpenVino:
    """OpenVINO GenAI on the same GGUF file; streams through its continuous batching."""

    def __init__(self, path: Path, threads: int):
        import openvino
        import openvino_genai

        self.openvino, self.genai = openvino, openvino_genai
        self.about = openvino_genai.__version__
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_batched_tokens = 2, 2048
        scheduler.enable_prefix_caching = False
        self.pipeline = openvino_genai.LLMPipeline(
            str(path), "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
        )

    def _generate(self, prompts: list[list[int]], num_tokens: int) -> Any:
        import numpy

        config = self.genai.GenerationConfig(max_new_tokens=num_tokens, ignore_eos=True, do_sample=False)
        ids = numpy.array(prompts, dtype=numpy.int64)
        mask = self.openvino.Tensor(numpy.ones_like(ids))
        return self.pipeline.generate(self.genai.TokenizedInputs(self.openvino.Tensor(ids), mask), config)

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self._generate([prompt], 1)
        return time.perf_counter() - start

    def decode(self, prompt: list[int], num_tokens: int) -> float:
        metrics = self._generate([prompt], num_tokens + 1).perf_metrics
        return metrics.get_tpot().mean / 1000 * num_tokens

    def streams(self, prompts: list[list[int]], num_tokens: int) -> float:
        start = time.perf_counter()
        self._generate(prompts, num_tokens)
        return time.perf_counter() - start


class Transformers(Runs):
    """transformers in bfloat16: one forward pass a step."""

    def __init__(self, path: Path, threads: int):
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        self.about = f"{transformers.__version__} with torch {torch.__version__}"
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()

    def _run(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        torch, start = self.torch, time.perf_counter()
        with torch.inference_mode():
            out = self.model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            first = time.perf_counter() - start
            for _ in range(num_tokens - 1):
                ids = out.logits[:, -1].argmax(-1, keepdim=True)
                out = self.model(ids, past_key_values=out.past_key_values, use_cache=True)
        return first, time.perf_counter() - start


KINDS = {"puna": Puna, "llama.cpp": LlamaCpp, "openvino": OpenVino, "transformers": Transformers}


def answer(contestant: Any, told: dict[str, Any], seed: int) -> float:
    """Carry out one measurement and return seconds (or a share)."""
    tokens = told["tokens"]
    if told["measure"] == "prefill":
        return contestant.prefill(new_prompt(tokens, seed))
    if told["measure"] == "decode":
        return contestant.decode(new_prompt(told["context"], seed), tokens)
    if told["measure"] == "cached":
        return contestant.cached(new_prompt(told["context"], seed), tokens)
    prompts = [new_prompt(told["context"], seed * 100 + index) for index in range(told["streams"])]
    return getattr(contestant, told["measure"])(prompts, tokens)


def main(kind: str, path: str, threads: str) -> None:
    """Load, say so, and answer until the input ends."""
    contestant: Contestant = KINDS[kind](Path(path), int(threads))
    print(json.dumps({"ready": contestant.about}), flush=True)
    for seed, line in enumerate(sys.stdin):
        print(json.dumps({"seconds": answer(contestant, json.loads(line), seed)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
