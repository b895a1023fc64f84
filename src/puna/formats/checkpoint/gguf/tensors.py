"""Hugging Face's tensor names, row order and RoPE scaling <-> GGUF's."""

from dataclasses import replace

import torch

from puna.formats.checkpoint.gguf.container import GgufFile
from puna.model.config import LlamaConfig, RopeScaling, published_scaling
from puna.model.rope import rope_frequencies
from puna.pipeline.errors import CheckpointError

EMBEDDINGS, OUTPUT, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
# Factor 8 of Llama 3.1, and 32 of Llama 3.2.
PUBLISHED_SCALINGS = tuple(map(published_scaling, (8.0, 32.0)))


def gguf_name(name: str) -> str:
    """Return GGUF's name of a tensor of `tensor_shapes`."""
    path = name.removesuffix(".weight")
    if path in NAMES:
        return f"{NAMES[path]}.weight"
    layer, part = path.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[part]}.weight"


def to_pairs(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return q or k rows in Meta's order (adjacent pairs), which GGUF uses, from Hugging Face's order (halves)."""
    return weight.reshape(num_heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def to_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Invert `to_pairs`."""
    return weight.reshape(num_heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def rope_factors(config: LlamaConfig) -> torch.Tensor:
    """Return the divisors of RoPE's frequencies in GGUF's `rope_freqs.weight`: float32 [E/2]."""
    return rope_frequencies(replace(config, rope_scaling=None)) / rope_frequencies(config)


def find_scaling(factors: torch.Tensor, config: LlamaConfig, file: GgufFile) -> RopeScaling:
    """Return the published RoPE scaling with these factors; `config` has no scaling yet."""
    for scaling in PUBLISHED_SCALINGS:
        # Factors of other programs differ in precision; the two published scalings differ far more.
        expected = rope_factors(replace(config, rope_scaling=scaling))
        if torch.allclose(factors, expected, rtol=1e-4, atol=0):
            return scaling
    raise CheckpointError(
        f"{file.path}: tensor {ROPE_FACTORS} scales RoPE by up to {factors.max().item():g}",
        expected="the scaling of Llama 3.1 or 3.2 (low frequencies by 8 or by 32)",
        hint="Convert the model's safetensors instead",
    )
