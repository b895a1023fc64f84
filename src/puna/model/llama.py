"""Tokens, positions and an `attend` function -> hidden states and logits: the whole transformer.

There is no batch dimension: sequences are concatenated along T, and `attend` keeps sequences apart. The network
holds no KV cache and reads no files. Module names are Hugging Face's without the leading "model.".

Shapes: T tokens, D model width, H query heads, K key/value heads, E head width, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from puna.model.config import LlamaConfig
from puna.model.gradients.operations import linear, rms_norm, swiglu
from puna.model.rope import apply_rope, rope_frequencies, rope_tables

# (layer, q_THE, k_TKE, v_TKE) -> out_THE; queries and keys come rotated.
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Linear(nn.Module):
    """x W^T in the dtype of x; the weight may have another dtype."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight)


class Embedding(nn.Module):
    """The embedding table; models with tied embeddings also compute logits with the table."""

    def __init__(self, vocab_size: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, tokens_T: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens_T, self.weight)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight)


class RMSNorm(nn.Module):
    """Normalize in float32, cast back, then scale: Llama's order."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return rms_norm(x_TD, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.dim, config.num_heads * config.head_dim)
        self.k_proj = Linear(config.dim, config.num_kv_heads * config.head_dim)
        self.v_proj = Linear(config.dim, config.num_kv_heads * config.head_dim)
        self.o_proj = Linear(config.num_heads * config.head_dim, config.dim)

    def forward(
        self, x_TD: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], layer: int, attend: Attend
    ) -> torch.Tensor:
        heads = (x_TD.shape[0], -1, self.head_dim)
        q_THE = apply_rope(self.q_proj(x_TD).view(heads), *rope)
        k_TKE = apply_rope(self.k_proj(x_TD).view(heads), *rope)
        v_TKE = self.v_proj(x_TD).view(heads)
        return self.o_proj(attend(layer, q_THE, k_TKE, v_TKE).flatten(1))

    @torch.no_grad()
    def initialize_as_copier(self, scale: float, generator: torch.Generator) -> None:
        """Initialize heads as copiers: W_v is drawn anew with rows of length about 1, and W_o = `scale` W_v^T."""
        v_KED = self.v_proj.weight.unflatten(0, (-1, self.head_dim))
        v_KED.normal_(0.0, v_KED.shape[-1] ** -0.5, generator=generator)
        heads_per_group = self.q_proj.weight.shape[0] // self.v_proj.weight.shape[0]
        self.o_proj.weight.copy_(v_KED.repeat_interleave(heads_per_group, dim=0).flatten(0, 1).T * scale)


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = Linear(config.dim, config.hidden_dim)
        self.up_proj = Linear(config.dim, config.hidden_dim)
        self.down_proj = Linear(config.hidden_dim, config.dim)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.down_proj(swiglu(self.gate_proj(x_TD), self.up_proj(x_TD)))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x_TD: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], layer: int, attend: Attend
    ) -> torch.Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), rope, layer, attend)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class Llama(nn.Module):
    """The network. Parameters are uninitialized until `initialize` or a checkpoint fills the values.

    Example:
        >>> model = Llama(SIZES["demo-student"])
        >>> model.initialize(seed=0)
        >>> hidden_TD = model(tokens_T, positions_T, packed_attend([len(tokens_T)]))
        >>> logits_TV = model.logits(hidden_TD)
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head: nn.Module | None = None if config.tie_embeddings else Linear(config.dim, config.vocab_size)
        self.score = Linear(config.dim, 1) if config.is_reward else None
        # NOTE: not a buffer: `model.to(torch.bfloat16)` would round the frequencies and bend long contexts.
        self.frequencies = rope_frequencies(config)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embeddings, or of the norms where the embeddings are quantized."""
        return getattr(self.embed_tokens, "weight", self.norm.weight).dtype

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Llama":
        """Move the rotary frequencies with the weights (`.to`, `.cuda`), but keep float32."""
        super()._apply(fn, recurse)
        if self.device.type != "meta":
            self.frequencies = self.frequencies.to(self.device)
        return self

    def forward(
        self,
        tokens_T: torch.Tensor,
        positions_T: torch.Tensor,
        attend: Attend,
        *,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Return hidden_TD after the final norm, in `dtype`; by default the dtype of the weights."""
        x_TD = self.embed_tokens(tokens_T).to(dtype or self.dtype)
        rope = rope_tables(positions_T, self.frequencies, x_TD.dtype)
        for layer, block in enumerate(self.layers):
            x_TD = block(x_TD, rope, layer, attend)
        return self.norm(x_TD)

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Return float32 logits_TV; the product is computed in the dtype of hidden_TD."""
        if self.lm_head is not None:
            return self.lm_head(hidden_TD).float()
        return self.embed_tokens.product(hidden_TD).float()

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Initialize all parameters: norms 1, matrices normal(0, 0.02), residual outputs scaled by 1/sqrt(2 layers).

        Above the first layer heads start as weak copiers, so that small models learn to copy earlier. The idea is the
        mimetic initialization of Trockman and Kolter (2023, arXiv 2305.09828), which also sets queries and keys.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = (2 * self.config.num_layers) ** -0.5 if is_output else 1.0
            parameter.normal_(0.0, 0.02 * scale, generator=generator)
        attentions = [module for module in self.modules() if isinstance(module, Attention)]
        for attention in attentions[1:]:
            attention.initialize_as_copier(0.02, generator)
