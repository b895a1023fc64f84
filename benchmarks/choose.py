"""How long one step's choice takes: 32 rows of a vocabulary of 128,256, for several settings; milliseconds, the median.

python benchmarks/choose.py
"""

import time
from collections.abc import Callable

import torch

from puna.inference.engine.sampling.params import SamplingParams
from puna.inference.engine.sampling.sampler import SamplingState, sample

NUM_ROWS, VOCAB_SIZE, NUM_RUNS = 32, 128_256, 15
SETTINGS = {
    "greedy": SamplingParams(),
    "temperature 1": SamplingParams(temperature=1.0),
    "temperature 0.6, top_p 0.9": SamplingParams(temperature=0.6, top_p=0.9),
    "temperature 1, top_k 40": SamplingParams(temperature=1.0, top_k=40),
    "greedy, all penalties": SamplingParams(repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5),
}


def median_ms(work: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(NUM_RUNS):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[NUM_RUNS // 2]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BV = torch.randn(NUM_ROWS, VOCAB_SIZE, generator=generator) * 2
    logits_BV[:, :: VOCAB_SIZE // 100] += 10  # As of a model, a few tokens have most of the mass.
    prompt = torch.randint(VOCAB_SIZE, (4000,), generator=generator).tolist()
    print(f"{torch.get_num_threads()} threads, {NUM_ROWS} rows, {VOCAB_SIZE:,} ids")
    for name, params in SETTINGS.items():
        rows = [SamplingState(prompt, params) for _ in range(NUM_ROWS)]
        print(f"{name:28} {median_ms(lambda rows=rows: sample(logits_BV, rows)):6.1f} ms")
    print(f"{'torch.argmax':28} {median_ms(lambda: logits_BV.argmax(-1)):6.1f} ms")


if __name__ == "__main__":
    main()
