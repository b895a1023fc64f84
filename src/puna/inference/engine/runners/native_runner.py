"""A network in bfloat16, int8 or int4 -> the Runner that computes its steps with the compiled kernels.

Takes the place of model/llama.py on a CPU. Activations and sums are float32; quantized matrices see them rounded to
int8, the others, which are bfloat16 here even if they are stored in float32, rounded to bfloat16.

Shapes: N chosen rows, D model width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import nn

from puna.inference.engine.cache.paged_cache import PAGE_LEN
from puna.inference.engine.runners.runner import Span
from puna.model.adapters.lora import Lora
from puna.model.config import ADAPTED, LlamaConfig
from puna.model.kernels.native import (
    MAX_HEAD_DIM,
    MAX_SHARED_HEADS,
    MIN_ROWS,
    Kernels,
    Layer,
    Network,
    Packed,
    PackedLora,
    Pages,
    Sizes,
    packed_group,
    shared_kernels,
    unpacked,
)
from puna.model.llama import Block, Embedding, Linear, Llama
from puna.model.quantization.quantized import PackedWeight, QuantizedLinear


class NativeRunner:
    """Holds the network packed for the kernels; the model it was made of may go."""

    dtype = torch.bfloat16

    def __init__(self, model: Llama, kernels: Kernels, *, num_pages: int, is_int8_cache: bool = False):
        self.config, self._kernels = model.config, kernels
        sizes = _sizes(model.config)
        embedding = _pack(kernels, model.embed_tokens)
        self._network = Network(
            sizes,
            [_pack_block(kernels, block) for block in model.layers],  # type: ignore[arg-type]
            embedding=embedding,
            head=embedding if model.lm_head is None else _pack(kernels, model.lm_head),
            norm=_vector(model.norm.weight),
            frequencies=_vector(model.frequencies),
        )
        self._pages = Pages(sizes, num_pages, page_len=PAGE_LEN, is_int8=is_int8_cache)

    def prepare(self, lora: Lora) -> PackedLora:
        """Pack an adapter in bfloat16."""
        paths = [f"layers.{layer}.{name}" for layer in range(self.config.num_layers) for name in ADAPTED]
        parts = [lora.get(path) for path in paths]
        return PackedLora([part and (part.down_RI, part.up_OR, part.scale) for part in parts])

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
    config, blocks = model.config, [_modules(block) for block in model.layers]  # type: ignore[arg-type]
    is_quantized = any(isinstance(module, QuantizedLinear) for modules in blocks for module in modules)
    fits = (
        model.device.type == "cpu"
        and (is_quantized or dtype == torch.bfloat16)
        and all(_fits_block(*modules) for modules in blocks)
        and all(_kind(module) is not None for module in (model.embed_tokens, model.lm_head) if module is not None)
        and min(config.dim, config.hidden_dim, config.vocab_size, config.num_kv_heads * config.head_dim) >= MIN_ROWS
        and config.head_dim <= MAX_HEAD_DIM
        and config.num_heads // config.num_kv_heads <= MAX_SHARED_HEADS
    )
    return shared_kernels() if fits else None


def _modules(block: Block) -> tuple[nn.Module, ...]:
    return tuple(block.get_submodule(name) for name in ADAPTED)


def _fits_block(
    q: nn.Module, k: nn.Module, v: nn.Module, o: nn.Module, gate: nn.Module, up: nn.Module, down: nn.Module
) -> bool:
    """Whether the kernels know these matrices; those that read the same activations see them rounded alike."""
    kinds = [_kind(module) for module in (q, k, v, o, gate, up, down)]
    return None not in kinds and kinds[0] == kinds[1] == kinds[2] and kinds[4] == kinds[5]


def _kind(module: nn.Module) -> tuple[int, int] | None:
    """Return a matrix's bits and how many inputs are rounded together, or None if the kernels can't multiply by it."""
    if isinstance(module, PackedWeight):
        group = packed_group(module.in_dim, module.in_dim // module.weight_scale.shape[1])
        return None if group is None else (module.scheme.bits, group)
    return (16, 0) if isinstance(module, Linear | Embedding) else None


def _pack_block(kernels: Kernels, block: Block) -> Layer:
    return Layer(
        *(_pack(kernels, module) for module in _modules(block)),
        attention_norm=_vector(block.input_layernorm.weight),
        mlp_norm=_vector(block.post_attention_layernorm.weight),
    )


def _pack(kernels: Kernels, module: nn.Module) -> Packed:
    if isinstance(module, PackedWeight):
        scale = module.weight_scale
        scale = scale if scale.dtype == torch.bfloat16 else scale.float()
        return kernels.pack(module.weight_packed, scale, bits=module.scheme.bits, cols=module.in_dim)
    assert isinstance(module, Linear | Embedding)
    return unpacked(module.weight.detach().to(torch.bfloat16).contiguous())


def _vector(values: torch.Tensor) -> torch.Tensor:
    return values.detach().float().contiguous()


def _sizes(config: LlamaConfig) -> Sizes:
    names = ("num_layers", "dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "norm_eps")
    return Sizes(*(getattr(config, name) for name in names))
