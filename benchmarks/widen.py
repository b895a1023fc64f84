"""A trained Llama -> a larger one that computes the same, even once its weights are rounded to few bits.

What is new is zero, or makes up for what is: a norm's mean over more inputs for its weights and its epsilon, a wider
head's rotary frequencies for a greater `rope_theta`, the smaller scale of its attention for greater queries. New layers
add zero; new vocabulary entries have the row of an entry that is never chosen.

A small network suffers more from rounding than a large one does. So what matrices read stands in it twice: it meets the
rounded weights first, then what the rounding left over, which has groups of its own and so finer steps.
"""

from dataclasses import replace
from typing import NamedTuple

import torch

from puna.model.config import LlamaConfig
from puna.model.llama import Llama, RMSNorm
from puna.model.quantization.quantized import QuantizedLinear, round_weight
from puna.model.quantization.scheme import Scheme

# Copies begin where a group of columns does.
ALIGNMENT = 128


class Places(NamedTuple):
    """Where the old channels stand among the new ones, twice."""

    first: torch.Tensor
    second: torch.Tensor


@torch.no_grad()
def widen(model: Llama, size: LlamaConfig, scheme: Scheme, *, unused_id: int) -> Llama:
    """Return a float32 network of this size (but for its rotary frequencies), to be rounded by this scheme."""
    old, spread = model.config, 2 * model.config.dim / size.dim
    assert old.tie_embeddings and old.rope_scaling is None
    config = replace(
        size,
        norm_eps=old.norm_eps * spread,
        rope_theta=old.rope_theta ** (size.head_dim / old.head_dim),
        rope_scaling=None,
        max_context=old.max_context,
        tie_embeddings=True,
    )
    wide = Llama(config)
    for parameter in wide.parameters():
        parameter.zero_()
    residual, hidden = (_channels(*pair) for pair in ((old.dim, config.dim), (old.hidden_dim, config.hidden_dim)))
    queries = Places(*(_head_channels(old, config, is_copy=is_copy) for is_copy in (False, True)))
    keys = _head_channels(replace(old, num_heads=old.num_kv_heads), replace(config, num_heads=config.num_kv_heads))
    for block, old_block in zip(wide.layers, model.layers, strict=False):
        for name, rows, columns in (
            ("self_attn.q_proj", queries, residual),
            ("self_attn.k_proj", (keys,), residual),
            ("self_attn.v_proj", (keys,), residual),
            ("self_attn.o_proj", residual, queries),
            ("mlp.gate_proj", hidden, residual),
            ("mlp.up_proj", hidden, residual),
            ("mlp.down_proj", residual, hidden),
        ):
            weight = old_block.get_parameter(f"{name}.weight")
            scale = (config.head_dim / old.head_dim) ** 0.5 if name.endswith("q_proj") else 1.0
            _fill(block.get_parameter(f"{name}.weight"), weight * scale, rows, columns, scheme)
        for name in ("input_layernorm", "post_attention_layernorm"):
            _fill_norm(block.get_submodule(name), old_block.get_submodule(name), residual, spread)  # type: ignore[arg-type]
    # The table is the head as well, which must not count what stands in it twice.
    _fill_norm(wide.norm, model.norm, residual[:1], spread)
    rows = [*range(old.vocab_size), *[unused_id] * (config.vocab_size - old.vocab_size)]
    for columns in residual:
        wide.embed_tokens.weight[:, columns] = model.embed_tokens.weight[rows]
    return wide.eval()


def _fill(
    to: torch.Tensor, weight: torch.Tensor, rows: tuple[torch.Tensor, ...], columns: Places, scheme: Scheme
) -> None:
    coarse = torch.zeros(len(weight), to.shape[1])
    coarse[:, columns.first] = weight
    coarse = QuantizedLinear(*round_weight(coarse, scheme), scheme, to.shape[1]).dequantize()[:, columns.first]
    for places in rows:
        to[places[:, None], columns.first] = coarse
        to[places[:, None], columns.second] = weight - coarse


def _fill_norm(norm: RMSNorm, old: RMSNorm, copies: tuple[torch.Tensor, ...], spread: float) -> None:
    for places in copies:
        norm.weight[places] = old.weight * spread**0.5


def _channels(old_dim: int, dim: int) -> Places:
    second = -(-old_dim // ALIGNMENT) * ALIGNMENT
    assert second + old_dim <= dim, "too narrow"
    return Places(torch.arange(old_dim), second + torch.arange(old_dim))


def _head_channels(old: LlamaConfig, new: LlamaConfig, *, is_copy: bool = False) -> torch.Tensor:
    """Return where the old heads' rows stand: beside the keys that they shared, each half of a head at its half."""
    shared, new_shared = (config.num_heads // config.num_kv_heads for config in (old, new))
    assert shared * (1 + is_copy) <= new_shared and old.num_kv_heads <= new.num_kv_heads, "too few heads"
    assert not is_copy or shared * new.head_dim % ALIGNMENT == 0
    heads = torch.arange(old.num_heads)
    heads = heads // shared * new_shared + heads % shared + is_copy * shared
    places = torch.arange(old.head_dim)
    places = places + (places >= old.head_dim // 2) * (new.head_dim - old.head_dim) // 2
    return (heads[:, None] * new.head_dim + places).flatten()
