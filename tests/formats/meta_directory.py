"""A small model in Meta's format, written by torch and without Puna, and a way to change a shard of it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from puna.formats.checkpoint.source import tensor_shapes
from puna.model.config import LlamaConfig, RopeScaling

SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)
# 16 heads and 8 key/value heads, so that 8 shards hold one of these each and 16 share them.
SMALL = LlamaConfig(64, 96, 4, 2, 16, 8, 320, 131_072, rope_scaling=SCALING)
PARAMS: dict[str, Any] = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 16,
    "n_kv_heads": 8,
    "vocab_size": 320,
    "multiple_of": 32,
    "ffn_dim_multiplier": 0.5,
    "norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "use_scaled_rope": True,
}


def weights_of(config: LlamaConfig, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Random weights by Hugging Face's names."""
    generator = torch.Generator().manual_seed(0)
    shapes = tensor_shapes(config).items()
    return {name: (torch.randn(shape, generator=generator) / math.sqrt(shape[-1])).to(dtype) for name, shape in shapes}


def as_meta(weights: dict[str, torch.Tensor], config: LlamaConfig) -> dict[str, torch.Tensor]:
    """The same by Meta's names, with rows of heads paired: row 2i and 2i + 1 instead of i and i + half."""
    renamed: dict[str, torch.Tensor] = {}
    table = {"self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv"}
    table |= {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3"}
    table |= {"mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "model.": ""}
    table |= {"post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings", "lm_head": "output"}
    for name, tensor in weights.items():
        if "q_proj" in name or "k_proj" in name:
            heads = [head.clone() for head in tensor.split(config.head_dim)]
            for head in heads:
                first, second = head.clone().chunk(2)
                head[0::2], head[1::2] = first, second
            tensor = torch.cat(heads)
        for old, new in table.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def split(name: str, tensor: torch.Tensor, num_shards: int, embeddings_dim: int) -> list[torch.Tensor]:
    if name.endswith("norm.weight"):
        return [tensor.clone() for _ in range(num_shards)]
    dim = 1 if name.endswith(("wo.weight", "w2.weight")) else embeddings_dim if "tok_embeddings" in name else 0
    return [part.clone() for part in tensor.chunk(num_shards, dim)]


def save_shards(directory: Path, meta: dict[str, torch.Tensor], num_shards: int, embeddings_dim: int = 0) -> None:
    (directory / "params.json").write_text(json.dumps(PARAMS))
    parts = {name: split(name, tensor, num_shards, embeddings_dim) for name, tensor in meta.items()}
    for rank in range(num_shards):
        state = {name: part[rank] for name, part in parts.items()} | {"rope.freqs": torch.ones(2)}
        torch.save(state, directory / f"consolidated.{rank:02d}.pth")


def edit_shard(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
