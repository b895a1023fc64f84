"""Calibration text and a float model -> the model with each layer rounded by what flows through it, one after another.

In memory are one layer's Hessians and what the tokens are before that layer; a layer sees its inputs as the rounded
layers before it make them. Which texts are taken is quantize.py's business.

Shapes: T tokens, D model width, I inputs of a matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from puna.conversion.compression.rounding import gptq
from puna.model.attend import packed_attend
from puna.model.llama import Attend, Block, Linear, Llama
from puna.model.quantization.scheme import Scheme
from puna.model.rope import rope_tables
from puna.pipeline.errors import CheckpointError
from puna.pipeline.progress import Progress

BATCH_TOKENS = 2048
# Matrices that read the same inputs share a Hessian, which is summed up at the first of them.
SHARED = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


class Batch(NamedTuple):
    """Texts that go through a layer together, as they are before it."""

    texts: Sequence[Sequence[int]]
    x_TD: torch.Tensor
    rope: tuple[torch.Tensor, torch.Tensor]
    attend: Attend


@torch.no_grad()
def round_by_calibration(
    model: Llama, pieces: Sequence[Sequence[int]], schemes: Mapping[str, Scheme], dtype: torch.dtype, bar: Progress
) -> None:
    """Replace the matrices of `schemes` inside the layers by what GPTQ makes of them, in place."""
    batches = list(text_batches(model.embed_tokens, model.frequencies, pieces, dtype))
    for index, block in enumerate(model.layers):
        assert isinstance(block, Block)
        wanted = {part: schemes.get(f"layers.{index}.{part}") for parts in SHARED.values() for part in parts}
        for first, hessian_II in _hessians(block, index, batches).items():
            for part in SHARED[first]:
                scheme, linear = wanted[part], block.get_submodule(part)
                if scheme and isinstance(linear, Linear):
                    block.set_submodule(part, gptq(linear.weight, hessian_II, scheme))
                    bar.advance()
        for number, batch in enumerate(batches):
            batches[number] = batch._replace(x_TD=block(batch.x_TD, batch.rope, index, batch.attend))


def text_batches(
    embed_tokens: nn.Module, frequencies: torch.Tensor, pieces: Sequence[Sequence[int]], dtype: torch.dtype
) -> Iterator[Batch]:
    """Yield the texts as they are before the first layer, in batches of about BATCH_TOKENS."""
    group: list[Sequence[int]] = []
    for number, piece in enumerate(pieces, start=1):
        group.append(piece)
        if number == len(pieces) or sum(map(len, group)) + len(pieces[number]) > BATCH_TOKENS:
            tokens_T = torch.tensor([each for ids in group for each in ids], device=frequencies.device)
            positions_T = torch.cat([torch.arange(len(ids), device=frequencies.device) for ids in group])
            rope = rope_tables(positions_T, frequencies, dtype)
            attend = packed_attend([len(ids) for ids in group])
            yield Batch(group, embed_tokens(tokens_T).to(dtype), rope, attend)
            group = []


def _hessians(block: Block, index: int, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """Return the sum of x x^T over all tokens for the inputs of each matrix, by the first that reads them."""
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x_TI = inputs[0].float()
            product_II = x_TI.T @ x_TI
            sums[name] = sums[name].add_(product_II) if name in sums else product_II

        return module.register_forward_pre_hook(add)

    handles = [watch(name, block.get_submodule(name)) for name in SHARED]
    try:
        for batch in batches:
            block(batch.x_TD, batch.rope, index, batch.attend)
    finally:
        for handle in handles:
            handle.remove()
    if not all(product_II.isfinite().all() for product_II in sums.values()):
        raise CheckpointError(f"layer {index} computes values that are not finite", expected="numbers")
    return sums
