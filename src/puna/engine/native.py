"""A network in bfloat16, int8 or int4 -> the Runner that computes its steps with the compiled kernels.

Takes the place of model/llama.py on a CPU. Activations and sums are float32; a quantized network's activations are
rounded to int8 for each group of weights, a bfloat16 one's to bfloat16.

Shapes: N chosen rows, D model width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import nn

from puna.kernels.native import (
    MAX_HEAD_DIM,
    MAX_SHARED_HEADS,
    MIN_ROWS,
    Kernels,
    Layer,
    Network,
    Packed,
    Pages,
    Sizes,
    Span,
    packed_group,
    shared_kernels,
    unpacked,
)
from puna.model.config import LlamaConfig
from puna.model.llama import Block, Linear, Llama
from puna.model.quantized import Int8Linear

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class NativeRunner:
    """Holds the network packed for the kernels; the model it was made of may go."""

    def __init__(self, model: Llama, kernels: Kernels, *, num_pages: int, is_int8_cache: bool = False):
        self.config, self._kernels = model.config, kernels
        sizes = _sizes(model.config)
        embedding = _pack_embedding(model.embed_tokens.weight)
        self._network = Network(
            sizes,
            [_pack_block(kernels, block) for block in model.layers],  # type: ignore[arg-type]
            embedding=embedding,
            head=embedding if model.lm_head is None else _pack(kernels, model.lm_head),
            norm=_vector(model.norm.weight),
            frequencies=_vector(model.frequencies),
        )
        self._pages = Pages(sizes, num_pages, is_int8=is_int8_cache)

    def forward(self, tokens: Sequence[int], spans: Sequence[Span], rows: Sequence[int]) -> torch.Tensor:
        """Run the spans' tokens; as Runner says."""
        return self._kernels.forward(self._network, self._pages, tokens, spans, rows)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Return float32 logits_NV."""
        return self._kernels.logits(self._network, hidden_ND)

    def clear(self, page: int) -> None:
        """Fill a page with zeros."""
        self._pages.clear(page)


def native_kernels(model: Llama, dtype: torch.dtype) -> Kernels | None:
    """Return the kernels if they can run this network as it was asked for, else None.

    They compute in bfloat16 or with int8 activations: a network of floats that is to be run in float32 is torch's.
    """
    weights = [
        getattr(block.self_attn if name[0] in "qkvo" else block.mlp, name) for block in model.layers for name in KINDS
    ]
    is_quantized = all(_is_packable(weight) for weight in weights)
    config = model.config
    narrowest = min(config.dim, config.hidden_dim, config.num_kv_heads * config.head_dim)
    is_half = (
        dtype == torch.bfloat16
        and narrowest >= MIN_ROWS
        and all(isinstance(weight, Linear) and weight.weight.dtype == torch.bfloat16 for weight in weights)
    )
    fits = (
        all(tensor.device.type == "cpu" for tensor in (model.embed_tokens.weight, *model.parameters()))
        and config.vocab_size >= MIN_ROWS
        and config.head_dim <= MAX_HEAD_DIM
        and config.num_heads // config.num_kv_heads <= MAX_SHARED_HEADS
    )
    return shared_kernels() if fits and (is_quantized or is_half) else None


def _is_packable(layer: nn.Module) -> bool:
    if not isinstance(layer, Int8Linear):
        return False
    in_dim = layer.weight.shape[1]
    return in_dim % 4 == 0 and packed_group(in_dim, in_dim) is not None


def _pack_block(kernels: Kernels, block: Block) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    return Layer(
        *(_pack(kernels, getattr(attention if name[0] in "qkvo" else mlp, name)) for name in KINDS),
        attention_norm=_vector(block.input_layernorm.weight),
        mlp_norm=_vector(block.post_attention_layernorm.weight),
    )


def _pack(kernels: Kernels, layer: nn.Module) -> Packed:
    if isinstance(layer, Int8Linear):
        words = (layer.weight.view(torch.uint8) ^ 128).view(torch.int32)
        return kernels.pack(words, layer.weight_scale, bits=8, cols=layer.weight.shape[1])
    assert isinstance(layer, Linear)
    return _pack_embedding(layer.weight)


def _pack_embedding(weight: torch.Tensor) -> Packed:
    return unpacked(weight.detach().to(torch.bfloat16).contiguous())


def _vector(values: torch.Tensor) -> torch.Tensor:
    return values.detach().float().contiguous()


def _sizes(config: LlamaConfig) -> Sizes:
    names = ("num_layers", "dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "norm_eps")
    return Sizes(*(getattr(config, name) for name in names))
