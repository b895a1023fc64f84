"""Hugging Face's tensor names and layout <-> Meta's: names, sharded dimensions, order of rotated rows.

Source: llama-models, and convert_llama_weights_to_hf.py in transformers.
"""

import torch

from puna.model.config import LlamaConfig

EMBEDDINGS = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
META_HEAD = "output.weight"
WHOLE = {EMBEDDINGS: "tok_embeddings.weight", "model.norm.weight": "norm.weight", HEAD: META_HEAD}
IN_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def meta_name(name: str) -> str:
    """Return Meta's name of a tensor with Hugging Face's name.

    Example:
        >>> meta_name("model.layers.0.mlp.up_proj.weight")
        'layers.0.feed_forward.w3.weight'
    """
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"layers.{layer}.{IN_LAYER[module]}.weight"


def meta_names(config: LlamaConfig) -> set[str]:
    """Return the tensor names of every shard of a model."""
    whole = {meta for name, meta in WHOLE.items() if name != HEAD or not config.tie_embeddings}
    layers = range(config.num_layers)
    return whole | {f"layers.{layer}.{module}.weight" for layer in layers for module in IN_LAYER.values()}


def is_norm(name: str) -> bool:
    """Return whether every shard holds the whole tensor."""
    return name.endswith("norm.weight")


def split_dims(name: str) -> tuple[int, ...]:
    """Return the possible sharded dimensions of a matrix; the first is Llama 3's.

    Matrices before an all-reduce are split by inputs. Before Llama 3 the embeddings were split by width.
    """
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return (1,)
    return (0, 1) if name == EMBEDDINGS else (0,)


def num_copies(name: str, config: LlamaConfig, num_shards: int) -> int:
    """Return the number of adjacent shards with equal parts: keys and values, if there are more shards than heads."""
    is_shared = name.endswith(("k_proj.weight", "v_proj.weight")) and num_shards % config.num_kv_heads == 0
    return num_shards // config.num_kv_heads if is_shared else 1


def rows_of_pairs(num_heads: int, head_dim: int) -> torch.Tensor:
    """Return the row in Hugging Face's matrix (halves) for every row of Meta's (adjacent rows rotate together)."""
    return torch.arange(num_heads * head_dim).view(num_heads, 2, head_dim // 2).transpose(1, 2).flatten()
