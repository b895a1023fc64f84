"""Calibration text and a float model -> the model with layers quantized by GPTQ, one after another.

The inputs of a layer come from the quantized layers before. Memory holds the Hessians of one layer and the hidden
states of the text. quantize.py chooses the texts.

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
# Matrices with the same inputs share a Hessian, which is collected at the first matrix of the tuple.
SHARED = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}


class Batch(NamedTuple):
    """Hidden states of several packed texts at the input of a layer."""

    texts: Sequence[Sequence[int]]
    x_TD: torch.Tensor
    rope: tuple[torch.Tensor, torch.Tensor]
    attend: Attend


@torch.no_grad()
def round_by_calibration(
    model: Llama, pieces: Sequence[Sequence[int]], schemes: Mapping[str, Scheme], dtype: torch.dtype, bar: Progress
) -> None:
    """Quantize the matrices of `schemes` inside the layers with GPTQ, in place; `dtype` is the dtype of activations."""
    batches = list(text_batches(model.embed_tokens, model.frequencies, pieces, dtype))
    for index, block in enumerate(model.layers):
        assert isinstance(block, Block)
        layer_schemes = {part: schemes.get(f"layers.{index}.{part}") for parts in SHARED.values() for part in parts}
        for first, hessian_II in _hessians(block, index, batches).items():
            for part in SHARED[first]:
                scheme, linear = layer_schemes[part], block.get_submodule(part)
                if scheme and isinstance(linear, Linear):
                    block.set_submodule(part, gptq(linear.weight, hessian_II, scheme))
                    bar.advance()
        for number, batch in enumerate(batches):
            batches[number] = batch._replace(x_TD=block(batch.x_TD, batch.rope, index, batch.attend))


def text_batches(
    embed_tokens: nn.Module, frequencies: torch.Tensor, pieces: Sequence[Sequence[int]], dtype: torch.dtype
) -> Iterator[Batch]:
    """Yield the embedded texts in packed batches of about BATCH_TOKENS tokens."""
    group: list[Sequence[int]] = []
    for number, piece in enumerate(pieces, start=1):
        group.append(piece)
        if number == len(pieces) or sum(map(len, group)) + len(pieces[number]) > BATCH_TOKENS:
            tokens_T = torch.tensor([token for ids in group for token in ids], device=frequencies.device)
            positions_T = torch.cat([torch.arange(len(ids), device=frequencies.device) for ids in group])
            rope = rope_tables(positions_T, frequencies, dtype)
            attend = packed_attend([len(ids) for ids in group])
            yield Batch(group, embed_tokens(tokens_T).to(dtype), rope, attend)
            group = []


def _hessians(block: Block, index: int, batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    """Return Hessians: sums of x x^T over all tokens for the inputs x of a matrix, by the keys of SHARED."""
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
        raise CheckpointError(f"layer {index} computes NaN or infinity", expected="finite activations in every layer")
    return sums
