"""Sizes of a network and of a batch -> seconds that this machine takes for it, measured on a reduced network.

The reduced network has the same widths, but fewer layers and tokens: a probe takes about a second up to 1B parameters
and ten for 8B. Its FLOP/s hold for the whole one: a recipe of twelve steps with 5M parameters took 197 s of one core,
223 s were foreseen.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from puna.model.attend import packed_attend
from puna.model.config import LlamaConfig
from puna.model.kernels.device import choose_device
from puna.model.llama import Llama
from puna.model.precision import torch_dtype
from puna.pipeline.config import Precision
from puna.planning.plan.arithmetic import forward_flops

# FLOPs of a probe's forward pass, and the tokens that it keeps at least.
PROBE_FLOPS, LEAST_TOKENS, MAX_VOCABULARY = 1e10, 256, 16_384
# Reading, hashing, writing and reading back: a byte of weights that passes through a stage.
BYTES_PER_SECOND = 150e6

Lengths = tuple[int, ...]


def flops_of(widths: LlamaConfig, lengths: Lengths) -> float:
    """Return the FLOPs of a forward pass over examples of these lengths.

    Example:
        >>> f"{flops_of(SIZES['1b'], (512, 512)):.3g}"
        '2.57e+12'
    """
    return sum(length * forward_flops(widths, (length + 1) / 2) for length in lengths)


def reduced(widths: LlamaConfig, lengths: Lengths) -> tuple[LlamaConfig, Lengths]:
    """Take layers and examples away until a forward pass has at most `PROBE_FLOPS`, if that is possible.

    Example:
        >>> small, lengths = reduced(SIZES["1b"], (512, 512))
        >>> small.num_layers, lengths
        (2, (256,))
    """
    small = replace(widths, vocab_size=min(widths.vocab_size, MAX_VOCABULARY))
    while flops_of(small, lengths) > PROBE_FLOPS and small.num_layers > 2:
        small = replace(small, num_layers=small.num_layers // 2)
    while flops_of(small, lengths) > PROBE_FLOPS and sum(lengths) > LEAST_TOKENS:
        lengths = lengths[: len(lengths) // 2] if len(lengths) > 1 else (max(LEAST_TOKENS, sum(lengths) // 2),)
    return small, lengths


def probe_network(widths: LlamaConfig, dtype: torch.dtype = torch.float32) -> Llama:
    """Return a network of these sizes with constant weights where `auto` computes: values do not change the speed."""
    model = Llama(widths).to(device=choose_device(), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.dim() == 1 else 0.01)
    return model


def time_passes(compute: Callable[[], object]) -> float:
    """Return the seconds of the faster of two calls; the first one warms up."""
    seconds = list[float]()
    for _ in range(2):
        start = time.perf_counter()
        compute()
        if choose_device().type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@cache
def forward_seconds(widths: LlamaConfig, lengths: Lengths, precision: Precision) -> float:
    """Return the seconds of one forward pass over a batch in torch, logits included."""
    small, few = reduced(widths, lengths)
    model, dtype = probe_network(small), torch_dtype(precision)
    tokens_T = torch.arange(sum(few), device=model.device) % small.vocab_size
    positions_T = torch.cat([torch.arange(length, device=model.device) for length in few])

    @torch.inference_mode()
    def compute() -> None:
        model.logits(model(tokens_T, positions_T, packed_attend(few), dtype=dtype))

    return time_passes(compute) * flops_of(widths, lengths) / flops_of(small, few)


def weight_seconds(widths: LlamaConfig, passes: float = 1.0, value_bytes: int = 4) -> float:
    """Return the seconds in which the weights are read or written so many times.

    Example:
        >>> round(weight_seconds(SIZES["1b"], passes=2), 1)
        65.9
    """
    return passes * widths.num_parameters * value_bytes / BYTES_PER_SECOND
